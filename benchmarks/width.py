"""Width compression against full-width peers: the same work in one process, answers compared before times.

Work: gradient descent with step size 5e-6, 3,000 steps, on (1,300,500,1) with Y = 2 and (5,300,500,1) with Y = 1,
fan_out weights, and the loss after every step. Peers: a PyTorch autograd SGD loop (extra `peers`), a NumPy loop with
gradients by hand, a jitted jax.lax.scan; beside them gradient flow to the same time by diffrax Tsit5 on the full
weights, and flowsim (compression included). Every run is repeated once per seed after a warm-up whose extra time is
reported as compile time. float64 throughout.

    python benchmarks/width.py [--seeds 10] [--json FILE]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import flowsim as fs

ETA, STEPS = 5e-6, 3000
CASES = {"(1,300,500,1)": ((1, 300, 500, 1), 2.0), "(5,300,500,1)": ((5, 300, 500, 1), 1.0)}
Weights = tuple[np.ndarray, ...]


def numpy_loop(weights: Weights, Y: np.ndarray) -> np.ndarray:
    """Gradients by hand, thin products only."""
    W1, W2, W3 = (W.copy() for W in weights)
    losses = np.empty(STEPS + 1)
    for k in range(STEPS + 1):
        A, B = W1 @ W2, W2 @ W3
        E = W1 @ B - Y
        losses[k] = 0.5 * (E * E).sum()
        G1, G2, G3 = E @ B.T, (W1.T @ E) @ W3.T, A.T @ E
        W1, W2, W3 = W1 - ETA * G1, W2 - ETA * G2, W3 - ETA * G3
    return losses


def torch_loop(weights: Weights, Y: np.ndarray) -> np.ndarray:
    """autograd and torch.optim.SGD."""
    import torch

    layers = [torch.tensor(W, requires_grad=True) for W in weights]
    target, optimizer, losses = torch.tensor(Y), torch.optim.SGD(layers, lr=ETA), np.empty(STEPS + 1)
    for k in range(STEPS + 1):
        optimizer.zero_grad()
        loss = 0.5 * ((target - layers[0] @ layers[1] @ layers[2]) ** 2).sum()
        losses[k] = loss.item()
        loss.backward()
        optimizer.step()
    return losses


def jax_scan() -> Callable[[Weights, np.ndarray], np.ndarray]:
    """A jitted jax.lax.scan over the steps on the full weights."""
    import jax
    import jax.numpy as jnp

    def step(weights, Y):
        W1, W2, W3 = weights
        A, B = W1 @ W2, W2 @ W3
        E = W1 @ B - Y
        gradients = E @ B.T, (W1.T @ E) @ W3.T, A.T @ E
        return tuple(W - ETA * G for W, G in zip(weights, gradients, strict=True)), 0.5 * jnp.sum(E * E)

    @jax.jit
    def scan(weights, Y):
        return jax.lax.scan(lambda w, _: step(w, Y), weights, None, length=STEPS + 1)[1]

    return lambda weights, Y: np.asarray(scan(tuple(map(jnp.asarray, weights)), jnp.asarray(Y)))


def diffrax_flow() -> Callable[[Weights, np.ndarray], np.ndarray]:
    """diffeqsolve with Tsit5 at rtol 1e-8 on the full weights, saved at 101 times."""
    import diffrax
    import jax
    import jax.numpy as jnp

    def velocity(t, weights, Y):
        W1, W2, W3 = weights
        A, B = W1 @ W2, W2 @ W3
        E = W1 @ B - Y
        return -(E @ B.T), -((W1.T @ E) @ W3.T), -(A.T @ E)

    def loss(t, weights, Y):
        W1, W2, W3 = weights
        return 0.5 * jnp.sum((W1 @ W2 @ W3 - Y) ** 2)

    @jax.jit
    def solve(weights, Y):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            0.0,
            ETA * STEPS,
            None,
            weights,
            Y,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, ETA * STEPS, 101), fn=loss),
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
            max_steps=100_000,
        ).ys

    return lambda weights, Y: np.asarray(solve(tuple(map(jnp.asarray, weights)), jnp.asarray(Y)))


def flowsim_descent(backend: str) -> Callable[[Weights, np.ndarray], np.ndarray]:
    """simulate with everything that comes with it: diagnostics, invariants, error estimate."""
    method = fs.GradientDescent(ETA, backend)
    return lambda weights, Y: (
        fs.simulate(fs.Problem(fs.SquaredLoss(Y), fs.LinearNetwork(weights)), method, t1=ETA * STEPS).step_loss
    )


def flowsim_flow(weights: Weights, Y: np.ndarray) -> np.ndarray:
    """DOP853 at rtol 1e-8, the default, saved at 101 times."""
    return fs.simulate(fs.Problem(fs.SquaredLoss(Y), fs.LinearNetwork(weights)), t1=ETA * STEPS).loss


def measure(
    run: Callable[[Weights, np.ndarray], np.ndarray], inputs: list, reference: list | None, bound: float
) -> dict:
    """Seconds per seed after a warm-up, compile time apart; refuses to time an answer that differs."""
    begun = time.perf_counter()
    run(*inputs[0])
    first = time.perf_counter() - begun
    seconds, gaps = [], []
    for index, arguments in enumerate(inputs):
        begun = time.perf_counter()
        losses = run(*arguments)
        seconds.append(time.perf_counter() - begun)
        if reference is not None:
            gaps.append(float(np.abs(losses - reference[index]).max() / reference[index][0]))
    if gaps and max(gaps) > bound:
        raise SystemExit(f"answers differ by {max(gaps):.1e} L(0), more than {bound:.0e}: times would mean nothing")
    return {
        "median": float(np.median(seconds)),
        "min": min(seconds),
        "max": max(seconds),
        "compile": max(first - float(np.median(seconds)), 0.0),
        "gap": max(gaps, default=0.0),
    }


def benchmark(seeds: int) -> dict:
    """case -> peer -> measured."""
    import jax

    results: dict = {}
    for name, (dims, height) in CASES.items():
        Y = np.full((dims[0], 1), height)
        inputs = [(fs.fan_out(dims, seed=seed).weights, Y) for seed in range(seeds)]
        truth = [numpy_loop(*arguments) for arguments in inputs]
        rows = {"NumPy loop, full": measure(numpy_loop, inputs, truth, 1e-9)}
        try:
            rows["PyTorch SGD loop, full"] = measure(torch_loop, inputs, truth, 1e-9)
        except ImportError:
            print("PyTorch is not installed (pip install '.[peers]'): left out")
        with jax.enable_x64(True):
            rows["jax.lax.scan, full"] = measure(jax_scan(), inputs, truth, 1e-9)
            diffrax_run = diffrax_flow()
            flows = [
                fs.simulate(
                    fs.Problem(fs.SquaredLoss(Y), fs.LinearNetwork(w)), fs.Scipy("DOP853", 1e-11, 1e-13), t1=ETA * STEPS
                ).loss
                for w, _ in inputs
            ]
            rows["diffrax Tsit5 flow, full"] = measure(diffrax_run, inputs, flows, 1e-4)
        rows["flowsim descent, numpy"] = measure(flowsim_descent("numpy"), inputs, truth, 1e-9)
        rows["flowsim descent, jax"] = measure(flowsim_descent("jax"), inputs, truth, 1e-9)
        rows["flowsim flow, DOP853"] = measure(flowsim_flow, inputs, flows, 1e-4)
        results[name] = rows
    return results


def table(results: dict) -> str:
    """Medians, and each peer's time over flowsim's."""
    lines = []
    for case, rows in results.items():
        ours = {"jax": rows["flowsim descent, jax"]["median"], "numpy": rows["flowsim descent, numpy"]["median"]}
        lines += [
            f"\n{case}, {STEPS} steps of {ETA:g}",
            "| run | seconds | compile | gap / L(0) | over flowsim jax | over flowsim numpy |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            ratios = " | ".join(f"{row['median'] / ours[key]:.1f}" for key in ("jax", "numpy"))
            lines.append(f"| {name} | {row['median']:.4f} | {row['compile']:.2f} | {row['gap']:.1e} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = benchmark(arguments.seeds)
    print(f"{platform.machine()}, {platform.processor() or 'unknown processor'}, NumPy {np.__version__}")
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
