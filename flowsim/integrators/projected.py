"""Projection of every step onto {D_l = D_l(0) for all l}: an explicit method that keeps the invariants to round-off.

The normal space of that set at W is {C : C_l = W_l Lambda_l - Lambda_{l-1} W_l}, with symmetric multipliers Lambda_l
(h_l x h_l, l = 1 .. L-1; Lambda_0 = Lambda_L = 0): the gradients of the entries of all D_l. A Newton step adds the C
whose first-order change of D_l, C_l^T W_l + W_l^T C_l - C_{l+1} W_{l+1}^T - W_{l+1} C_{l+1}^T, is D_l(0) - D_l; the
equation for the multipliers is symmetric, positive semidefinite and consistent to first order: conjugate gradients
(Hairer, Lubich and Wanner, Geometric Numerical Integration, section IV.4, for the projection).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from flowsim.integrators.base import Counts, Movable, Segment
from flowsim.network import flatten, imbalance, product, unflatten
from flowsim.problem import Problem

MOST_NEWTON_STEPS = 6
CONJUGATE_GRADIENTS = {"rtol": 1e-6, "atol": 0.0, "maxiter": 200}
ROUND_OFF = 2 * np.finfo(float).eps


class Invariants:
    """The imbalance matrices of a network, and the nearest weights (to first order) that have them."""

    def __init__(self, problem: Problem) -> None:
        self.dims = problem.network.dims
        weights = list(problem.network.weights)
        self.targets = [imbalance(weights, layer) for layer in range(1, len(weights))]

    def project(self, state: np.ndarray) -> np.ndarray:
        """The state moved within the normal space until its imbalance is the target's, as far as round-off lets it."""
        weights, before = unflatten(state, self.dims), np.inf
        limit = ROUND_OFF * max(float(np.vdot(W, W)) for W in weights)
        for _ in range(MOST_NEWTON_STEPS):
            missed = [D - imbalance(weights, layer) for layer, D in enumerate(self.targets, start=1)]
            size = float(np.sqrt(sum(np.vdot(D, D) for D in missed)))
            if size <= limit or size > 0.5 * before or not np.isfinite(size):
                break
            weights, before = self._moved(weights, missed), size
        return flatten(weights)

    def _moved(self, weights: list[np.ndarray], missed: list[np.ndarray]) -> list[np.ndarray]:
        from scipy.sparse.linalg import LinearOperator, cg

        ends = np.cumsum([D.size for D in missed])
        shapes = [D.shape for D in missed]

        def multipliers(vector: np.ndarray) -> list[np.ndarray]:
            return [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]

        def change(vector: np.ndarray) -> np.ndarray:
            C = normal(weights, multipliers(vector))
            halves = [W.T @ A - B @ V.T for (W, V), (A, B) in zip(pairwise(weights), pairwise(C), strict=True)]
            return np.concatenate([(half + half.T).ravel() for half in halves])

        right = np.concatenate([D.ravel() for D in missed])
        operator = LinearOperator((right.size, right.size), matvec=change, dtype=np.float64)
        solution, _ = cg(operator, right, **CONJUGATE_GRADIENTS)
        return [W + C for W, C in zip(weights, normal(weights, multipliers(solution)), strict=True)]


def normal(weights: Sequence[np.ndarray], multipliers: Sequence[np.ndarray]) -> list[np.ndarray]:
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
