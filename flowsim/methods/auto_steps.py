"""Steps of DOP853, and of krylov-bdf where stability bounds them.

At the stability bound DOP853 takes STABILITY_GRADIENTS |lambda|_max gradients a unit of time, whatever the accuracy
asked for; krylov-bdf takes what it takes. Stiffness shows in h |lambda|, where lambda is a Rayleigh quotient of the
last two stages, both at the end of the step (Hairer and Wanner, Solving Ordinary Differential Equations II, section
IV.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flowsim.dynamics import Motion
from flowsim.errors import NumericalFailure
from flowsim.methods.krylov_bdf import KrylovBDF
from flowsim.methods.krylov_bdf_steps import KrylovBDFSteps
from flowsim.methods.runge_kutta_steps import RungeKuttaSteps
from flowsim.methods.scipy import Scipy
from flowsim.methods.steps import STABILITY_GRADIENTS, Counts, Segment, counted_product, spectral_radius

if TYPE_CHECKING:
    from flowsim.methods.auto import Auto

BOUND, EVERY, STREAK = 4.0, 4, 4
"""Stability bounds the steps where h |lambda| was beyond BOUND at STREAK looks, one in EVERY steps."""
WORTHWHILE = 3000
"""Fewer gradients than this to the end are not worth a change."""
TRIAL = 50
"""So many steps of krylov-bdf are judged at once, the first so many not at all: it begins with order 1."""


class AutoSteps:
    """The method from (t, state) to t1, one accepted step a segment."""

    def __init__(self, motion: Motion, method: Auto, t: float, state: np.ndarray, t1: float) -> None:
        self.motion, self.method, self.t1 = motion, method, t1
        self.spent = Counts(rejected_steps=None, jacobians=0)
        self.looks, self.steps = 0, 0
        self.patience: float = STREAK
        self.changes: list[float] = []
        self.inner: RungeKuttaSteps | KrylovBDFSteps = self._explicit(t, state)

    @property
    def t(self) -> float:
        """The time reached."""
        return self.inner.t

    @property
    def counts(self) -> Counts:
        """The work done so far."""
        counts = self.inner.counts
        return self.spent.plus(Counts(counts.rhs_evaluations, None, counts.jacobians or 0))

    @property
    def remark(self) -> str:
        """When krylov-bdf was at work."""
        if not self.changes:
            return ""
        ends = [*self.changes, None][: 2 * ((len(self.changes) + 1) // 2)]
        spans = [
            f"from t = {a:.4g} on" if b is None else f"from t = {a:.4g} to {b:.4g}"
            for a, b in zip(ends[::2], ends[1::2], strict=True)
        ]
        return f"Stiff: krylov-bdf took over {', '.join(spans)}."

    def advance(self) -> Segment:
        """One step that meets the tolerance."""
        self._look()
        self.steps += 1
        inner = self.inner
        if isinstance(inner, RungeKuttaSteps):
            return inner.advance()
        try:
            return inner.advance()
        except NumericalFailure:  # DOP853 goes on to the end
            self.patience = np.inf
            self._change(self._explicit(inner.t, inner.D[0]))
            return self.inner.advance()

    def _explicit(self, t: float, state: np.ndarray) -> RungeKuttaSteps:
        return RungeKuttaSteps(self.motion, Scipy("DOP853", self.method.rtol, self.method.atol), t, state, self.t1)

    def _stiff(self, t: float, state: np.ndarray) -> KrylovBDFSteps:
        return KrylovBDFSteps(self.motion, KrylovBDF(self.method.rtol, self.method.atol), t, state, self.t1)

    def _change(self, to: RungeKuttaSteps | KrylovBDFSteps) -> None:
        self.spent, self.changes = self.counts, [*self.changes, self.t]
        self.inner, self.steps, self.looks = to, 0, 0

    def _look(self) -> None:
        """Hand over, or back, where that pays; between two steps."""
        if self.motion.structure != "gradient":
            return
        inner = self.inner
        if isinstance(inner, RungeKuttaSteps):
            if self.steps % EVERY == EVERY - 1 and self._is_worthwhile(inner):
                self._change(self._stiff(inner.t, inner.reached))
            return
        if self.steps == TRIAL:
            self.mark = inner.t, inner.counts.rhs_evaluations or 0
        elif self.steps == 2 * TRIAL:
            self.steps = TRIAL
            (t, count), self.mark = self.mark, (inner.t, inner.counts.rhs_evaluations or 0)
            if (self.mark[1] - count) > self._explicit_rate(inner) * (inner.t - t):
                self.patience *= 4
                self._change(self._explicit(inner.t, inner.D[0]))

    def _is_worthwhile(self, inner: RungeKuttaSteps) -> bool:
        h = inner.last[1] - inner.last[0]
        if not h > 0 or inner.tableau.stages * (self.t1 - inner.t) < WORTHWHILE * h:
            return False
        self.looks = self.looks + 1 if inner.stability_number() > BOUND else 0
        return self.looks >= self.patience

    def _explicit_rate(self, inner: KrylovBDFSteps) -> float:
        """Gradients a unit of time of DOP853 at its stability bound."""
        state = inner.D[0]
        product = counted_product(self.motion, self.spent, inner.t, state)
        return STABILITY_GRADIENTS * spectral_radius(product, np.ones_like(state))[0]
