"""Solves far tighter than a run, by a method fit for its problem, within a few times the run's work."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from flowsim.methods import LEAST_RTOL, RKC, GaussLegendre, KrylovBDF, Scipy
from flowsim.methods.steps import STABILITY_GRADIENTS, Reusable, Segment

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory

ROUND_OFF = 1e-12
"""Relative to the weights, or to what a law compares: the least error that a solve is taken to have."""
TIGHTER = {"DOP853": 1e-3, "Radau": 1e-2, "gauss-legendre-4": 1e-2, "rkc": 1e-2, "krylov-bdf": 1e-2}
"""The tolerance over the run's: an order of magnitude costs orders 8, 5, 8 and 2 a factor 1.3, 1.8, 1.3 and 1.5, and
krylov-bdf, mostly of order 5, a factor 1.5 or less: steps that are shorter take fewer products."""
LEAST_ATOL = 1e-15
FEW_WEIGHTS = 300
"""Up to this many weights a dense Jacobian is factored in milliseconds: Radau."""
TOO_MANY = 3.0
"""Where stability asks DOP853 for more than TOO_MANY times the right-hand sides of the run, the problem is stiff."""
LOOKED_AT, ITERATIONS = 5, 20
"""Checkpoints at which the spectral radius is sought, and power iterations at each."""


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """||one - other||_2 of two states, and what rounding leaves unknown of it."""
    return float(np.linalg.norm(one - other)) + ROUND_OFF * float(np.linalg.norm(other))


class WallLimit(Exception):
    """The deadline of a piece of work has passed."""


class Deadline:
    """A limit on seconds, looked at after every step."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else clock.perf_counter() + seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left, a little more than 0; None where there is no limit."""
        return None if self.end is None else max(self.end - clock.perf_counter(), 1e-9)

    def look(self) -> None:
        """Raise WallLimit where it has passed."""
        if self.end is not None and clock.perf_counter() > self.end:
            raise WallLimit


class Tight:
    """The flow of the problem that a run integrated, from any of its states, far tighter than the run.

    What limits the steps decides on the method. Where stability lets DOP853 do with a few times the right-hand sides of
    the run, DOP853; else the problem is stiff: Radau with the exact Jacobian for at most FEW_WEIGHTS weights or where
    the run itself factored Jacobians; krylov-bdf where the run was made by it or by auto, Gauss-Legendre collocation
    (matrix free) where it was made by that, RKC where it was explicit. Steps go on from state to state with the sizes
    and factors of the last ones.
    """

    def __init__(self, run: Trajectory, tighter: float = 1.0) -> None:
        self.run, self.motion, self.tighter = run, run.simulated_motion, tighter
        self.span = float(run.time[-1])
        self.integrator: Reusable | None = None
        self.longest = 0.0

    @cached_property
    def method(self) -> Scipy | GaussLegendre | RKC | KrylovBDF:
        """The method, at a tolerance so much below the run's."""
        chosen = self._fit()
        settings = self.run.method.settings
        if getattr(settings, "step_size", 0.0) is not None:  # fixed steps have no tolerance: as far below the default
            settings = Scipy()
        share = TIGHTER[chosen.name] * self.tighter
        rtol = max(settings.rtol * share, 10 * LEAST_RTOL)
        atol = max(settings.atol * share, LEAST_ATOL)
        fit: Scipy | GaussLegendre | RKC | KrylovBDF = replace(chosen, rtol=rtol, atol=atol)
        return fit

    def _fit(self) -> Scipy | GaussLegendre | RKC | KrylovBDF:
        stats, kind = self.run.stats, self.run.method.kind
        work = stats["rhs_evaluations"] or 10 * stats["steps"]
        if STABILITY_GRADIENTS * self.radius * self.span <= TOO_MANY * work:
            return Scipy("DOP853")
        if self.motion.initial_state.size <= FEW_WEIGHTS or kind.dense_jacobian:
            return Scipy("Radau")
        if self.motion.structure == "general":
            return Scipy("DOP853")
        if kind.order is None and self.motion.structure == "gradient":
            return KrylovBDF()
        return GaussLegendre() if kind.matrix_free or self.motion.structure == "inertial" else RKC()

    @cached_property
    def radius(self) -> float:
        """The greatest eigenvalue of the Jacobian, in size, at a few checkpoints: of gradient flow ||Hess L||."""
        kept = self.run.checkpoints
        chosen = np.unique(np.linspace(0, len(kept.times) - 1, LOOKED_AT).astype(int))
        return max(self.motion.radius(float(kept.times[k]), kept.whole(k), _spectral_norm) for k in chosen)

    def afresh(self) -> None:
        """Forget steps and factors: the next solve begins anew."""
        self.integrator = None

    def end(self, t: float, state: np.ndarray, t1: float, deadline: Deadline) -> np.ndarray:
        """The state at t1 of the flow from (t, state). Raises WallLimit, IntegrationFailure."""
        for segment in self.segments(t, state, t1, deadline):
            last = segment
        return last.evaluate(last.times[-1:])[0]

    def segments(self, t: float, state: np.ndarray, t1: float, deadline: Deadline) -> Iterator[Segment]:
        """The steps of the flow from (t, state) to t1. Raises WallLimit, IntegrationFailure."""
        if self.integrator is None:
            self.integrator = cast(Reusable, self.method.start(self.motion, t, state, t1))
        else:
            self.integrator.resume(t, state, t1, self.longest)
        integrator, self.longest = self.integrator, 0.0
        while integrator.t < t1:
            segment = integrator.advance()
            self.longest = max(self.longest, integrator.t - float(segment.times[0]))
            deadline.look()
            yield segment


def _spectral_norm(product: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    direction, value = np.random.default_rng(0).standard_normal(size), 0.0
    for _ in range(ITERATIONS):
        direction = product(direction / (np.linalg.norm(direction) or 1.0))
        value = float(np.linalg.norm(direction))
    return value
