"""What people plot along training, at the checkpoints of a run: sharpness, distance of the kernel, ranks, alignment.

Sharpness in compressed form. The lifted weights act within the Krylov levels of the core and as W_l(0) beyond. Where
nothing is beyond (complete bases), Hess L falls into two blocks: that of the core, and that of directions V_l with one
side outside. There d^2 f = <E, d^2 W> alone, E = grad f(W), which is bilinear in V_l, outside on the right, and V_k,
outside on the left, k > l, with W_{l+1} .. W_{k-1} from outside between. For two layers its greatest eigenvalue is
scale ||E||. The core has one as great for convex f: with unit vectors E b = ||E|| a and any unit vector x of the hidden
layer, V_1 = a x^T / sqrt 2, V_2 = x b^T / sqrt 2 gives <V, Hess L V> >= 2 scale <E, V_1 V_2> = scale ||E||. So the
core's largest eigenvalue is that of all weights. For more layers it may be less: while E is large beside the weights
the eigenvector spreads over many levels. Levels are added until the eigenvalue rests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from flowsim.checks import as_count
from flowsim.compression import CompressedNetwork, regrown
from flowsim.errors import InputError, NumericalFailure
from flowsim.losses import UnknownLoss
from flowsim.network import unflatten
from flowsim.problem import Problem

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory

DENSE = 150
"""Up to so many weights all eigenvalues of the Hessian are computed; up to so thin a layer all singular vectors."""
CONVERGED = 1e-10
"""The residual of an eigenvector at which Lanczos ends, over the eigenvalue."""
FRESH = 0.1
"""The random part of a search's start, over the last eigenvector: the largest eigenvalue may have come to another."""
MORE = (4, 8, 16, 32)
"""How many levels beside those of the run the eigenvector is looked for in, one after the other."""
RESTS = 1e-6
"""Levels are added until this share of the sharpness, or less, comes with the last ones."""
MOST_WEIGHTS = 30_000
"""After the first two of MORE none is tried whose core has more weights than these."""
Term = tuple[np.ndarray, np.ndarray]
"""(P, Q) of the Kronecker product P x Q."""


def sharpness(run: Trajectory) -> np.ndarray:
    """(C): the largest eigenvalue of Hess L."""
    if isinstance(run.problem.loss, UnknownLoss):
        raise InputError("The run was loaded without its own loss; pass it to load(path, loss=...).")
    compressed, states = run.reduction.network, run.checkpoints.states
    if compressed is None or compressed.exact:
        return _sharpness_along(run.simulated, states)
    growing, states = regrown(compressed, run.problem.network, states)
    return _at_rest(growing, states, run.problem, run.kept(run.checkpoints.times)[0])


def _at_rest(compressed: CompressedNetwork, states: np.ndarray, problem: Problem, kept: np.ndarray) -> np.ndarray:
    """The sharpness with more and more levels, at each state until it rests, the levels end or the core is large."""
    values, moving = np.full(len(states), np.inf), np.ones(len(states), bool)
    last = compressed
    for more in MORE:
        grown = compressed.at_least(compressed.steps + more)
        large = more > MORE[1] and _core_size(grown) > MOST_WEIGHTS
        if grown.widths == last.widths or large or not moving.any():
            break
        core = grown.problem(problem.loss, problem.weight_decay)
        found = _sharpness_along(core, compressed.embed(grown, states[moving], kept[moving]))
        before, values[moving] = values[moving], found
        moving[moving] = np.abs(found - before) > RESTS * np.abs(found)
        last = grown
    return values


def _core_size(compressed: CompressedNetwork) -> int:
    return sum(rows * columns for rows, columns in pairwise(compressed.widths))


def _sharpness_along(problem: Problem, states: np.ndarray) -> np.ndarray:
    """The largest eigenvalue at one state after another, each search begun at the last eigenvector."""
    values, vector = [], np.zeros(states.shape[1])
    for state in states:
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                value, vector = _largest(problem, state, vector)
        except NumericalFailure:
            value = np.nan
        values.append(value)
    return np.array(values)


def _largest(problem: Problem, state: np.ndarray, near: np.ndarray) -> tuple[float, np.ndarray]:
    """(the largest eigenvalue of Hess L, its eigenvector) at a state; near: where it may be."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = len(state)
    if size <= DENSE:
        values, vectors = np.linalg.eigh(-problem.jacobian_product(state, np.eye(size)))
        return float(values[-1]), vectors[:, -1]
    hessian = LinearOperator((size, size), lambda v: -problem.jacobian_product(state, v.ravel()), dtype=float)
    start = near + FRESH * np.random.default_rng(0).standard_normal(size) / size**0.5
    if not (hessian @ start).any():  # the Hessian is 0: Lanczos cannot begin
        return 0.0, near
    values, vectors = eigsh(hessian, 1, which="LA", v0=start, tol=CONVERGED)
    return float(values[0]), vectors[:, 0]


def kernel_distance(run: Trajectory) -> np.ndarray:
    """(C): ||T(t) - T(0)||_F / ||T(0)||_F."""
    start = run.core_at(0.0).grams
    changes = (_kernel_change(start, run.core_at(t).grams) for t in run.checkpoints.times)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array([_norm_of_sum(change) for change in changes]) / _norm_of_sum(start)


def _kernel_change(start: Sequence[Term], now: Sequence[Term]) -> list[Term]:
    """T(t) - T(0) = sum_l (P_l - P_l0) x Q_l + P_l0 x (Q_l - Q_l0): no large terms cancel."""
    pairs = list(zip(start, now, strict=True))
    return [*((P - P0, Q) for (P0, _), (P, Q) in pairs), *((P0, Q - Q0) for (P0, Q0), (_, Q) in pairs)]


def _norm_of_sum(terms: Sequence[Term]) -> float:
    """||sum_i P_i x Q_i||_F, whose square is sum_ij <P_i, P_j> <Q_i, Q_j>."""
    left, right = (np.array([factor.ravel() for factor in factors]) for factors in zip(*terms, strict=True))
    return float(np.sqrt(max(((left @ left.T) * (right @ right.T)).sum(), 0.0)))


def effective_rank(run: Trajectory) -> np.ndarray:
    """(C): exp(-sum_k p_k log p_k), p_k = sigma_k / sum sigma; 0 where W = 0."""
    from scipy.special import entr

    values = run.singular_values
    total = values.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = entr(values / total).sum(axis=1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)


def layer_singular_values(run: Trajectory, layer: int) -> np.ndarray:
    """(C, min(h_{l-1}, h_l)): the singular values of W_l, descending."""
    network = run.problem.network
    if as_count(layer, "layer") > network.depth:
        raise InputError(f"Argument `layer` must be at most {network.depth}, but it is {layer}.")
    at_end = layer in (1, network.depth)
    layers = _integrated(run, layer) if at_end else _whole(run, layer)
    found = np.array([np.linalg.svd(W, compute_uv=False) for W in layers])
    return np.pad(found, ((0, 0), (0, min(network.dims[layer - 1 : layer + 1]) - found.shape[1])))


def alignment(run: Trajectory) -> np.ndarray:
    """(C, L-1): |<v_l, u_{l+1}>|."""
    depth = run.problem.network.depth
    layers = _integrated if depth == 2 else _whole  # all of two layers is in the core
    tops = [[_top_vectors(W) for W in layers(run, layer)] for layer in range(1, depth + 1)]
    found = [[abs(v @ u) for (_, v), (u, _) in zip(*pair, strict=True)] for pair in pairwise(tops)]
    return np.minimum(np.transpose(found), 1.0)


def _integrated(run: Trajectory, layer: int) -> Iterator[np.ndarray]:
    """W_l at the checkpoints as integrated: where the width was compressed, in the coordinates of the bases.

    W_1 and W_L lie in the bases: their singular values are the same there, but for zeros.
    """
    yield from unflatten(run.checkpoints.states, run.simulated.network.dims)[layer - 1]


def _whole(run: Trajectory, layer: int) -> Iterator[np.ndarray]:
    """W_l at the checkpoints in full. Raises InputError where it is not at hand as an array, as weights and lift do."""
    compressed, network = run.reduction.network, run.problem.network
    if compressed is None:
        yield from _integrated(run, layer)
        return
    initial = network.weights[layer - 1]
    if not isinstance(initial, np.ndarray):
        raise InputError(f"W{layer} is not at hand as an array, but of type {type(initial).__name__}.")
    for state, kept in zip(run.checkpoints.states, run.kept(run.checkpoints.times)[0], strict=True):
        yield compressed.lift(state, layer, initial, float(kept))


def _top_vectors(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(u, v), the singular vectors of the largest singular value."""
    from scipy.sparse.linalg import svds

    if min(W.shape) <= DENSE:
        U, _, Vt = np.linalg.svd(W, full_matrices=False)
        return U[:, 0], Vt[0]
    U, _, Vt = svds(W, 1, v0=np.random.default_rng(0).standard_normal(min(W.shape)))
    return U[:, 0], Vt[0]
