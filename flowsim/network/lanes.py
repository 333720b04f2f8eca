"""Matrices of many networks at once, the networks last: what is done to one entry is done to all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from flowsim.values import Array

SMALL = 2**10
"""Up to so many multiplications each, products of small matrices are sums over whole rows of lanes; beyond, the
library's own products of matrices are quicker."""


class Lanes:
    """A matrix in each of B lanes: values (rows, columns, B), with the operations that products and gradients take.

    A number, or one for each lane (B), multiplies all entries of its matrix.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> A, B = rng.standard_normal((7, 2, 3)), rng.standard_normal((7, 3, 4))  # seven products
    >>> found = Lanes(A.transpose(1, 2, 0)) @ Lanes(B.transpose(1, 2, 0))
    >>> np.allclose(found.values.transpose(2, 0, 1), A @ B)
    True
    """

    __array_ufunc__ = None

    def __init__(self, values: Array) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """That of one of the matrices."""
        rows, columns, _ = self.values.shape
        return rows, columns

    @property
    def mT(self) -> Lanes:
        """The transposes."""
        return Lanes(self.values.swapaxes(0, 1))

    def __matmul__(self, other: Lanes) -> Lanes:
        a, b = self.values, other.values
        if a.shape[0] * a.shape[1] * b.shape[1] > SMALL:
            return Lanes((a.transpose(2, 0, 1) @ b.transpose(2, 0, 1)).transpose(1, 2, 0))
        return Lanes((a[:, :, None] * b[None]).sum(1))

    def __add__(self, other: Lanes) -> Lanes:
        return Lanes(self.values + other.values)

    def __sub__(self, other: Lanes) -> Lanes:
        return Lanes(self.values - other.values)

    def __mul__(self, factor: Array) -> Lanes:
        return Lanes(factor * self.values)

    __rmul__ = __mul__

    def square(self) -> Array:
        """(B): the sum of the squares of the entries."""
        return (self.values * self.values).sum((0, 1))


def lanes_of(states: Array, dims: Sequence[int]) -> list[Lanes]:
    """The weights in states (size, B), one a column, layer after layer, each in row-major order."""
    weights, start = [], 0
    for rows, columns in pairwise(dims):
        weights.append(Lanes(states[start : start + rows * columns].reshape(rows, columns, -1)))
        start += rows * columns
    return weights
