"""Rows of data that are read in blocks: arrays, memory-mapped files, sparse matrices; weighed and centred."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_float_array, as_matrix
from flowsim.errors import InputError

BLOCK_BYTES = 2**26
"""Rows are read so many bytes at a time."""


class Rows:
    """X (rows x n) and Y (rows x m) as w_i^(1/2) (x_i - mean x), w_i^(1/2) (y_i - mean y), read in blocks.

    X, Y: matrices, of which no copy is made; a numpy.memmap and a scipy sparse matrix are never there as a whole.
    weights: w >= 0 of the rows, or "balanced": rows / (classes x rows of the class), a class all rows with the same y;
    centre: whether the weighted means are taken off, else they count as 0.
    Raises InputError for data or weights that are not such.
    """

    def __init__(self, X: Any, Y: Any, weights: ArrayLike | str | None = None, centre: bool = False) -> None:
        self.X, self.Y = _matrix(X, "X"), _matrix(Y, "Y")
        if self.X.shape[0] != self.Y.shape[0]:
            raise InputError(
                f"Argument `Y` must have as many rows as `X` ({self.X.shape[0]}), but it has {self.Y.shape[0]}."
            )
        self.count, self.n, self.m = self.X.shape[0], self.X.shape[1], self.Y.shape[1]
        self.roots = None if weights is None else np.sqrt(self._weights(weights))
        self.means = (np.zeros(self.n), np.zeros(self.m))
        if centre:
            self.means = self._means()

    @property
    def plain(self) -> bool:
        """Whether rows count alike."""
        return self.roots is None

    @property
    def nbytes(self) -> int:
        """Of the whole, dense."""
        return 8 * self.count * (self.n + self.m)

    def take(self, chosen: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The chosen rows of both, dense, weighed and centred. Raises InputError for entries that are not finite."""
        X, Y = self.centred(chosen)
        if self.roots is None:
            return X, Y
        root = self.roots[chosen, None]
        return root * X, root * Y

    def centred(self, chosen: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The chosen rows of both, dense and centred, not weighed."""
        return _dense(self.X[chosen], "X") - self.means[0], _dense(self.Y[chosen], "Y") - self.means[1]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows, a block at a time."""
        size = max(1, BLOCK_BYTES // (8 * (self.n + self.m)))
        for start in range(0, self.count, size):
            yield self.take(slice(start, start + size))

    def triangle(self) -> np.ndarray:
        """R of [X, Y] = Q R: (k x (n + m)), k <= n + m; blocks are added by a QR decomposition of R on top of each."""
        R = np.zeros((0, self.n + self.m))
        for X, Y in self.blocks():
            R = np.asarray(np.linalg.qr(np.vstack([R, np.hstack([X, Y])]), mode="r"))
        return R

    def value(self, W: np.ndarray) -> float:
        """1/2 ||Y - X W||_F^2."""
        return 0.5 * sum(float(((Y - X @ W) ** 2).sum()) for X, Y in self.blocks())

    def _weights(self, weights: ArrayLike | str) -> np.ndarray:
        if isinstance(weights, str):
            if weights != "balanced":
                raise InputError(f'Argument `weights` must be "balanced" or numbers, but it is {weights!r}.')
            _, own, counts = np.unique(_dense(self.Y[:], "Y"), axis=0, return_inverse=True, return_counts=True)
            return np.asarray(self.count / (len(counts) * counts[np.ravel(own)]))
        found = as_float_array(weights, "weights")
        if found.shape != (self.count,) or (found < 0).any() or not found.any():
            raise InputError(
                f"Argument `weights` must be {self.count} numbers >= 0, one a row and not all 0, but it has shape"
                f" {found.shape}."
            )
        return found

    def _means(self) -> tuple[np.ndarray, np.ndarray]:
        """The means of the rows, weighed."""
        total, x, y = 0.0, np.zeros(self.n), np.zeros(self.m)
        size = max(1, BLOCK_BYTES // (8 * (self.n + self.m)))
        for start in range(0, self.count, size):
            part = slice(start, start + size)
            X, Y = _dense(self.X[part], "X"), _dense(self.Y[part], "Y")
            w = np.ones(len(X)) if self.roots is None else self.roots[part] ** 2
            total, x, y = total + float(w.sum()), x + w @ X, y + w @ Y
        return x / total, y / total


def _matrix(value: Any, name: str) -> Any:
    """What is indexed by rows: a memory map and a sparse matrix as they are, else a checked array."""
    from scipy.sparse import issparse

    if issparse(value):
        value = value.tocsr()
    elif not isinstance(value, np.memmap):
        return as_matrix(value, name)
    if value.ndim != 2 or 0 in value.shape or np.dtype(value.dtype).kind not in "fiub":
        raise InputError(
            f"Argument `{name}` must be a real, non-empty matrix, but it is of dtype {value.dtype} and shape"
            f" {value.shape}."
        )
    return value


def _dense(part: Any, name: str) -> np.ndarray:
    found = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
    return as_matrix(found.astype(np.float64, copy=False), name)
