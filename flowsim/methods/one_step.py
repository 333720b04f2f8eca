"""An integrator for any rule that takes one step of a given length: for methods of one's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowsim.dynamics import Motion, as_motion
from flowsim.methods.steps import CountingVelocity, Counts, IntegrationFailure, Segment, dissipation

Rule = Callable[[Callable[[np.ndarray], np.ndarray], np.ndarray, float], np.ndarray]
"""(F, y, h) -> the state a step h after y, of dy/dt = F(y). Where F depends on t, t is the last entry of y."""


class FixedSteps:
    """Steps of one length by a rule, one a segment; the last one ends at t1.

    Between the ends of a step the state is the cubic that has their values and derivatives: of order 4, no more.
    Raises IntegrationFailure where a step ends at a state that is not finite.
    """

    def __init__(self, motion: Motion, rule: Rule, step_size: float, t: float, state: np.ndarray, t1: float) -> None:
        self.motion, self.rule, self.h = as_motion(motion), rule, step_size
        self.begun, self.taken, self.t, self.t1 = t, 0, t, t1
        self.counts = Counts()
        self.velocity = CountingVelocity(self.motion, self.counts)
        self.move(state)

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached."""
        self.state, self.speed = state, self.velocity(self.t, state)

    def advance(self) -> Segment:
        """One step."""
        from scipy.interpolate import CubicHermiteSpline

        self.taken += 1
        start, before = self.t, (self.state, self.speed)
        end = self.begun + self.taken * self.h
        end = self.t1 if end > self.t1 * (1 - 1e-12) else end
        state = self._step(start, end - start)
        if not np.isfinite(state).all():
            raise IntegrationFailure(f"The step from t = {start:.6g} ended at a state that is not finite.")
        self.t = end
        self.move(state)
        dense = CubicHermiteSpline([start, end], np.stack([before[0], self.state]), np.stack([before[1], self.speed]))
        spent = dissipation(self.motion, dense, start, end)
        return Segment(np.array([start, end]), self.motion.products(state)[None], np.array([spent]), dense)

    def _step(self, t: float, h: float) -> np.ndarray:
        if self.motion.autonomous:
            return self.rule(lambda y: self.velocity(t, y), self.state, h)

        def clocked(z: np.ndarray) -> np.ndarray:
            return np.append(self.velocity(float(z[-1]), z[:-1]), 1.0)

        return self.rule(clocked, np.append(self.state, t), h)[:-1]
