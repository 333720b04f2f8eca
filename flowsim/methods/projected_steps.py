"""Projection of every step onto {D_l = D_l(0) for all l}: an explicit method that keeps the invariants to round-off.
With weight decay x it is {D_l = exp(-2 x t) D_l(0)}.

The normal space of that set at W is {C : C_l = W_l Lambda_l - Lambda_{l-1} W_l}, with symmetric multipliers Lambda_l
(h_l x h_l, l = 1 .. L-1; Lambda_0 = Lambda_L = 0): the gradients of the entries of all D_l. A Newton step adds a C of
that form whose first-order change of D_l, C_l^T W_l + W_l^T C_l - C_{l+1} W_{l+1}^T - W_{l+1} C_{l+1}^T, is
D_l(0) - D_l. For up to a few thousand multipliers their equation J J^T z = r is factored now and then and serves until
its steps no longer shrink the residual; for more the shortest C comes from LSMR, with products only. On the core of a
compressed network "shortest" counts the outer levels of the bases as longer and leaves the last alone (Problem.reach):
it is joined to weights outside the core. (Projections: Hairer, Lubich and Wanner, Geometric Numerical Integration,
section IV.4; LSMR: Fong and Saunders, SIAM J. Sci. Comput. 33, 2011.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from flowsim.dynamics import Motion
from flowsim.errors import InputError
from flowsim.methods.steps import ROUND_OFF, Counts, Movable, Segment
from flowsim.network import flatten, imbalance, unflatten

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOST_NEWTON_STEPS = 30
SLOW, STALLED = 0.2, 0.9
"""A residual that shrinks by less than SLOW asks for a new factorization, by less than STALLED ends the projection."""
MOST_FACTORED = 5000
"""Up to this many multipliers their equation is factored."""
RIDGE = 1e-14
LSMR = {"atol": 1e-14, "btol": 1e-8, "conlim": 0.0, "maxiter": 2000}


class Invariants:
    """The imbalance matrices of a network, and weights near given ones (to first order) that have them."""

    def __init__(self, motion: Motion) -> None:
        problem, self.motion = motion.problem, motion
        self.dims, reach = problem.network.dims, problem.reach
        self.scales = [np.outer(rows, columns) for rows, columns in pairwise(reach)]
        weights = list(problem.network.weights)
        self.targets = [imbalance(weights, layer) for layer in range(1, len(weights))]
        self.limit = ROUND_OFF * max(float(np.vdot(W, W)) for W in weights)
        few = sum(h * (h + 1) // 2 for h in self.dims[1:-1]) <= MOST_FACTORED
        self.solver: Factored | Iterated = (Factored if few else Iterated)(self.dims, self.scales)

    def project(self, t: float, state: np.ndarray) -> np.ndarray:
        """The state at time t moved until its imbalance is the target's, as far as round-off lets it."""
        left = float(self.motion.remaining(t)[0]) ** 2
        weights, before = unflatten(state, self.dims), np.inf
        for _ in range(MOST_NEWTON_STEPS):
            missed = [left * D - imbalance(weights, layer) for layer, D in enumerate(self.targets, start=1)]
            size = float(np.sqrt(sum(np.vdot(D, D) for D in missed)))
            if size <= self.limit or not np.isfinite(size):
                break
            if size > SLOW * before and not self.solver.renew() and size > STALLED * before:
                break
            correction = self.solver.correction(weights, missed)
            weights, before = [W + C for W, C in zip(weights, correction, strict=True)], size
        return flatten(weights)


class Factored:
    """Corrections C = J^T (J J^T)^-1 r with J J^T at weights that may be somewhat older than the present ones."""

    def __init__(self, dims: Sequence[int], scales: Sequence[np.ndarray]) -> None:
        self.dims, self.squares = dims, [scale**2 for scale in scales]
        self.indices = [_movable(*pair) for pair in pairwise(scales)]
        self.ends = np.cumsum([0, *(len(i) for i, _ in self.indices)])
        self.weights: list[np.ndarray] = []
        self.factor: tuple[np.ndarray, bool] | None = None
        self.fresh = False

    def renew(self) -> bool:
        """Factor anew for the next correction; False where the last factorization served that alone."""
        if self.fresh:
            return False
        self.factor = None
        return True

    def correction(self, weights: list[np.ndarray], missed: list[np.ndarray]) -> list[np.ndarray]:
        """C_1 .. C_L with about the first-order change `missed`."""
        from scipy.linalg import cho_factor, cho_solve

        self.fresh = self.factor is None
        if self.fresh:
            self.weights, J = weights, self._jacobian(weights)
            K = (J.multiply(np.concatenate([square.ravel() for square in self.squares])) @ J.T).toarray()
            K[np.diag_indices_from(K)] += RIDGE * K.diagonal().max()
            self.factor = cho_factor(K, overwrite_a=True, check_finite=False)
        z = cho_solve(self.factor, self._entries(missed), check_finite=False)
        return [square * C for square, C in zip(self.squares, _normal(self.weights, self._matrices(z)), strict=True)]

    def _jacobian(self, weights: list[np.ndarray]) -> csr_array:
        """A sparse row for each pair i <= j of each D_l: the gradient of its entry (half of it on the diagonal)."""
        from scipy.sparse import csr_array

        starts = np.cumsum([0, *(W.size for W in weights)])
        places = [start + np.arange(W.size).reshape(W.shape) for start, W in zip(starts, weights, strict=False)]
        blocks = []
        for layer, (i, j) in enumerate(self.indices):
            W, V, here, there = weights[layer], weights[layer + 1], places[layer], places[layer + 1]
            other = np.where(i == j, 0.0, 1.0)
            values = np.hstack([W[:, j].T, other[:, None] * W[:, i].T, -V[j], -other[:, None] * V[i]])
            columns = np.hstack([here[:, i].T, here[:, j].T, there[i], there[j]])
            rows = np.repeat(np.arange(len(i)), columns.shape[1]) + self.ends[layer]
            blocks.append((values.ravel(), rows, columns.ravel()))
        values, rows, columns = (np.concatenate(part) for part in zip(*blocks, strict=True))
        return csr_array((values, (rows, columns)), shape=(self.ends[-1], starts[-1]))

    def _entries(self, matrices: list[np.ndarray]) -> np.ndarray:
        """The entries i <= j of symmetric matrices, those on the diagonal halved: J C from the change of all D_l."""
        halved = zip(matrices, self.indices, strict=True)
        return np.concatenate([np.where(i == j, 0.5, 1.0) * D[i, j] for D, (i, j) in halved])

    def _matrices(self, z: np.ndarray) -> list[np.ndarray]:
        """Multipliers Lambda_1 .. Lambda_{L-1} from their entries i <= j."""
        multipliers = [np.zeros((h, h)) for h in self.dims[1:-1]]
        for multiplier, (i, j), part in zip(multipliers, self.indices, np.split(z, self.ends[1:-1]), strict=True):
            multiplier[i, j] = multiplier[j, i] = part
        return multipliers


def _movable(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs i <= j of the entries of D_l that corrections can change: not both in a coordinate without reach."""
    free = (left != 0).any(axis=0) | (right != 0).any(axis=1)
    i, j = np.triu_indices(len(free))
    kept = free[i] | free[j]
    return i[kept], j[kept]


class Iterated:
    """The shortest correction by LSMR."""

    def __init__(self, dims: Sequence[int], scales: Sequence[np.ndarray]) -> None:
        self.dims, self.scales = dims, scales

    def renew(self) -> bool:
        """Nothing is kept that could be old."""
        return False

    def correction(self, weights: list[np.ndarray], missed: list[np.ndarray]) -> list[np.ndarray]:
        """C_1 .. C_L with the first-order change `missed`."""
        from scipy.sparse.linalg import LinearOperator, lsmr

        ends = np.cumsum([D.size for D in missed])
        shapes = [D.shape for D in missed]

        def change(vector: np.ndarray) -> np.ndarray:
            changes = _change(weights, self._scaled(unflatten(vector, self.dims)))
            return np.concatenate([D.ravel() for D in changes])

        def normal(vector: np.ndarray) -> np.ndarray:
            parts = (part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True))
            return flatten(self._scaled(_normal(weights, [part + part.T for part in parts])))

        right = np.concatenate([D.ravel() for D in missed])
        operator = LinearOperator(
            (right.size, sum(W.size for W in weights)), matvec=change, rmatvec=normal, dtype=float
        )
        return self._scaled(unflatten(lsmr(operator, right, **LSMR)[0], self.dims))

    def _scaled(self, corrections: list[np.ndarray]) -> list[np.ndarray]:
        return [scale * C for scale, C in zip(self.scales, corrections, strict=True)]


def _change(weights: Sequence[np.ndarray], corrections: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first-order change of D_1 .. D_{L-1}."""
    halves = [W.T @ A - B @ V.T for (W, V), (A, B) in zip(pairwise(weights), pairwise(corrections), strict=True)]
    return [half + half.T for half in halves]


def _normal(weights: Sequence[np.ndarray], multipliers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """C_l = W_l Lambda_l - Lambda_{l-1} W_l, l = 1 .. L."""
    first, *others = weights
    inner = [W @ after - before @ W for W, before, after in zip(others, multipliers, multipliers[1:], strict=False)]
    return [first @ multipliers[0], *inner, -multipliers[-1] @ others[-1]]


class ProjectedSteps:
    """The steps of another integrator, one a segment, each projected before the next is taken; dense output too."""

    def __init__(self, motion: Motion, inner: Movable) -> None:
        if not motion.dynamics.keeps_imbalance:
            raise InputError(
                f"Argument `method` must not be projected: {motion.dynamics.name} does not conserve the imbalance D_l;"
                " use the method itself."
            )
        self.motion, self.inner, self.invariants = motion, inner, Invariants(motion)

    @property
    def counts(self) -> Counts:
        """The work of the method; projections use no right-hand side."""
        return self.inner.counts

    @property
    def t(self) -> float:
        """The time reached."""
        return self.inner.t

    @property
    def t1(self) -> float:
        """The time it is bound for."""
        return self.inner.t1

    def advance(self) -> Segment:
        """One step, projected."""
        segment = self.inner.advance()
        dense = _ProjectedDense(segment, self.invariants)
        state = dense.end
        self.inner.move(state)
        W = self.motion.products(state)
        return Segment(segment.times, W[None], segment.dissipated, dense)


class _ProjectedDense:
    """A step's dense output, projected; its start was projected by the step before."""

    def __init__(self, segment: Segment, invariants: Invariants) -> None:
        self.evaluate, self.invariants = segment.evaluate, invariants
        self.times = segment.times
        self.start, self.end = self.evaluate(self.times[:1])[0], self._projected(self.times[-1:])[0]

    def __call__(self, t: np.ndarray) -> np.ndarray:
        states = np.empty((len(t), len(self.end)))
        inner = (t != self.times[0]) & (t != self.times[-1])
        states[t == self.times[0]], states[t == self.times[-1]] = self.start, self.end
        if inner.any():
            states[inner] = self._projected(t[inner])
        return states

    def _projected(self, t: np.ndarray) -> list[np.ndarray]:
        return [self.invariants.project(float(u), y) for u, y in zip(t, self.evaluate(t), strict=True)]
