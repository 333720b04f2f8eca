"""Leapfrog steps of W'' + b(t) W' = -grad L: kick (V with W held, exactly), drift (W with V held), kick.

With W held V' = -G - b V has the solution V(t) = faded(s, t) V(s) - kicked(s, t) G, and loses by friction
int b |V|^2 = |V(s)|^2 / 2 - |V(t)|^2 / 2 - G . (reach(s, t) V(s) - swept(s, t) G). Time goes on in the kicks, so that
a step read backwards is a step of minus its length: the composition c = (p, p, 1 - 4 p, p, p), p = 1 / (4 - 4^(1/3)),
is of order 4, and never leaves the step, which 3 / t could not stand (Suzuki, Phys. Lett. A 146, 1990).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from flowsim.dynamics import Inertial, Motion
from flowsim.errors import InputError
from flowsim.methods.steps import Counts, IntegrationFailure, Segment

if TYPE_CHECKING:
    from flowsim.methods.leapfrog import Leapfrog

P = 1 / (4 - 4 ** (1 / 3))
COMPOSITIONS = {2: (1.0,), 4: (P, P, 1 - 4 * P, P, P)}
"""order -> the parts of a step."""


class Leaps:
    """Steps of one length, one a segment; the last one ends at t1.

    Between its ends the state is that of a shorter step from the left: it has the order and the laws of the method.
    """

    def __init__(self, motion: Motion, method: Leapfrog, t: float, state: np.ndarray, t1: float) -> None:
        if not isinstance(motion.dynamics, Inertial):
            raise InputError(
                f"Argument `method` must suit the dynamics, but {method.name} is for momentum, W'' + b(t) W' = -grad L,"
                f" and cannot take {motion.dynamics.name}; use dop853, or give dynamics HeavyBall(friction)."
            )
        self.motion, self.dynamics, self.h = motion, motion.dynamics, method.step_size
        self.parts = COMPOSITIONS[method.order]
        self.begun, self.taken, self.t, self.t1 = t, 0, t, t1
        self.counts = Counts(rhs_evaluations=0, rejected_steps=0)
        self.W, self.V = np.split(np.array(state), 2)
        self.G = self._gradient(self.W)

    def advance(self) -> Segment:
        """One step."""
        start, before = self.t, (self.W, self.V, self.G)
        self.taken += 1
        end = self.begun + self.taken * self.h
        end = self.t1 if end > self.t1 * (1 - 1e-12) else end
        with np.errstate(over="ignore", invalid="ignore"):
            self.W, self.V, self.G, spent = self._step(start, end - start, *before)
        if not (np.isfinite(self.W).all() and np.isfinite(self.V).all()):
            raise IntegrationFailure(f"The step from t = {start:.6g} ended at a state that is not finite.")
        self.t, reached = end, np.concatenate([self.W, self.V])

        def evaluate(t: np.ndarray) -> np.ndarray:
            stack = (np.broadcast_to(x, (len(t), x.size)) for x in before)
            W, V, *_ = self._step(start, np.asarray(t) - start, *stack)
            states = np.hstack([W, V])
            states[t == end] = reached
            return states

        return Segment(np.array([start, end]), self.motion.products(self.W)[None], np.array([float(spent)]), evaluate)

    def _step(
        self, t: float, h: np.ndarray | float, W: np.ndarray, V: np.ndarray, G: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps of length h from t, of a state (size) or of stacks (S, size) with h (S): W, V, grad L, what friction
        has taken."""
        now, spent = t + 0.0 * np.asarray(h), np.zeros(np.shape(h))
        for part in self.parts:
            middle, end = now + 0.5 * part * h, now + part * h
            V, lost = self._kick(V, G, now, middle)
            W = W + _column(part * h) * V
            G = self._gradient(W)
            V, more = self._kick(V, G, middle, end)
            now, spent = end, spent + lost + more
        return W, V, G, spent

    def _kick(self, V: np.ndarray, G: np.ndarray, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """V at t, and int b |V|^2."""
        d = self.dynamics
        kicked = _column(d.faded(s, t)) * V - _column(d.kicked(s, t)) * G
        moved = _column(d.reach(s, t)) * V - _column(d.swept(s, t)) * G
        lost = 0.5 * (_dot(V, V) - _dot(kicked, kicked)) - _dot(G, moved)
        return cast(np.ndarray, kicked), lost

    def _gradient(self, W: np.ndarray) -> np.ndarray:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + 1
        return -self.motion.problem.velocity(W)


def _column(x: np.ndarray | float) -> np.ndarray:
    """Numbers (...) as factors of vectors (..., size)."""
    return np.asarray(x)[..., None]


def _dot(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("...i,...i->...", X, Y))
