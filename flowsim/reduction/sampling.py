"""Gaussian networks in compressed form, drawn directly: networks too wide to store.

W_l has independent entries from N(0, sigma_l^2). For a vector u of P_{l-1} that has not met it, W_l^T u has
independent normal components along the vectors of P_l that have not met W_l either, the known ones along those that
have, and beyond P_l a chi variable with h_l - k_l degrees of freedom times a new direction. The same for W_l v. So the
coordinates of a level can be drawn one product after the other, exactly in distribution, whatever the widths.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from math import prod, sqrt
from typing import Any

import numpy as np

from flowsim.checks import as_choice, as_count, as_dims, as_number
from flowsim.initialization import GAUSSIAN, Seed, generator_of, origin_of
from flowsim.reduction.bases import Bases
from flowsim.reduction.compressed import CompressedNetwork, first_level

ROOM = 32
"""Vectors of a basis for which there is room at first; doubled when it is full."""


class SampledBases(Bases):
    """Coordinates of a network with entries of W_l from N(0, deviations[l-1]^2), drawn level by level when needed."""

    def __init__(self, dims: tuple[int, ...], deviations: list[float], generator: np.random.Generator) -> None:
        super().__init__(dims)
        self.deviations, self.generator = deviations, generator
        self.widths = [dims[0], *([0] * (self.depth - 1)), dims[-1]]
        self.room = [dims[0], *([ROOM] * (self.depth - 1)), dims[-1]]
        self.matrices = [np.zeros(shape) for shape in pairwise(self.room)]
        self.met_from_left = [np.zeros(rows, bool) for rows in self.room[:-1]]
        self.met_from_right = [np.zeros(columns, bool) for columns in self.room[1:]]
        for row in range(dims[0]):
            self._meet_left(0, row)
        for column in range(dims[-1]):
            self._meet_right(self.depth - 1, column)
        self.counts.append(tuple(self.widths))

    @cached_property
    def imbalance_norms(self) -> list[float]:
        """||D_l||_F, l = 1 .. L-1: thin terms exact, those of hidden layers in expectation.

        ||D_l||^2 = ||W_l W_l^T||^2 + ||W_{l+1} W_{l+1}^T||^2 - 2 ||W_l W_{l+1}||^2, and for h x k Gaussian entries
        E ||W W^T||^2 = sigma^4 h k (h + k + 1).
        """
        matrices, dims, squares, norms = self.coordinates(1), self.dims, [], []
        for layer, (M, sigma) in enumerate(zip(matrices, self.deviations, strict=True)):
            h, k = dims[layer : layer + 2]
            thin = layer in (0, self.depth - 1)
            squares.append(float(((M @ M.T) ** 2).sum()) if thin else sigma**4 * h * k * (h + k + 1.0))
        for layer, (M, N) in enumerate(pairwise(matrices)):
            if layer in (0, self.depth - 2):
                cross = float(((M @ N) ** 2).sum())
            else:
                cross = (self.deviations[layer] * self.deviations[layer + 1]) ** 2 * prod(dims[layer : layer + 3])
            norms.append(max(squares[layer] + squares[layer + 1] - 2 * cross, 0.0) ** 0.5)
        return norms

    def _grow(self) -> tuple[int, ...]:
        before = (0,) * len(self.dims) if len(self.counts) == 1 else self.counts[-2]
        new = [range(start, end) for start, end in zip(before, self.counts[-1], strict=True)]
        for layer in range(1, self.depth - 1):
            for row in new[layer]:
                self._meet_left(layer, row)
            for column in new[layer + 1]:
                self._meet_right(layer, column)
        return tuple(self.widths)

    def _meet_left(self, layer: int, row: int) -> None:
        """Draw W^T u for the vector u = row of the basis before the layer (counted from 0)."""
        unknown = np.flatnonzero(~self.met_from_right[layer][: self.widths[layer + 1]])
        sigma = self.deviations[layer]
        self.matrices[layer][row, unknown] = sigma * self.generator.standard_normal(len(unknown))
        self.met_from_left[layer][row] = True
        if layer + 1 < self.depth and self._add_vector(layer + 1):
            new = self.widths[layer + 1] - 1
            self.matrices[layer][row, new] = sigma * sqrt(self.generator.chisquare(self.dims[layer + 1] - new))

    def _meet_right(self, layer: int, column: int) -> None:
        """Draw W v for the vector v = column of the basis after the layer."""
        unknown = np.flatnonzero(~self.met_from_left[layer][: self.widths[layer]])
        sigma = self.deviations[layer]
        self.matrices[layer][unknown, column] = sigma * self.generator.standard_normal(len(unknown))
        self.met_from_right[layer][column] = True
        if layer > 0 and self._add_vector(layer):
            new = self.widths[layer] - 1
            self.matrices[layer][new, column] = sigma * sqrt(self.generator.chisquare(self.dims[layer] - new))

    def _add_vector(self, index: int) -> bool:
        """One more vector in P_index, unless it spans everything already."""
        if self.widths[index] == self.dims[index]:
            return False
        if self.widths[index] == self.room[index]:
            more = self.room[index]
            self.room[index] += more
            self.matrices[index - 1] = np.pad(self.matrices[index - 1], ((0, 0), (0, more)))
            self.matrices[index] = np.pad(self.matrices[index], ((0, more), (0, 0)))
            self.met_from_right[index - 1] = np.pad(self.met_from_right[index - 1], (0, more))
            self.met_from_left[index] = np.pad(self.met_from_left[index], (0, more))
        self.widths[index] += 1
        return True


def sample_compressed(
    scheme: str, dims: Any, *, seed: Seed, scale: float = 1.0, steps: int | None = None
) -> CompressedNetwork:
    """A Gaussian network (fan_in, fan_out, ntk, xavier) in compressed form, without its weights ever existing.

    Exact in distribution for the levels drawn; simulate draws further levels where its error estimate asks for them.
    Memory and time do not depend on the hidden widths. Same seed, same network (not the one that the scheme itself
    draws from that seed). steps: the number of Krylov steps to begin with.
    Raises InputError for another scheme, or dims, seed, scale or steps out of range.
    """
    variance, model_scale = GAUSSIAN[as_choice(scheme, "scheme", GAUSSIAN)]
    sizes, factor = as_dims(dims), as_number(scale, "scale", above=0.0)
    deviations = [factor * sqrt(variance(rows, columns)) for rows, columns in pairwise(sizes)]
    bases = SampledBases(sizes, deviations, generator_of(seed))
    level = first_level(len(sizes) - 1) if steps is None else as_count(steps, "steps", least=0)
    return CompressedNetwork(
        bases, level, model_scale(sizes), {**origin_of(scheme, sizes, seed, factor), "form": "sampled"}
    )
