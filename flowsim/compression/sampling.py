"""Networks in compressed form, drawn directly: networks too wide to store.

W_l has independent entries from N(0, sigma_l^2). For a vector u of P_{l-1} that has not met it, W_l^T u has
independent normal components along the vectors of P_l that have not met W_l either, the known ones along those that
have, and beyond P_l a chi variable with h_l - k_l degrees of freedom times a new direction. The same for W_l v. So the
coordinates of a level can be drawn one product after the other, exactly in distribution, whatever the widths.

Orthogonal layers of one hidden width h >= n + m are simpler: square W_l are isometries, so the products U of W_l^T ...
W_1^T stay orthonormal, and in bases that begin with them W_l is the identity. All that is random is W_L, m uniformly
distributed orthonormal columns in R^h, and of these only the n coordinates along U and the lengths of the rest matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from flowsim.checks import as_choice, as_count, as_dims, as_number, check_memory
from flowsim.compression.bases import Bases, FixedBases
from flowsim.compression.core import CompressedNetwork, first_level
from flowsim.errors import InputError
from flowsim.initialization import GAUSSIAN, Seed, check_seed, origin_of

SAMPLED = (*GAUSSIAN, "orthogonal")
"""Schemes that can be drawn in compressed form."""

FEWER = "choose fewer inputs, outputs, layers or steps"


class _Draw(NamedTuple):
    """A vector meets a layer (counted from 0): what is drawn of its image.

    vector: its row of the layer's matrix, or its column where it stands `behind` the layer; the components
    known .. beyond - 1 of the image are drawn, normal variables; freedom: the degrees of freedom of the length of what
    is new in the image, component `beyond`, a chi variable; 0 where nothing can be new.
    """

    layer: int
    vector: int
    behind: bool
    known: int
    beyond: int
    freedom: int


class _Level(NamedTuple):
    """What a level adds to those below. It is the same for all networks with the dims.

    widths: (n, k_1, ..., k_{L-1}, m) with it; met: for each layer how many vectors before and behind it have met it;
    draws: in their order.
    """

    widths: tuple[int, ...]
    met: tuple[tuple[int, int], ...]
    draws: tuple[_Draw, ...]


@cache
def _level(dims: tuple[int, ...], level: int) -> _Level:
    """In level 0 the units at the ends meet W_1 and W_L; in the next ones the vectors of the level before meet the
    layers on both their sides."""
    depth = len(dims) - 1
    if level == 0:
        widths, met = [dims[0], *([0] * (depth - 1)), dims[-1]], [[0, 0] for _ in range(depth)]
        meeting = [(0, False, dims[0]), (depth - 1, True, dims[-1])]
    else:
        below = _level(dims, level - 1)
        widths, met = list(below.widths), [list(counts) for counts in below.met]
        meeting = [(layer, side, below.widths[layer + side]) for layer in range(1, depth - 1) for side in (False, True)]
    draws = []
    for layer, behind, end in meeting:
        image = layer + (not behind)
        for vector in range(met[layer][behind], end):
            known, width = met[layer][not behind], widths[image]
            grows = 0 < image < depth and width < dims[image]
            draws.append(_Draw(layer, vector, behind, known, width, dims[image] - width if grows else 0))
            met[layer][behind] += 1
            widths[image] += grows
    return _Level(tuple(widths), tuple((before, behind) for before, behind in met), tuple(draws))


class SampledBases(Bases):
    """Coordinates of a network with entries of W_l from N(0, deviations[l-1]^2), drawn level by level when needed, by a
    generator of their own."""

    def __init__(self, dims: tuple[int, ...], deviations: list[float], seed: np.random.SeedSequence) -> None:
        super().__init__(dims)
        self.given = dims, deviations, seed
        self.deviations, self.generator, self.drawn = deviations, np.random.default_rng(seed), 0
        self.counts.append(_level(dims, 0).widths)

    def grow_to(self, level: int) -> None:
        """Make sure that the levels 0 .. level exist, drawn in one go, as far as there is anything new to find."""
        super().grow_to(level)
        end = len(self.counts) + self.exhausted  # where nothing is new, the last vectors have yet to meet the layers
        if self.drawn < end:
            self._draw(end)

    @cached_property
    def imbalance_norms(self) -> Sequence[float]:
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
        return _level(self.dims, len(self.counts)).widths

    def _draw(self, end: int) -> None:
        """The matrices with the levels before `end`."""
        before, self.matrices = self.matrices, [np.zeros(shape) for shape in pairwise(self.counts[-1])]
        for M, old in zip(self.matrices, before, strict=False):
            M[: old.shape[0], : old.shape[1]] = old
        lines = [(M, M.T) for M in self.matrices]
        normal, chisquare = self.generator.standard_normal, self.generator.chisquare
        for level in range(self.drawn, end):
            for layer, vector, behind, known, beyond, freedom in _level(self.dims, level).draws:
                image, sigma = lines[layer][behind][vector], self.deviations[layer]
                image[known:beyond] = sigma * normal(beyond - known)
                if freedom:
                    image[beyond] = sigma * sqrt(chisquare(freedom))
        self.drawn = end


def cannot_sample(scheme: str, dims: tuple[int, ...]) -> str | None:
    """Why a scheme of SAMPLED cannot be drawn in compressed form with these dims; None where it can."""
    hidden, ends = set(dims[1:-1]), dims[0] + dims[-1]
    if scheme == "orthogonal" and (len(hidden) > 1 or min(hidden) < ends):
        return f"orthogonal layers need one hidden width, at least n + m = {ends}, to be drawn in compressed form"
    return None


def sample_compressed(
    scheme: str, dims: Sequence[int], *, seed: Seed, scale: float = 1.0, steps: int | None = None
) -> CompressedNetwork:
    """A Gaussian (fan_in, fan_out, ntk, xavier) or orthogonal network in compressed form, its weights never existing.

    Exact in distribution for the levels drawn; simulate draws further levels where its error estimate asks for them.
    Memory and time do not depend on the hidden widths. Same seed, same network (not the one that the scheme itself
    draws from that seed). steps: the number of Krylov steps to begin with.
    Raises InputError for another scheme, for orthogonal layers whose hidden widths differ or are less than n + m, and
    for dims, seed, scale or steps out of range.

    >>> import flowsim as fs
    >>> network = fs.sample_compressed("fan_out", (5, 10**9, 10**9, 1), seed=0)
    >>> f"{network.size:.3g} weights", network.widths
    ('1e+18 weights', (5, 12, 12, 1))
    >>> flow = fs.simulate(fs.Problem(fs.SquaredLoss([[1.0]] * 5), network), t1=1e-9)
    >>> flow.status, bool(flow.error_estimate[-1] < 1e-8 * flow.weights_change)
    ('completed', True)
    """
    as_choice(scheme, "scheme", SAMPLED)
    sizes, factor, own = as_dims(dims), as_number(scale, "scale", above=0.0), _own(seed)
    level = first_level(len(sizes) - 1) if steps is None else as_count(steps, "steps", least=0)
    reason = cannot_sample(scheme, sizes)
    if reason is not None:
        raise InputError(
            f"Argument `dims` must be others or the network drawn in full: {reason}, but they are {sizes}."
        )
    widths = [min(width, (sizes[0] + sizes[-1]) * (level + 1)) for width in sizes]
    cells = sum(rows * columns for rows, columns in pairwise(widths))
    check_memory(8 * cells, "dims", f"{len(sizes) - 1} layers with {sizes[0]} inputs and {sizes[-1]} outputs", FEWER)
    origin = {**origin_of(scheme, sizes, seed, factor), "form": "sampled"}
    if scheme == "orthogonal":
        return CompressedNetwork(_orthogonal_bases(sizes, factor, np.random.default_rng(own)), level, origin=origin)
    variance, model_scale = GAUSSIAN[scheme]
    deviations = [factor * sqrt(variance(rows, columns)) for rows, columns in pairwise(sizes)]
    return CompressedNetwork(SampledBases(sizes, deviations, own), level, model_scale(sizes), origin)


def _own(seed: Seed) -> np.random.SeedSequence:
    """What a generator of a network's own is made from, that it can be made again: of a generator, numbers from it."""
    check_seed(seed)
    if isinstance(seed, np.random.Generator):
        return np.random.SeedSequence(seed.integers(2**63, size=4).tolist())
    return seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(int(seed))


def redrawn(origin: Mapping[str, Any], steps: int) -> CompressedNetwork:
    """The network that was drawn in compressed form as `origin` tells. Raises InputError where it does not tell."""
    if origin.get("form", "sampled") != "sampled" or origin.get("seed") is None:
        raise InputError("The network cannot be drawn again: its seed is not known; draw it from a seed.")
    seed: Any = origin["seed"]
    if "spawn_key" in origin:
        seed = np.random.SeedSequence(seed, spawn_key=tuple(origin["spawn_key"]))
    return sample_compressed(origin["scheme"], origin["dims"], seed=seed, scale=origin["scale"], steps=steps)


def _orthogonal_bases(dims: tuple[int, ...], factor: float, generator: np.random.Generator) -> FixedBases:
    """W_1 = s [I 0], W_l = s I, W_L = s Q: the Q of a Gaussian h x m matrix whose rows beyond n are in their R."""
    n, h, m = dims[0], dims[1], dims[-1]
    below = np.triu(generator.standard_normal((m, m)), 1)
    np.fill_diagonal(below, np.sqrt(generator.chisquare(h - n - np.arange(m))))
    Q, R = np.linalg.qr(np.vstack([generator.standard_normal((n, m)), below]))
    Q = Q * np.sign(np.diag(R))
    width, middle = n + m, max(len(dims) - 3, 0)
    matrices = [factor * np.eye(n, width), *([factor * np.eye(width)] * middle), factor * Q]
    ends = [(h - n) ** 0.5, *([0.0] * (middle - 1)), (h - m) ** 0.5]
    norms = ends if middle else [max(n + m - 2 * float((Q[:n] ** 2).sum()), 0.0) ** 0.5]
    counts = (n, *([width] * (len(dims) - 2)), m)
    return FixedBases(dims, matrices, [counts], None, [factor**2 * norm for norm in norms], None, True)
