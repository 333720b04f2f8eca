"""Initial weights: Gaussian schemes, orthogonal and balanced ones; explicit dims and seed.

Gaussian draws come from numpy.random.default_rng(seed), layer after layer: the same seed gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod, sqrt

import numpy as np

from flowsim.checks import as_dims, as_number, check_memory
from flowsim.errors import InputError
from flowsim.network import LinearNetwork
from flowsim.values import Json, sealed

LARGEST_NETWORK = 2**31
"""More weights than this (16 GiB of float64) are refused before anything is allocated."""

Seed = int | np.random.SeedSequence | np.random.Generator


GAUSSIAN: dict[str, tuple[Callable[[int, int], float], Callable[[Sequence[int]], float]]] = {
    "fan_in": (lambda rows, columns: 1 / rows, lambda dims: 1.0),
    "fan_out": (lambda rows, columns: 1 / columns, lambda dims: 1.0),
    "xavier": (lambda rows, columns: 2 / (rows + columns), lambda dims: 1.0),
    "ntk": (lambda rows, columns: 1.0, lambda dims: 1 / sqrt(prod(dims[1:]))),
}
"""scheme -> (the variance of the entries of a rows x columns layer, the scale of the model with dims)."""


def fan_in(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Entries of W_l from N(0, scale^2 / h_{l-1}): the "Xavier/Fanin" of [MVM23], appendix A.

    Raises InputError for dims, seed or scale out of range; so do all the schemes here.

    >>> import flowsim as fs
    >>> network = fs.fan_in((4, 1000, 2), seed=0)
    >>> [round(rows * float(W.var()), 1) for W, rows in zip(network.weights, (4, 1000))]
    [1.0, 1.0]
    """
    return _gaussian("fan_in", dims, seed, scale)


def fan_out(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Entries of W_l from N(0, scale^2 / h_l) ([MVM23], appendix A).

    dims: layer sizes (h_0, ..., h_L).

    The end layers outweigh the middle one, so that Theorem 2 certifies more than for fan_in:

    >>> import flowsim as fs
    >>> drawn = [scheme((5, 100, 100, 1), seed=0) for scheme in (fs.fan_in, fs.fan_out)]
    >>> inward, outward = (fs.certify(network)["theorem-2"].alpha for network in drawn)
    >>> 0 < 3 * inward < outward
    True
    """
    return _gaussian("fan_out", dims, seed, scale)


def xavier(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Entries of W_l from N(0, 2 scale^2 / (h_{l-1} + h_l)) (Glorot and Bengio, AISTATS 2010, eq. 16).

    dims: layer sizes (h_0, ..., h_L).

    >>> import flowsim as fs
    >>> network = fs.xavier((4, 996, 4), seed=0)
    >>> [round(1000 * float(W.var()) / 2, 1) for W in network.weights]
    [1.0, 1.0]
    """
    return _gaussian("xavier", dims, seed, scale)


def ntk(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Entries from N(0, scale^2), the model scaled by 1 / sqrt(h_1 ... h_L) ([MVM23], appendix A).

    dims: layer sizes (h_0, ..., h_L).

    T then carries the square of that factor, not the factor itself.

    >>> import flowsim as fs
    >>> network = fs.ntk((1, 10, 10, 1), seed=0)
    >>> plain = fs.LinearNetwork(network.weights)  # the same weights, scale 1
    >>> round(network.scale, 9), round(network.lambda_min_T / plain.lambda_min_T, 9)
    (0.1, 0.01)
    """
    return _gaussian("ntk", dims, seed, scale)


def orthogonal(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """scale times semi-orthogonal W_l (W_l^T W_l = I or W_l W_l^T = I), uniformly distributed (Saxe et al. 2014).

    dims: layer sizes (h_0, ..., h_L).

    >>> import numpy as np
    >>> import flowsim as fs
    >>> network = fs.orthogonal((3, 8, 8, 2), seed=0)
    >>> [np.allclose(W @ W.T, np.eye(len(W))) for W in network.weights[:-1]]
    [True, True]
    >>> np.allclose(network.weights[-1].T @ network.weights[-1], np.eye(2))
    True
    """
    sizes, generator, factor = arguments(dims, seed, scale)
    weights = []
    for rows, columns in pairwise(sizes):
        basis = orthonormal(generator, max(rows, columns), min(rows, columns))
        weights.append(sealed(factor * (basis if rows >= columns else basis.T)))
    return LinearNetwork(tuple(weights), origin=origin_of("orthogonal", sizes, seed, factor))


def balanced(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Balanced weights, D_l = 0 for all l: W_l = scale U_{l-1} S U_l^T with one diagonal S (Arora et al. 2018).

    dims: layer sizes (h_0, ..., h_L), h_0 = n, h_L = m.

    The U_l have r = min(n, m) orthonormal columns; S^L holds the singular values of an n x m matrix with entries from
    N(0, 1 / max(n, m)).

    With n = m, lambda_min(T) = L sigma_min(W)^{2-2/L} exactly:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> network = fs.balanced((3, 6, 5, 3), seed=0)
    >>> sigma_min = np.linalg.svd(network.product, compute_uv=False)[-1]
    >>> max(network.imbalance_norms) < 1e-12, np.isclose(network.lambda_min_T, 3 * sigma_min ** (4 / 3)).item()
    (True, True)
    """
    sizes, generator, factor = arguments(dims, seed, scale)
    n, m = sizes[0], sizes[-1]
    left, sigma, right = np.linalg.svd(generator.standard_normal((n, m)) / sqrt(max(n, m)), full_matrices=False)
    hidden = [orthonormal(generator, width, len(sigma)) for width in sizes[1:-1]]
    bases = [left, *hidden, right.T]
    roots = sigma ** (1 / (len(sizes) - 1))
    weights = tuple(factor * (U * roots) @ V.T for U, V in pairwise(bases))
    return LinearNetwork(weights, origin=origin_of("balanced", sizes, seed, factor))


SCHEMES: dict[str, Callable[..., LinearNetwork]] = {
    "fan_in": fan_in,
    "fan_out": fan_out,
    "ntk": ntk,
    "xavier": xavier,
    "orthogonal": orthogonal,
    "balanced": balanced,
}


def arguments(dims: Sequence[int], seed: Seed, scale: float) -> tuple[tuple[int, ...], np.random.Generator, float]:
    """(dims, generator, scale), checked."""
    sizes = as_dims(dims)
    layers = [rows * columns for rows, columns in pairwise(sizes)]
    count = sum(layers)
    if count > LARGEST_NETWORK:
        raise InputError(
            f"Argument `dims` must ask for at most {LARGEST_NETWORK} weights, but it asks for {count}"
            f" ({8 * count / 2**30:.3g} GiB); choose smaller widths."
        )
    check_memory(8 * (count + max(layers)), "dims", f"drawing {sizes}", "choose smaller widths")
    return sizes, generator_of(seed), as_number(scale, "scale", above=0.0)


def generator_of(seed: Seed) -> np.random.Generator:
    """The generator of a seed. Raises InputError for what is no seed."""
    check_seed(seed)
    return np.random.default_rng(seed)


def check_seed(seed: Seed) -> None:
    """Raises InputError for what is no seed."""
    if isinstance(seed, (bool, str)) or not isinstance(
        seed, (int, np.integer, np.random.SeedSequence, np.random.Generator)
    ):
        raise InputError(f"Argument `seed` must be a whole number, a SeedSequence or a Generator, but it is {seed!r}.")
    if isinstance(seed, (int, np.integer)) and seed < 0:
        raise InputError(f"Argument `seed` must be at least 0, but it is {seed}.")


def _gaussian(scheme: str, dims: Sequence[int], seed: Seed, scale: float) -> LinearNetwork:
    sizes, generator, factor = arguments(dims, seed, scale)
    variance, model_scale = GAUSSIAN[scheme]
    with np.errstate(over="ignore"):  # the network refuses what is infinite
        weights = tuple(
            sealed(factor * sqrt(variance(rows, columns)) * generator.standard_normal((rows, columns)))
            for rows, columns in pairwise(sizes)
        )
    return LinearNetwork(weights, model_scale(sizes), origin_of(scheme, sizes, seed, factor))


def orthonormal(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Uniformly distributed orthonormal columns: QR of a Gaussian matrix with the signs of R's diagonal taken out."""
    Q, R = np.linalg.qr(generator.standard_normal((rows, columns)))
    return Q * np.sign(np.diag(R))


def origin_of(scheme: str, dims: tuple[int, ...], seed: Seed, scale: float) -> Json:
    """Where weights came from, as kept with a network; seed is None for a generator, whose state is not known."""
    known = int(seed) if isinstance(seed, (int, np.integer)) else None
    if isinstance(seed, np.random.SeedSequence):
        return {"scheme": scheme, "dims": dims, "seed": seed.entropy, "spawn_key": seed.spawn_key, "scale": scale}
    return {"scheme": scheme, "dims": dims, "seed": known, "scale": scale}
