"""Gradient flow on the full weights by scipy, diffrax, torchdiffeq and PyTorch, as their users would write it.

This file does not import flowsim. As a script it makes one run, from a cold process:

    python benchmarks/peers.py PEER TASK.npz RTOL

TASK.npz holds W1 .. WL, the times (the first is 0), and the loss: G and H of a quadratic one, whose gradient is
G W - H (least squares by its normal equations), or X and y of sum_i exp(-y_i x_i^T w).
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Task = dict[str, np.ndarray]
Path = list[list[np.ndarray]]
"""The weights [W_1, ..., W_L] at each of the times."""


class TooLong(Exception):
    """The deadline has passed."""


def layers(task: Task) -> list[np.ndarray]:
    """[W_1, ..., W_L]."""
    return [task[f"W{k}"] for k in range(1, sum(name.startswith("W") for name in task) + 1)]


def loss_gradient(task: Task, exp: Callable[[Any], Any], convert: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
    """W -> grad f(W) in the arrays of a package."""
    if "G" in task:
        G, H = convert(task["G"]), convert(task["H"])
        return lambda W: G @ W - H
    Z = convert(task["X"] * task["y"].reshape(-1, 1))
    return lambda W: -Z.T @ exp(-Z @ W)


def velocities(weights: Any, gradient: Callable[[Any], Any]) -> list[Any]:
    """[-dL/dW_1, ..., -dL/dW_L], products from the left."""
    prefixes = [weights[0]]
    for W in weights[1:]:
        prefixes.append(prefixes[-1] @ W)
    message, result = -gradient(prefixes.pop()), []
    for A, W in zip(reversed(prefixes), reversed(weights[1:]), strict=True):
        result.append(A.T @ message)
        message = message @ W.T
    return [message, *reversed(result)]


def split(vector: Any, task: Task) -> list[Any]:
    """A flat vector as weights."""
    shapes = [W.shape for W in layers(task)]
    ends = np.cumsum([0, *(rows * columns for rows, columns in shapes)])
    return [vector[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes, strict=False)]


def scipy_ivp(method: str) -> Callable[[Task, float, float], Path]:
    """scipy.integrate.solve_ivp on the flat vector."""

    def run(task: Task, rtol: float, deadline: float) -> Path:
        from scipy.integrate import solve_ivp

        gradient = loss_gradient(task, np.exp, np.asarray)

        def velocity(_: float, y: np.ndarray) -> np.ndarray:
            if time.perf_counter() > deadline:
                raise TooLong
            return np.concatenate([v.ravel() for v in velocities(split(y, task), gradient)])

        times = task["times"]
        start = np.concatenate([W.ravel() for W in layers(task)])
        done = solve_ivp(velocity, (0.0, times[-1]), start, method, times, rtol=rtol, atol=rtol / 100)
        if not done.success:
            raise RuntimeError(done.message)
        return [split(y, task) for y in done.y.T]

    return run


def plain_diffrax(name: str) -> Callable[[Task, float, float], Path]:
    """diffrax.diffeqsolve on the list of weights, jitted as a whole, float64; compiled once for a task."""
    compiled: dict[int, Any] = {}

    def run(task: Task, rtol: float, _: float) -> Path:
        import diffrax
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            if id(task) not in compiled:
                gradient = loss_gradient(task, jnp.exp, jnp.asarray)
                term = diffrax.ODETerm(lambda t, weights, args: velocities(weights, gradient))
                times = jnp.asarray(task["times"])

                def solve(weights: Any, rtol: Any) -> Any:
                    return diffrax.diffeqsolve(
                        term,
                        getattr(diffrax, name)(),
                        0.0,
                        times[-1],
                        None,
                        weights,
                        saveat=diffrax.SaveAt(ts=times),
                        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 100),
                        max_steps=1_000_000,
                    ).ys

                compiled[id(task)] = jax.jit(solve)
            columns = compiled[id(task)]([jnp.asarray(W) for W in layers(task)], jnp.asarray(rtol))
            return [list(row) for row in zip(*map(np.asarray, columns), strict=True)]

    return run


def torchdiffeq_odeint(method: str) -> Callable[[Task, float, float], Path]:
    """torchdiffeq.odeint on the flat vector."""

    def run(task: Task, rtol: float, deadline: float) -> Path:
        import torch
        from torchdiffeq import odeint

        gradient = loss_gradient(task, torch.exp, torch.as_tensor)

        def velocity(_: Any, y: Any) -> Any:
            if time.perf_counter() > deadline:
                raise TooLong
            return torch.cat([v.reshape(-1) for v in velocities(split(y, task), gradient)])

        with torch.no_grad():
            start = torch.cat([torch.as_tensor(W).reshape(-1) for W in layers(task)])
            states = odeint(velocity, start, torch.as_tensor(task["times"]), rtol=rtol, atol=rtol / 100, method=method)
        return [[W.numpy() for W in split(y, task)] for y in states]

    return run


def torch_sgd(task: Task, step_size: float, deadline: float) -> Path:
    """torch.optim.SGD: gradient descent with that step size, as an approximation of the flow (rtol is not used)."""
    import torch

    weights = [torch.tensor(W, requires_grad=True) for W in layers(task)]
    gradient, optimizer = loss_gradient(task, torch.exp, torch.as_tensor), torch.optim.SGD(weights, lr=step_size)
    path, k = [[W.copy() for W in layers(task)]], 0
    for t in task["times"][1:]:
        while k < round(t / step_size):
            if time.perf_counter() > deadline:
                raise TooLong
            W = torch.linalg.multi_dot(weights)
            optimizer.zero_grad()
            W.backward(gradient(W.detach()))
            optimizer.step()
            k += 1
        path.append([W.detach().numpy().copy() for W in weights])
    return path


PEERS: dict[str, Callable[[Task, float, float], Path]] = {
    "scipy RK45": scipy_ivp("RK45"),
    "scipy DOP853": scipy_ivp("DOP853"),
    "scipy LSODA": scipy_ivp("LSODA"),
    "diffrax Tsit5": plain_diffrax("Tsit5"),
    "diffrax Dopri8": plain_diffrax("Dopri8"),
    "torchdiffeq dopri5": torchdiffeq_odeint("dopri5"),
    "torchdiffeq dopri8": torchdiffeq_odeint("dopri8"),
}


if __name__ == "__main__":
    peer, path, rtol = sys.argv[1:]
    with np.load(path) as arrays:
        PEERS[peer](dict(arrays), float(rtol), np.inf)
