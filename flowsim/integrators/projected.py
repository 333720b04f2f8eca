"""Projection of every step onto {D_l = D_l(0) for all l}: an explicit method that keeps the invariants to round-off.

The normal space of that set at W is {C : C_l = W_l Lambda_l - Lambda_{l-1} W_l}, with symmetric multipliers Lambda_l
(h_l x h_l, l = 1 .. L-1; Lambda_0 = Lambda_L = 0): the gradients of the entries of all D_l. A Newton step adds the
shortest C whose first-order change of D_l, C_l^T W_l + W_l^T C_l - C_{l+1} W_{l+1}^T - W_{l+1} C_{l+1}^T, is
D_l(0) - D_l; it lies in the normal space, and LSMR finds it with products only. On the core of a compressed network C
is confined to the problem's interior: the rest is joined to weights outside the core. (Projections: Hairer, Lubich and
Wanner, Geometric Numerical Integration, section IV.4; LSMR: Fong and Saunders, SIAM J. Sci. Comput. 33, 2011.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from flowsim.integrators.base import Counts, Movable, Segment
from flowsim.network import flatten, imbalance, product, unflatten
from flowsim.problem import Problem

MOST_NEWTON_STEPS = 8
LSMR = {"atol": 1e-9, "btol": 1e-7, "conlim": 0.0, "maxiter": 1000}
ROUND_OFF = 4 * np.finfo(float).eps


class Invariants:
    """The imbalance matrices of a network, and the nearest weights (to first order) that have them."""

    def __init__(self, problem: Problem) -> None:
        self.dims, self.interior = problem.network.dims, problem.interior
        weights = list(problem.network.weights)
        self.targets = [imbalance(weights, layer) for layer in range(1, len(weights))]
        self.limit = ROUND_OFF * max(float(np.vdot(W, W)) for W in weights)

    def project(self, state: np.ndarray) -> np.ndarray:
        """The state moved within the normal space until its imbalance is the target's, as far as round-off lets it."""
        weights, before = unflatten(state, self.dims), np.inf
        for _ in range(MOST_NEWTON_STEPS):
            missed = [D - imbalance(weights, layer) for layer, D in enumerate(self.targets, start=1)]
            size = float(np.sqrt(sum(np.vdot(D, D) for D in missed)))
            if size <= self.limit or size > 0.5 * before or not np.isfinite(size):
                break
            weights, before = self._moved(weights, missed), size
        return flatten(weights)

    def _moved(self, weights: list[np.ndarray], missed: list[np.ndarray]) -> list[np.ndarray]:
        from scipy.sparse.linalg import LinearOperator, lsmr

        ends = np.cumsum([D.size for D in missed])
        shapes = [D.shape for D in missed]

        def change(vector: np.ndarray) -> np.ndarray:
            C = self._confined(unflatten(vector, self.dims))
            halves = [W.T @ A - B @ V.T for (W, V), (A, B) in zip(pairwise(weights), pairwise(C), strict=True)]
            return np.concatenate([(half + half.T).ravel() for half in halves])

        def normal(vector: np.ndarray) -> np.ndarray:
            parts = (part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True))
            return flatten(self._confined(_normal(weights, [part + part.T for part in parts])))

        right = np.concatenate([D.ravel() for D in missed])
        operator = LinearOperator(
            (right.size, sum(W.size for W in weights)), matvec=change, rmatvec=normal, dtype=float
        )
        correction = unflatten(lsmr(operator, right, **LSMR)[0], self.dims)
        return [W + C for W, C in zip(weights, correction, strict=True)]

    def _confined(self, corrections: list[np.ndarray]) -> list[np.ndarray]:
        """Zero outside the interior."""
        if self.interior == self.dims:
            return corrections
        confined = []
        for C, rows, columns in zip(corrections, self.interior, self.interior[1:], strict=False):
            inner = np.zeros_like(C)
            inner[:rows, :columns] = C[:rows, :columns]
            confined.append(inner)
        return confined


def _normal(weights: Sequence[np.ndarray], multipliers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """C_l = W_l Lambda_l - Lambda_{l-1} W_l, l = 1 .. L."""
    first, *others = weights
    inner = [W @ after - before @ W for W, before, after in zip(others, multipliers, multipliers[1:], strict=False)]
    return [first @ multipliers[0], *inner, -multipliers[-1] @ others[-1]]


class ProjectedSteps:
    """The steps of another integrator, one a segment, each projected before the next is taken; dense output too."""

    def __init__(self, problem: Problem, inner: Movable) -> None:
        self.problem, self.inner, self.invariants = problem, inner, Invariants(problem)

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
        W = product(unflatten(state, self.problem.network.dims), self.problem.network.scale)
        return Segment(segment.times, W[None], segment.dissipated, dense)


class _ProjectedDense:
    """A step's dense output, projected; its start was projected by the step before."""

    def __init__(self, segment: Segment, invariants: Invariants) -> None:
        self.evaluate, self.invariants = segment.evaluate, invariants
        self.times = segment.times
        self.start, self.end = self.evaluate(self.times[:1])[0], invariants.project(self.evaluate(self.times[-1:])[0])

    def __call__(self, t: np.ndarray) -> np.ndarray:
        states = np.empty((len(t), len(self.end)))
        inner = (t != self.times[0]) & (t != self.times[-1])
        states[t == self.times[0]], states[t == self.times[-1]] = self.start, self.end
        if inner.any():
            states[inner] = [self.invariants.project(state) for state in self.evaluate(t[inner])]
        return states
