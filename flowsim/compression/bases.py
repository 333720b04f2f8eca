"""Nested orthonormal bases of the hidden layers, grown level by level, and the weights in their coordinates.

Gradient flow and gradient descent commute with orthogonal changes of the hidden bases, and they change W_l only by
sums of A_l^T (.) B_l^T. What the ends W_1, W_L reach by a few products with the layers is therefore all that a
trajectory sees for a while: level 0 holds the rows of W_1 in P_1 and the columns of W_L in P_{L-1}; level k + 1 of P_l
holds what is new in W_l^T p and W_{l+1} p for the vectors p of level k of its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from flowsim.errors import InputError
from flowsim.network import LinearNetwork
from flowsim.values import Layer

DEFLATION = 1e-13
"""A direction whose part outside a basis is below DEFLATION times its own norm is in the basis already."""


class Bases(ABC):
    """Bases P_1 .. P_{L-1} (P_0 = I_n, P_L = I_m) with levels; subclasses say how a level is found.

    matrices[l - 1] = P_{l-1}^T W_l P_l. An entry between two vectors of the last level is not known (0) for
    1 < l < L, since neither has met W_l yet. counts[g][l] is the number of vectors of P_l in the levels 0 .. g.
    """

    vectors: list[np.ndarray] | None = None
    """[P_1, ..., P_{L-1}], where the network itself is at hand."""
    weights: Sequence[Layer] | None = None
    """[W_1, ..., W_L], where the network itself is at hand."""

    def __init__(self, dims: Sequence[int]) -> None:
        self.dims = tuple(dims)
        self.matrices: list[np.ndarray] = []
        self.counts: list[tuple[int, ...]] = []
        self.exhausted = len(self.dims) == 3

    given: tuple[object, ...]
    """The arguments that they were made from: copies and pickles are made from these again, and grow when asked."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.given

    @property
    def depth(self) -> int:
        """L."""
        return len(self.dims) - 1

    can_grow = True
    """Whether further levels can be found, or there are none."""

    def grow_to(self, level: int) -> None:
        """Make sure that the levels 0 .. level exist, as far as there is anything new to find."""
        while len(self.counts) <= level and not self.exhausted:
            sizes = self._grow()
            self.exhausted = sizes == self.counts[-1]
            if not self.exhausted:
                self.counts.append(sizes)

    def sizes(self, level: int) -> tuple[int, ...]:
        """(n, k_1, ..., k_{L-1}, m): the widths of the levels 0 .. level."""
        self.grow_to(level)
        return self.counts[min(level, len(self.counts) - 1)]

    def coordinates(self, level: int) -> list[np.ndarray]:
        """[P_{l-1}^T W_l P_l] within the levels 0 .. level."""
        sizes = self.sizes(level)
        return [M[:rows, :columns] for M, rows, columns in zip(self.matrices, sizes, sizes[1:], strict=False)]

    def is_complete(self, level: int) -> bool:
        """Whether the levels 0 .. level span all that the network ever reaches: nothing is beyond."""
        self.grow_to(level + 1)
        return self.exhausted and level >= len(self.counts) - 1

    @property
    @abstractmethod
    def imbalance_norms(self) -> Sequence[float]:
        """||D_l||_F, l = 1 .. L-1, of the whole network."""

    @abstractmethod
    def _grow(self) -> tuple[int, ...]:
        """Find the next level; return the new widths."""


class KrylovBases(Bases):
    """The bases of a network at hand: only products with W_l and W_l^T are used, two a layer and level."""

    def __init__(self, weights: Sequence[Layer]) -> None:
        super().__init__((weights[0].shape[0], *(W.shape[1] for W in weights)))
        self.given = (tuple(weights),)
        self.weights = self.layers = tuple(weights)
        first, last = np.asarray(weights[0]), np.asarray(weights[-1])
        start = [np.zeros((width, 0)) for width in self.dims[1:-1]]
        start[0] = _extended(start[0], first.T)
        start[-1] = _extended(start[-1], last)
        self.vectors: list[np.ndarray] = start if self.depth > 2 else _filled(start)
        # W_l P_l and W_l^T P_{l-1} for the vectors that have met W_l, 1 < l < L
        self.right = [np.zeros((W.shape[0], 0)) for W in weights]
        self.left = [np.zeros((W.shape[1], 0)) for W in weights]
        self._project()
        self.counts.append(self._widths())

    @cached_property
    def imbalance_norms(self) -> Sequence[float]:
        """||D_l||_F, l = 1 .. L-1."""
        return LinearNetwork(self.layers).imbalance_norms

    def _widths(self) -> tuple[int, ...]:
        return self.dims[0], *(P.shape[1] for P in self.vectors), self.dims[-1]

    def _grow(self) -> tuple[int, ...]:
        before = (0,) * len(self.dims) if len(self.counts) == 1 else self.counts[-2]
        new = [P[:, start:] for P, start in zip(self.vectors, before[1:], strict=False)]
        candidates: list[list[np.ndarray]] = [[] for _ in self.vectors]
        for layer in range(1, self.depth - 1):  # W_2 .. W_{L-1}, between the bases layer and layer + 1
            W, p, q = self.layers[layer], new[layer - 1], new[layer]
            # thin rows times W is about twice as fast as W times thin columns
            forward = np.asarray(np.ascontiguousarray(p.T) @ W).T
            backward = np.asarray(np.ascontiguousarray(q.T) @ W.T).T
            self.left[layer] = np.hstack([self.left[layer], forward])
            self.right[layer] = np.hstack([self.right[layer], backward])
            candidates[layer].append(forward)
            candidates[layer - 1].append(backward)
        for index, blocks in enumerate(candidates):
            for block in blocks:
                self.vectors[index] = _extended(self.vectors[index], block)
        if self._widths() == self.counts[-1] or len(self.counts) >= self.depth - 2:  # both ends have been everywhere
            self.vectors = _filled(self.vectors)
        self._project()
        return self._widths()

    def _project(self) -> None:
        inner = []
        for layer in range(1, self.depth - 1):
            P, Q, left, right = self.vectors[layer - 1], self.vectors[layer], self.left[layer], self.right[layer]
            M = np.zeros((P.shape[1], Q.shape[1]))
            M[: left.shape[1]] = left.T @ Q
            M[:, : right.shape[1]] = P.T @ right
            inner.append(M)
        first = np.asarray(self.layers[0]) @ self.vectors[0]
        last = self.vectors[-1].T @ np.asarray(self.layers[-1])
        self.matrices = [first, *inner, last]


class FixedBases(Bases):
    """Bases whose levels are given: `complete` if they span all that the network ever reaches, else the first of more.

    Read from a file, or known in closed form. What lies beyond incomplete ones is not known: to ask for a further level
    raises InputError.
    """

    def __init__(
        self,
        dims: Sequence[int],
        matrices: Sequence[np.ndarray],
        counts: Sequence[tuple[int, ...]],
        vectors: list[np.ndarray] | None,
        imbalance_norms: Sequence[float],
        weights: Sequence[Layer] | None,
        complete: bool,
    ) -> None:
        super().__init__(dims)
        self.given = dims, matrices, counts, vectors, imbalance_norms, weights, complete
        self.can_grow = complete
        self.matrices, self.counts, self.vectors, self.weights = list(matrices), list(counts), vectors, weights
        self.norms = imbalance_norms
        self.exhausted = True

    @property
    def imbalance_norms(self) -> Sequence[float]:
        """||D_l||_F, l = 1 .. L-1, as read."""
        return self.norms

    def grow_to(self, level: int) -> None:
        """Raises InputError where that level is not known."""
        if level >= len(self.counts) and not self.can_grow:
            raise InputError(
                f"Argument `network` came from a file with {len(self.counts)} levels of its bases, and needs more;"
                " draw it anew, or pass the full network to load(path, network=...)."
            )

    def is_complete(self, level: int) -> bool:
        """Whether the levels 0 .. level are all, and known to be."""
        return self.can_grow and level >= len(self.counts) - 1

    def _grow(self) -> tuple[int, ...]:
        """Nothing is beyond."""
        return self.counts[-1]


def _filled(vectors: list[np.ndarray]) -> list[np.ndarray]:
    """With a vector of any direction in the place of an empty basis, which layers of zeros leave: it harms nothing."""
    return [P if P.shape[1] else np.eye(len(P), 1) for P in vectors]


def _extended(P: np.ndarray, block: np.ndarray) -> np.ndarray:
    """P with orthonormal columns for what is new in the columns of `block`; projected twice, pivots reveal the rank."""
    from scipy.linalg import qr

    norms = np.linalg.norm(block, axis=0)
    if P.shape[1] == P.shape[0] or not norms.any():
        return P
    rest = block[:, norms > 0] / norms[norms > 0]
    for _ in range(2):
        rest = rest - P @ (P.T @ rest)
    if rest.shape[1] == 1:
        size = np.linalg.norm(rest)
        new = rest / size if size > DEFLATION else rest[:, :0]
    else:
        Q, R, _ = qr(rest, mode="economic", pivoting=True, check_finite=False)
        new = Q[:, np.abs(np.diag(R)) > DEFLATION]
    new = new - P @ (P.T @ new)
    new = new[:, : P.shape[0] - P.shape[1]]
    return np.hstack([P, new / np.linalg.norm(new, axis=0)])
