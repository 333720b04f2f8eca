"""Matrices that a combination of few rows has moved: applied, never formed."""

from __future__ import annotations

import numpy as np


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

    def __sub__(self, other: np.ndarray) -> Moved:
        """Each minus one matrix (a x b)."""
        return Moved(self.base - other, self.left, self.right, self.c)


def _rows(X: np.ndarray, M: np.ndarray) -> np.ndarray:
    """X @ M with all rows of a stack in one product."""
    return (X.reshape(-1, X.shape[-1]) @ M).reshape(*X.shape[:-1], M.shape[-1])
