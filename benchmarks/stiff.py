"""Stiff problems to 1e-6 of the excess: gradients and seconds of each method for an error of 1e-6 in the weights.

Problems: `digits`, (64, 100, 100, 10), and `synthetic-784`, (784, 512, 512, 10), until L - f* has fallen by 1e-6.
Work is counted in gradients: a product with the Hessian as two, on the coordinates of its image (krylov-bdf on thin
products) as one. Every method runs at rtol 1e-4, 1e-6, 1e-8 (atol = rtol / 100), in one process, one after the other;
its error is that of the weights at the end over their change, from a reference that a second method checks. A peer that
stability bounds takes steps of one length: where it is not through after LIMIT seconds, its work is what it would take
at the rate of the time it has come to, and stands with a ~; its error is then not known.
Implicit peers (scipy's Radau, BDF, LSODA, diffrax's Kvaerno) form a dense Jacobian, of 2.4 GB for `digits`.

    python benchmarks/stiff.py [--problems digits] [--limit 60]
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import TooLong, layers, loss_gradient, split, velocities
from solvers import cold, task_of

import flowsim as fs
from flowsim.comparison import solve_reference
from flowsim.named_problems import VERY_STIFF
from flowsim.network import flatten

OURS = ("auto", "krylov-bdf", "rkc", "gauss-legendre-4", "dop853")
RTOLS = (1e-4, 1e-6, 1e-8)
TARGET = 1e-6

Found = tuple[float, float, float, np.ndarray | None]
"""Seconds, gradients, the share of the time that was reached, and the weights at the end, if it was."""


def ours(named: Any, name: str, rtol: float, limit: float) -> Found:
    """A run of flowsim, with all that it records."""
    begun = time.perf_counter()
    method = fs.method_named(name, rtol=rtol, atol=rtol / 100)
    run = fs.simulate(named.problem, method, t1=named.t1, save_points=11, wall_limit=limit)
    seconds, share = time.perf_counter() - begun, float(run.step_time[-1]) / named.t1
    end = flatten(run.weights_at(named.t1)) if run.status == "completed" else None
    return seconds, float(run.stats["rhs_evaluations"] or 0), share, end


def scipy_peer(method: str) -> Callable[[Any, float, float], Found]:
    """scipy's integrator, step by step, on the flat vector."""

    def run(named: Any, rtol: float, limit: float) -> Found:
        from scipy import integrate

        task = task_of(named.problem, np.array([0.0, named.t1]))
        gradient = loss_gradient(task, np.exp, np.asarray)
        start = np.concatenate([W.ravel() for W in layers(task)])
        count = 0

        def velocity(_: float, y: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return np.concatenate([v.ravel() for v in velocities(split(y, task), gradient)])

        begun = time.perf_counter()
        solver = getattr(integrate, method)(velocity, 0.0, start, named.t1, rtol=rtol, atol=rtol / 100)
        while solver.status == "running" and time.perf_counter() - begun < limit:
            solver.step()
        done = solver.y if solver.status == "finished" else None
        return time.perf_counter() - begun, float(count), solver.t / named.t1, done

    return run


def diffrax_peer(name: str, stages: int) -> Callable[[Any, float, float], Found]:
    """diffrax.diffeqsolve, jitted, in parts of the time until the limit; compiled before."""

    def run(named: Any, rtol: float, limit: float) -> Found:
        import diffrax
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            task = task_of(named.problem, np.array([0.0, named.t1]))
            gradient = loss_gradient(task, jnp.exp, jnp.asarray)
            term = diffrax.ODETerm(lambda t, weights, args: velocities(weights, gradient))

            @jax.jit
            def part(start: Any, end: Any, first: Any, weights: Any) -> Any:
                found = diffrax.diffeqsolve(
                    term,
                    getattr(diffrax, name)(),
                    start,
                    end,
                    first,
                    weights,
                    saveat=diffrax.SaveAt(t1=True),
                    stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 100),
                    max_steps=10_000_000,
                )
                return [W[0] for W in found.ys], found.stats["num_steps"]

            weights = [jnp.asarray(W) for W in layers(task)]
            jax.block_until_ready(part(0.0, 1e-6 * named.t1, 1e-8 * named.t1, weights))
            begun, count, share, step = time.perf_counter(), 0, 0.0, 1e-3
            while share < 1 and time.perf_counter() - begun < limit:
                end = min(1.0, share + step)
                weights, taken = part(share * named.t1, end * named.t1, 1e-7 * named.t1, weights)
                count, share, step = count + int(taken), end, 2 * step  # each part begins with short steps
            done = np.concatenate([np.asarray(W).ravel() for W in weights]) if share >= 1 else None
            return time.perf_counter() - begun, float(stages * count), share, done

    return run


PEERS = {
    "scipy RK23": scipy_peer("RK23"),
    "scipy RK45": scipy_peer("RK45"),
    "scipy DOP853": scipy_peer("DOP853"),
    "diffrax Tsit5": diffrax_peer("Tsit5", 6),
    "diffrax Dopri8": diffrax_peer("Dopri8", 13),
}


def told(found: Found, true: np.ndarray, change: float) -> tuple[float, float, float, str]:
    """(gradients, seconds, error, cells), extrapolated where the run was not through."""
    seconds, count, share, end = found
    error = np.inf if end is None else float(np.linalg.norm(end - true)) / change
    mark, told = ("~", "not through") if end is None else ("", f"{error:.1e}")
    return count / share, seconds / share, error, f"{mark}{count / share:.3g} | {mark}{seconds / share:.3g} | {told}"


def benchmark(name: str, limit: float, file: Path) -> None:
    """The table of one problem."""
    named = fs.problem_named(name)
    problem = named.problem
    truth = solve_reference(problem, np.array([0.0, named.t1]))
    np.savez(file, **task_of(problem, truth.times))
    true = flatten(truth.weights[-1])
    begun, many = time.perf_counter(), 20
    for _ in range(many):
        problem.velocity(problem.initial_state)
    alone = (time.perf_counter() - begun) / many
    print(f"\n{name}: t1 = {named.t1:g}; reference known to {truth.uncertainty:.0e}; one gradient alone {alone:.2e} s")
    print("| method | rtol | gradients | seconds | error |\n|---|---|---|---|---|")
    best: dict[str, tuple[float, float, float]] = {}
    for method in (*OURS, *PEERS):
        for rtol in RTOLS:
            try:
                run = ours(named, method, rtol, limit) if method in OURS else PEERS[method](named, rtol, limit)
            except (TooLong, fs.errors.FlowsimError, MemoryError) as refusal:
                print(f"| {method} | {rtol:g} | {str(refusal)[:80]} | | |", flush=True)
                break
            gradients, seconds, error, cells = told(run, true, truth.change)
            print(f"| {method} | {rtol:g} | {cells} |", flush=True)
            reached = error <= TARGET or (method not in OURS and not np.isfinite(error))
            if reached and (method not in best or gradients < best[method][0]):
                best[method] = gradients, seconds, rtol
            if run[3] is None:
                break  # at a tighter tolerance it takes no less
    print(f"\n{name}: to an error of {TARGET:g} (peers that were not through: at any error)")
    print("| method | rtol | gradients | seconds | gradients, of krylov-bdf's | seconds, of its | cold / s |")
    print("|---" * 7 + "|")
    ours_best = best.get("krylov-bdf", (np.nan, np.nan, np.nan))
    for method, (gradients, seconds, rtol) in sorted(best.items(), key=lambda row: row[1][0]):
        ratios = f"{gradients / ours_best[0]:.3g} | {seconds / ours_best[1]:.3g}"
        whole = f"{cold(method, file, rtol):.2f}" if method in OURS else ""
        print(f"| {method} | {rtol:g} | {gradients:.3g} | {seconds:.3g} | {ratios} | {whole} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(VERY_STIFF), choices=list(VERY_STIFF))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one run")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.problems:
            benchmark(name, arguments.limit, Path(folder) / f"{name}.npz")


if __name__ == "__main__":
    main()
