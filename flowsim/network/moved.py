"""Matrices that a combination of few rows has moved: applied, never formed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowsim.network.functions import change_of_square


class Moved:
    """base + left^T diag(c) right, for one c (k) or a stack of them (S, k): base (a x b), left (k x a), right (k x b).

    X @ moved costs one product with the base for all of a stack, and two thin ones.
    """

    __array_ufunc__ = None

    def __init__(self, base: np.ndarray, left: np.ndarray, right: np.ndarray, c: np.ndarray) -> None:
        self.base, self.left, self.right, self.c = base, left, right, c

    @property
    def shape(self) -> tuple[int, ...]:
        """(a, b), or (S, a, b)."""
        return *self.c.shape[:-1], *self.base.shape

    @property
    def mT(self) -> Moved:
        """The transpose of each."""
        return Moved(self.base.T, self.right, self.left, self.c)

    def __rmatmul__(self, X: np.ndarray) -> np.ndarray:
        """X @ each, for X (r x a) or (S, r, a)."""
        seen = (X @ self.left.T) * self.c[..., None, :]
        return _rows(X, self.base) + _rows(seen, self.right)

    def __matmul__(self, X: np.ndarray) -> np.ndarray:
        """Each @ X, for X (b x r) or (S, b, r)."""
        return (X.mT @ self.mT).mT

    def square_change(self, Z: np.ndarray) -> np.ndarray:
        """(M^T M - base^T base) Z of each of a stack, M = base + X, Z (b x p): (S, b, p).

        (base^T X + X^T base + X^T X) Z, with X = left^T diag(c) right, by products with thin matrices for all of the
        stack at once.
        """
        c, reached = self.c.T[..., None], self.left @ self.base
        seen = c * (self.right @ Z)[:, None]
        flat = seen.reshape(len(seen), -1)
        within = c * ((reached @ Z)[:, None] + (self.left @ self.left.T @ flat).reshape(seen.shape))
        change = reached.T @ flat + self.right.T @ within.reshape(flat.shape)
        return change.reshape(-1, *seen.shape[1:]).transpose(1, 0, 2)


def probed_drift(
    initial: Sequence[np.ndarray], layers: Sequence[np.ndarray | Moved], probes: Sequence[np.ndarray]
) -> np.ndarray:
    """(S, L-1): ||D_l - D_l(0)||_F, D_l = W_l^T W_l - W_{l+1} W_{l+1}^T, estimated as network.imbalance_change does, of
    layers that are stacks of matrices, moved or formed."""
    norms = []
    for W, M, V, N, Z in zip(initial, layers, initial[1:], layers[1:], probes, strict=False):
        change = _square_change(W, M, Z) - _square_change(V.mT, N.mT, Z)
        norms.append(np.sqrt(np.einsum("sij,sij->s", change, change) / Z.shape[-1]))
    return np.stack(norms, axis=-1)


def _square_change(W: np.ndarray, M: np.ndarray | Moved, Z: np.ndarray) -> np.ndarray:
    """(M^T M - W^T W) Z."""
    if isinstance(M, Moved):
        return change_of_square(W, M.base - W, Z) + M.square_change(Z)
    return change_of_square(W, M - W, Z)


def _rows(X: np.ndarray, M: np.ndarray) -> np.ndarray:
    """X @ M with all rows of a stack in one product."""
    return (X.reshape(-1, X.shape[-1]) @ M).reshape(*X.shape[:-1], M.shape[-1])
