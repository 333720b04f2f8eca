"""The least eigenvalue of a sum of Kronecker products, T = sum_l P_l (x) Q_l, whose nm x nm matrix is too large."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

BLOCK = 3
"""How many vectors are iterated together: eigenvalues near the least do not hold it up."""
TOLERANCE = 1e-10
"""Of the residual ||T x - theta x||, over the largest entry of T's diagonal; theta's own error is of its square."""
ITERATIONS = 2000
SHIFT = 1e-6
"""The least denominator of the preconditioner, over the largest entry of T's diagonal."""
NUDGE = 1e-6
"""Of the start, a random part: it may be an eigenvector of another eigenvalue."""


def least_eigenvalue(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """lambda_min of E -> sum_l P_l E Q_l, for positive semidefinite P_l (n x n) and Q_l (m x m), n m > 5 BLOCK.

    In the eigenvectors of sum_l tr(Q_l) P_l and sum_l tr(P_l) Q_l the operator is diagonal for two layers, where it is
    P_2 (x) I + I (x) Q_1, and nearly so for wide networks, whose Gram matrices nearly commute. The diagonal
    preconditions LOBPCG ([K01]). Where that does not converge, the residual is taken off: a lower value then.

    [K01] A. Knyazev, Toward the optimal preconditioned eigensolver, SIAM J. Sci. Comput. 23 (2001).
    """
    from scipy.sparse.linalg import LinearOperator, lobpcg

    U = np.linalg.eigh(sum(np.trace(Q) * P for P, Q in pairs))[1]
    V = np.linalg.eigh(sum(np.trace(P) * Q for P, Q in pairs))[1]
    rotated = [(U.T @ P @ U, V.T @ Q @ V) for P, Q in pairs]
    diagonal = np.sum([np.outer(np.diag(P), np.diag(Q)) for P, Q in rotated], axis=0).ravel()
    top = float(diagonal.max())
    if top == 0.0:
        return 0.0
    diagonal, shape, size = diagonal / top, (len(U), len(V)), len(diagonal)

    def apply(X: np.ndarray) -> np.ndarray:
        E = X.T.reshape(-1, *shape)
        return np.sum([P @ E @ Q for P, Q in rotated], axis=0).reshape(-1, size).T.reshape(X.shape) / top

    first = np.argsort(diagonal)[:BLOCK]
    units = np.zeros((size, BLOCK))
    units[first, range(BLOCK)] = 1.0
    coupling = np.linalg.norm(apply(units) - units * diagonal[first], axis=0).max()
    shift = max(min(coupling, diagonal.min()), SHIFT)
    weight = 1.0 / (diagonal - diagonal.min() + shift)
    start = units + NUDGE * np.random.default_rng(0).standard_normal((size, BLOCK))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a residual above the tolerance, which is seen to below
        values, vectors = lobpcg(
            LinearOperator((size, size), matvec=apply, matmat=apply, dtype=np.float64),
            start,
            M=LinearOperator((size, size), matvec=lambda x: (weight * x.T).T, matmat=lambda X: (weight * X.T).T),
            tol=TOLERANCE,
            maxiter=ITERATIONS,
            largest=False,
        )
    value, vector = values[0], vectors[:, 0]
    residual = float(np.linalg.norm(apply(vector) - value * vector))
    return top * max(float(value) - (residual if residual > 10 * TOLERANCE else 0.0), 0.0)
