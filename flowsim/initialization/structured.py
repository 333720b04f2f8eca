"""Initial weights whose imbalance is prescribed: homogeneous, lambda-balanced, unimodal; spectral and diagonal ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_count, as_float_array, as_matrix
from flowsim.errors import InputError
from flowsim.initialization.random import Seed, arguments, origin_of, orthonormal
from flowsim.network import LinearNetwork

ROUND_OFF = 1e-12


def spectral(dims: Sequence[int], *, seed: Seed, scale: float = 1.0, target: ArrayLike | None = None) -> LinearNetwork:
    """W_l = U_{l-1} S_l U_l^T with diagonal S_l: the flow of ||Y - W||_F^2 / 2 splits into scalar networks.

    U_0 and U_L hold the singular vectors of `target` Y (n x m; random ones without), the hidden U_l random orthonormal
    columns; the r = min(n, m) entries of each S_l come from N(0, scale^2) (Saxe et al. 2014; [MVM23], section 3.3).
    Raises InputError for dims, seed, scale or target out of range.

    The product keeps the target's singular vectors along the flow:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> Y = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> U = np.linalg.svd(Y)[0]
    >>> flow = fs.simulate(fs.Problem(fs.SquaredLoss(Y), fs.spectral((2, 4, 2), seed=0, target=Y)), t1=1.0)
    >>> W = U.T @ flow.product_at(0.7) @ U
    >>> bool(abs(W[0, 1]) + abs(W[1, 0]) < 1e-7 < abs(W[0, 0]))
    True
    """
    sizes, generator, factor = arguments(dims, seed, scale)
    n, m = sizes[0], sizes[-1]
    Y = generator.standard_normal((n, m)) if target is None else as_matrix(target, "target", (n, m))
    left, sigma, right = np.linalg.svd(Y, full_matrices=False)
    bases = [left, *(orthonormal(generator, width, len(sigma)) for width in sizes[1:-1]), right.T]
    weights = tuple((U * (factor * generator.standard_normal(len(sigma)))) @ V.T for U, V in pairwise(bases))
    return LinearNetwork(weights, origin=origin_of("spectral", sizes, seed, factor))


def diagonal(dims: Sequence[int], *, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """W_l = diag(w_l), w_l from N(0, scale^2): f(w_1 o ... o w_L) as long as grad f is diagonal ([MVM23], section 3.3).

    Raises InputError when the sizes in dims differ, or seed or scale is out of range.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> network = fs.diagonal((3, 3, 3), seed=0)
    >>> w1, w2 = (np.diag(W) for W in network.weights)
    >>> np.allclose(network.product, np.diag(w1 * w2))
    True
    """
    sizes, generator, factor = arguments(dims, seed, scale)
    if len(set(sizes)) > 1:
        raise InputError(f"Argument `dims` must be equal sizes for diagonal weights, but they are {sizes}.")
    weights = tuple(np.diag(factor * generator.standard_normal(size)) for size in sizes[1:])
    return LinearNetwork(weights, origin=origin_of("diagonal", sizes, seed, factor))


def homogeneous(dims: Sequence[int], *, imbalance: ArrayLike, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Homogeneous imbalance: D_l = d_l I for the numbers d_1 .. d_{L-1} in `imbalance` ([MVM23], Theorem 3).

    dims: layer sizes (h_0, ..., h_L).

    W_l = U_{l-1} S_l U_l^T with random orthogonal U_l and diagonal S_l whose squares obey s_{l,j} - s_{l+1,j} = d_l for
    every mode j; the least of them along l is scale^2 times a squared normal variable where it is free. A mode that
    exists in some layers only (unequal widths) fixes its own squares: not every imbalance fits all widths.

    Raises InputError when no such weights exist, or an argument is out of range.

    >>> import flowsim as fs
    >>> network = fs.homogeneous((3, 3, 3, 3), imbalance=[2.0, -1.0], seed=0)
    >>> [eigenvalues.round(9).tolist() for eigenvalues in network.imbalance_eigenvalues]
    [[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]]
    """
    sizes, generator, factor = arguments(dims, seed, scale)
    d = _levels(imbalance, len(sizes) - 2)
    squares = [np.zeros(shape) for shape in pairwise(sizes)]
    for mode in range(max(sizes)):
        for first, last in _runs(sizes, mode):
            free = (factor * float(generator.standard_normal())) ** 2
            for layer, square in enumerate(_squares(sizes, d, first, last, free), start=first):
                squares[layer][mode, mode] = square
    bases = [orthonormal(generator, size, size) for size in sizes]
    weights = tuple(U @ np.sqrt(S) @ V.T for S, (U, V) in zip(squares, pairwise(bases), strict=True))
    return LinearNetwork(weights, origin={**origin_of("homogeneous", sizes, seed, factor), "imbalance": d.tolist()})


def _levels(imbalance: ArrayLike, count: int) -> np.ndarray:
    d = np.atleast_1d(as_float_array(imbalance, "imbalance"))
    if d.shape != (count,):
        raise InputError(f"Argument `imbalance` must hold {count} numbers, one a hidden layer, but it has {d.size}.")
    return d


def _runs(sizes: Sequence[int], mode: int) -> Iterator[tuple[int, int]]:
    """The longest stretches first .. last of neighbouring nodes that are wide enough to have the mode."""
    first = None
    for node, size in enumerate([*sizes, 0]):
        if size > mode and first is None:
            first = node
        elif size <= mode and first is not None:
            yield first, node - 1
            first = None


def _squares(sizes: Sequence[int], d: np.ndarray, first: int, last: int, free: float) -> np.ndarray:
    """The squares in the layers between the nodes first and last; beyond a hidden node at either end they are 0."""
    end = len(sizes) - 1
    steps = -np.concatenate([[0.0], np.cumsum(d[first : last - 1])])[: last - first]
    if 0 < first < end:
        start = -d[first - 1]
    elif first == 0 < last < end:
        start = d[last - 1] - steps[-1]
    else:
        start = free - steps.min(initial=0.0)
    squares = start + steps
    allowed = ROUND_OFF * float(np.abs(d).max(initial=1.0))
    before_the_end = squares[-1] if len(squares) else 0.0
    broken = 0 < last < end and abs(before_the_end - d[last - 1]) > allowed
    if broken or (squares < -allowed).any():
        raise InputError(
            f"Argument `imbalance` must fit the widths, but no weights with dims {tuple(sizes)} have D_l = d_l I with"
            f" d = {d.tolist()}; take equal sizes, or d_l = 0 where a layer is wider than its neighbours."
        )
    return np.maximum(squares, 0.0)


def lambda_balanced(dims: Sequence[int], *, imbalance: float, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """D_l = lambda I for all l, lambda = imbalance: `homogeneous` with one number for all layers.

    dims: layer sizes (n, h, m); scale: a factor on all layers.

    For L = 2, lambda > 0 needs h_1 <= n and lambda < 0 needs h_1 <= m. Raises InputError as homogeneous.

    The flow of two such layers has a closed form:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> Y, network = np.ones((3, 2)), fs.lambda_balanced((3, 2, 2), imbalance=0.5, seed=0)
    >>> flow = fs.simulate(fs.Problem(fs.SquaredLoss(Y), network), t1=1.0)
    >>> np.allclose(flow.product_at(1.0), fs.exact.riccati(network, Y, 1.0)[0], atol=1e-7)
    True
    """
    depth = len(arguments(dims, seed, scale)[0]) - 1
    return homogeneous(dims, imbalance=np.full(depth - 1, imbalance), seed=seed, scale=scale)


def unimodal(dims: Sequence[int], *, peak: int, imbalance: ArrayLike, seed: Seed, scale: float = 1.0) -> LinearNetwork:
    """Unimodal imbalance: D_l >= 0 for l < l*, D_l <= 0 for l >= l*, with l* = peak in 1 .. L ([MVM23], Theorem 3).

    imbalance: the L - 1 numbers d_l >= 0, least nonzero eigenvalue of each |D_l|; the others are d_l (1 + |normal|).
    So l_n(D_l) = d_l where the layers up to l are at least n wide, l_m(-D_l) = d_l where those from l on are m wide.
    W_{l*} is scale times a Gaussian matrix; the others follow outwards, W_l^T W_l = W_{l+1} W_{l+1}^T + D_l.

    Raises InputError when peak or an entry of imbalance is out of range, or dims, seed or scale is.

    >>> import flowsim as fs
    >>> network = fs.unimodal((3, 5, 4, 2), peak=2, imbalance=[0.5, 2.0], seed=0)
    >>> least, greatest = network.imbalance_eigenvalues[0][2], network.imbalance_eigenvalues[1][-2]
    >>> round(float(least), 9), round(float(greatest), 9)  # l_n(D_1) and -l_m(-D_2)
    (0.5, -2.0)
    """
    sizes, generator, factor = arguments(dims, seed, scale)
    depth = len(sizes) - 1
    d = _levels(imbalance, depth - 1)
    if not 1 <= as_count(peak, "peak") <= depth:
        raise InputError(f"Argument `peak` must be at most {depth}, the number of layers, but it is {peak}.")
    if (d < 0).any():
        raise InputError("Argument `imbalance` must be at least 0: the signs follow from `peak`.")
    left, right = sizes[peak - 1 :: -1], sizes[peak:]
    middle = generator.standard_normal((min(left), min(right))) * factor / sqrt(min(left))
    frame, outward = _tower(generator, middle, left, d[: peak - 1][::-1])
    other, onward = _tower(generator, middle.T, right, d[peak - 1 :])
    weights = (*outward[::-1], frame @ middle @ other.T, *(W.T for W in onward))
    origin = {**origin_of("unimodal", sizes, seed, factor), "imbalance": d.tolist(), "peak": peak}
    return LinearNetwork(weights, origin=origin)


def _tower(
    generator: np.random.Generator, inner: np.ndarray, widths: Sequence[int], d: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(frame of the innermost node, layers going outwards): W^T W = W_inner W_inner^T + D with D >= 0."""
    sizes = np.minimum.accumulate(widths[::-1])[::-1]  # how many dimensions reach the end from each node
    frames = [orthonormal(generator, width, int(size)) for width, size in zip(widths[:-1], sizes, strict=False)]
    frames.append(np.eye(widths[-1]))
    layers = []
    for node, least in enumerate(d):
        size = int(sizes[node])
        eigenvalues = least * (1 + np.abs(generator.standard_normal(size)))
        eigenvalues[0] = least
        Q = orthonormal(generator, size, size)
        values, vectors = np.linalg.eigh(inner @ inner.T + (Q * eigenvalues) @ Q.T)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        inner = orthonormal(generator, int(sizes[node + 1]), size) @ root
        layers.append(frames[node + 1] @ inner @ frames[node].T)
    return frames[0], layers


WITH_SETTINGS: dict[str, tuple[Callable[..., LinearNetwork], tuple[str, ...]]] = {
    "homogeneous": (homogeneous, ("imbalance",)),
    "lambda_balanced": (lambda_balanced, ("imbalance",)),
    "unimodal": (unimodal, ("imbalance", "peak")),
}
"""Schemes that need more than dims, seed and scale, and what they need."""
