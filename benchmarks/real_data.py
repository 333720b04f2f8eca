"""Full widths, where compression does not pay: what does a run cost beside its gradients, and beside scipy alone?

Work: DOP853 to t1 = 1 at rtol 1e-8, saved at 101 times; synthetic data of 784 (64) features with falling variances and
ten classes, or a Gaussian target. `gradients`: as many gradients as flowsim's run took, nothing else. `solve_ivp`:
scipy's own run with these times. flowsim's run has loss, gradient norm, energy and drift at all of them; where its
drift is estimated, the exact one of the last checkpoint stands beside it. Answers are compared first: at the end, which
is a step's end for both. Each time is the least of a few runs, one after the other.

    python benchmarks/real_data.py [--repeats 3]
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.network import flatten, imbalance

SHAPES = [(784, 512, 512, 10), (64, 256, 256, 10), (200, 200, 200, 200), (50, 60, 60, 50)]
ROWS, RTOL, T1, SAVED = 2000, 1e-8, 1.0, 101


def problem_of(dims: tuple[int, ...]) -> fs.Problem:
    """Data of ten classes, or a square target."""
    rng = np.random.default_rng(0)
    n, m = dims[0], dims[-1]
    if n == m:
        return fs.Problem(fs.SquaredLoss(rng.standard_normal((n, m))), fs.fan_in(dims, seed=0))
    X = rng.standard_normal((ROWS, n)) * np.linspace(1, 0.05, n)
    Y = np.eye(m)[rng.integers(0, m, ROWS)]
    return fs.Problem(fs.LeastSquares(X / ROWS**0.5, Y / ROWS**0.5), fs.fan_in(dims, seed=0))


def least(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(least seconds, the last result)."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds), result


def row(dims: tuple[int, ...], repeats: int) -> str:
    """One shape: a line of the table."""
    problem, times = problem_of(dims), np.linspace(0, T1, SAVED)
    start = problem.initial_state
    settings = {"method": "DOP853", "rtol": RTOL, "atol": RTOL / 100, "t_eval": times}
    theirs, solution = least(lambda: solve_ivp(lambda t, y: problem.velocity(y), (0, T1), start, **settings), repeats)
    method = fs.Scipy(rtol=RTOL, atol=RTOL / 100)
    ours, run = least(lambda: fs.simulate(problem, method, t1=T1, save_points=SAVED, reduce="never"), repeats)
    end = run.weights_at(T1)
    apart = np.linalg.norm(flatten(end) - solution.y[:, -1]) / np.linalg.norm(flatten(end) - start)
    if apart > 100 * RTOL:
        raise SystemExit(f"the answers differ by {apart:.1e}: nothing to compare")
    count = run.stats["rhs_evaluations"]
    alone, _ = least(lambda: [problem.velocity(start) for _ in range(count)], repeats)
    layers = range(1, problem.network.depth)
    exact = [np.linalg.norm(imbalance(end, k) - imbalance(problem.network.weights, k)) for k in layers]
    told = ", ".join(f"{seen:.1e} ({true:.1e})" for seen, true in zip(run.imbalance_change[-1], exact, strict=True))
    return (
        f"| {dims} | {count} | {solution.nfev} | {alone:.3f} | {ours:.3f} | {theirs:.3f} | {ours / alone:.2f} |"
        f" {theirs / ours:.2f} | {apart:.0e} | {'about ' if run.drift_is_estimated else ''}{told} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; seconds")
    print(
        "| dims | gradients of flowsim | of solve_ivp | gradients alone | flowsim | solve_ivp | flowsim / gradients |"
        " solve_ivp / flowsim | answers apart | drift of D_l (exact) |"
    )
    print("|---" * 10 + "|")
    for dims in SHAPES:
        print(row(dims, repeats), flush=True)


if __name__ == "__main__":
    main()
