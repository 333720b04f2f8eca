"""lambda_min(T) of large n m: our preconditioned LOBPCG against plain Lanczos (ARPACK) on the same operator.

    python benchmarks/least_eigenvalue.py

Prints seconds of both, the quotient, and by how much the two values differ, over the greatest entry of T's diagonal.
One process; takes seconds. Exit code 1 where they differ by more than 1e-9.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

import flowsim as fs

CASES = (
    ("fan_in", (60, 200, 200, 200, 50)),
    ("fan_in", (80, 90, 100, 70)),
    ("fan_out", (120, 500, 300, 100)),
    ("xavier", (100, 100, 100)),
    ("fan_in", (50, 50, 50, 50)),
)
"""(scheme, dims): wide, middling, wide with a large T, square and singular or nearly so."""


def lanczos(network: fs.LinearNetwork) -> float:
    """The least eigenvalue by ARPACK."""
    n, m = network.dims[0], network.dims[-1]
    operator = LinearOperator((n * m, n * m), matvec=lambda v: network.apply_T(v.reshape(n, m)).ravel(), dtype=float)
    start = np.random.default_rng(0).standard_normal(n * m)
    return float(eigsh(operator, k=1, which="SA", v0=start, ncv=60, maxiter=20 * n * m, return_eigenvectors=False)[0])


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """(its result, seconds)."""
    begun = time.perf_counter()
    return run(), time.perf_counter() - begun


def main() -> int:
    """The table."""
    print("| scheme, dims | LOBPCG, s | Lanczos, s | Lanczos / LOBPCG | lambda_min(T) | difference / diagonal |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    for scheme, dims in CASES:
        network = fs.initialize(scheme, dims, seed=0)
        unit = np.sum([np.outer(np.diag(P), np.diag(Q)) for P, Q in network.grams], axis=0).max()
        ours, seconds = timed(lambda network=network: network.lambda_min_T)
        plain, longer = timed(lambda network=network: lanczos(network))
        worst = max(worst, abs(ours - plain) / unit)
        numbers = f"{seconds:.3f} | {longer:.3f} | {longer / seconds:.1f} | {ours:.6g} | {abs(ours - plain) / unit:.1e}"
        print(f"| {scheme} {dims} | {numbers} |", flush=True)
    return 1 if worst > 1e-9 else 0


if __name__ == "__main__":
    sys.exit(main())
