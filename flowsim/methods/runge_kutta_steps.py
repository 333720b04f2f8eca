"""Explicit Runge-Kutta steps with the tableaux and the step-size control of scipy's RK23, RK45 and DOP853.

    K_i = F(t + c_i h, y + h sum_j a_ij K_j),  y_1 = y + h sum_i b_i K_i,  K_s = F(t + h, y_1);
everything asked of a step is a combination of its K_i: the error estimates, and dense output y + h sum_i w_i(theta) K_i
at t + theta h. Whether the K_i are vectors or thin matrices is the business of flowsim.methods.stages.
(Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, sections II.4 to II.6.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.integrate import DOP853, RK23, RK45

from flowsim.dynamics import Motion
from flowsim.methods.damped import damped, middle
from flowsim.methods.stages import Stages, ThinStages, stages_for
from flowsim.methods.steps import (
    LEAST_SPAN,
    MOST_DEFECT,
    Counts,
    IntegrationFailure,
    Segment,
    first_step,
    scale_of,
    scaled_norm,
)

if TYPE_CHECKING:
    from flowsim.methods.scipy import Scipy

SAFETY, LEAST_FACTOR, MOST_FACTOR = 0.9, 0.2, 10.0
LEAST_STEP = 10
"""So many units in the last place of t a step has at least."""
TINY = 1e-30
"""The step of a complex difference, which cancels nothing."""


class Interpolant(NamedTuple):
    """A polynomial y + h sum_i w_i(theta) K_i through a step.

    extra: (a, c) of the stages that it needs behind K_s; weights(theta): w (S, K); probe: where its slope is compared.
    """

    extra: tuple[tuple[np.ndarray, float], ...]
    weights: Callable[[np.ndarray], np.ndarray]
    probe: float


@dataclass(frozen=True, eq=False)
class Tableau:
    """a, b, c of s stages; errors: weights (s + 1) of the estimates, K_s among them; extra: (a, c) of the stages that
    dense output needs besides; order: that of the estimate; half: weights (s + 1) of a middle that damps."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    errors: tuple[np.ndarray, ...]
    extra: tuple[tuple[np.ndarray, float], ...]
    interpolation: np.ndarray
    order: int
    half: np.ndarray

    @property
    def stages(self) -> int:
        """s."""
        return len(self.b)

    @property
    def count(self) -> int:
        """How many K there are: of the stages, of the end, and of dense output; and one to look at that."""
        return self.stages + 2 + max(len(p.extra) for p in self.interpolants)

    @property
    def interpolants(self) -> tuple[Interpolant, Interpolant]:
        """The method's own, and one for steps that stability limits: it damps (flowsim.methods.damped)."""
        own = Interpolant(self.extra, self.weights, 0.5)
        return own, Interpolant(((self.half, 0.5),), lambda theta: damped(theta, self.b, self.half), 0.25)

    def error(self, norms: list[float]) -> float:
        """Of the norms of the estimates, 1 where it is the tolerance."""
        if not np.isfinite(norms).all():
            return np.inf
        if len(norms) == 1:
            return norms[0]
        fifth, third = norms  # DOP853: of order 5, corrected by one of order 3 (section II.10)
        return fifth**2 / np.hypot(fifth, 0.1 * third) if fifth or third else 0.0

    def weights(self, theta: np.ndarray) -> np.ndarray:
        """w (S, K): y(t + theta h) = y + h sum_i w_i K_i."""
        theta = np.asarray(theta)[:, None]
        if not self.extra:
            powers = theta ** np.arange(1, self.interpolation.shape[1] + 1)
            return powers @ self.interpolation.T
        end, first, last = (np.zeros(self.interpolation.shape[1]) for _ in range(3))
        end[: self.stages], first[0], last[self.stages] = self.b, 1.0, 1.0
        # y_0 + theta (F_0 + (1 - theta) (F_1 + theta (F_2 + ...)))
        nested: Any = 0.0
        parts = [end, first - end, 2 * end - first - last, *self.interpolation]
        for k, part in reversed(list(enumerate(parts))):
            nested = (nested + part) * (theta if k % 2 == 0 else 1 - theta)
        return np.asarray(nested)


MIDDLE = {"RK23": (2, 3.0), "RK45": (4, 4.0), "DOP853": (6, 7.0)}
"""(the highest order of a middle that leaves its multiples of stiff components free, how far they are to be those of
the flow: a little beyond h |lambda| where steps are stable)."""


@cache
def tableau(name: str) -> Tableau:
    """That of RK23, RK45 or DOP853."""
    solver: Any = {"RK23": RK23, "RK45": RK45, "DOP853": DOP853}[name]
    stages = len(solver.B)
    A = np.zeros((stages + 1, stages + 1))
    A[:stages, : solver.A.shape[1]], A[stages, :stages] = solver.A, solver.B
    half = middle(A, *MIDDLE[name])
    if name == "DOP853":
        extra = tuple((a[: stages + 1 + k], float(c)) for k, (a, c) in enumerate(_extra(solver)))
        return Tableau(solver.A, solver.B, solver.C, (solver.E5, solver.E3), extra, solver.D, 7, half)
    return Tableau(solver.A, solver.B, solver.C, (solver.E,), (), solver.P, solver.error_estimator_order, half)


def _extra(solver: Any) -> list[tuple[np.ndarray, float]]:
    return list(zip(solver.A_EXTRA, solver.C_EXTRA, strict=True))


class RungeKuttaSteps:
    """A method of that kind from (t, state) to t1, one accepted step a segment.

    Raises IntegrationFailure where no step size is accepted.
    """

    def __init__(self, motion: Motion, method: Scipy, t: float, state: np.ndarray, t1: float) -> None:
        self.motion, self.method, self.t, self.t1 = motion, method, t, t1
        self.tableau = tableau(method.name)
        self.counts = Counts()
        self.stages = stages_for(motion, self.tableau.count, state.size, self.counts)
        self.amplifies = False
        self.last = (t, t)
        self.waiting: tuple[np.ndarray, bool] | None = None
        self.product = self.stages.begin(t, state)
        span = t1 - t
        if method.step_size is not None:
            self.h = min(method.step_size, span)
        elif span < LEAST_SPAN:
            self.h = span
        else:
            self.h = self._first_step(span)

    def advance(self) -> Segment:
        """One step that meets the tolerance."""
        self._settle()
        t = self.t
        least = LEAST_STEP * np.spacing(t)
        self.h, rejected = max(self.h, least), False
        while True:
            if self.h < least:
                raise IntegrationFailure(f"{self.method.name} stopped at t = {t:.6g}: no step size was accepted.")
            end = min(t + self.h, self.t1)
            h = end - t
            y1, error = self._step(h)
            if self.method.step_size is not None:
                break
            factor = SAFETY * error ** (-1 / (self.tableau.order + 1)) if error > 0 else MOST_FACTOR
            if error < 1:
                self.h = h * min(MOST_FACTOR if not rejected else 1.0, factor)
                break
            self.h, rejected = h * max(LEAST_FACTOR, factor), True
        return self._accepted(end, y1)

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached; the last step's dense output stays until the next step."""
        self.waiting = state, True

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, with a step of at least that size first."""
        self.t, self.t1, self.h = t, t1, max(self.h, step)
        self.waiting = state, True

    @property
    def reached(self) -> np.ndarray:
        """The state at the time reached."""
        return self.stages.base if self.waiting is None else self.waiting[0]

    def stability_number(self) -> float:
        """h |lambda| of the last step, from its last stage and its end, both at t + h but for RK23; 0 before a step."""
        if self.waiting is None:
            return 0.0
        last = self.tableau.stages
        rows = np.zeros((2, last + 1))
        rows[0, last], rows[0, last - 1] = 1.0, -1.0
        rows[1, :last] = self.tableau.b
        rows[1, : last - 1] -= self.tableau.a[last - 1][: last - 1]
        slopes, states = self.stages.combined(rows)
        moved = float(np.linalg.norm(states))
        return float(np.linalg.norm(slopes)) / moved if moved > 0 else 0.0

    def _first_step(self, span: float) -> float:
        """As first_step, without another K_0."""
        method, order = self.method, self.tableau.order
        slope = self.stages.combined(np.ones((1, 1)))[0]

        def velocity(t: float, y: np.ndarray) -> np.ndarray:
            if y is self.stages.base:
                return slope
            self.stages.add(1, t, np.array([t - self.t]))  # an Euler step along K_0
            return self.stages.combined(np.array([[0.0, 1.0]]))[0]

        return first_step(velocity, self.t, self.stages.base, order, method.rtol, method.atol, span)

    def _step(self, h: float) -> tuple[np.ndarray, float]:
        """(the end of a step of length h, its error in units of the tolerance)."""
        table, t = self.tableau, self.t
        run_stages(self.stages, table, t, h)
        self.product = self.stages.add(table.stages, t + h, h * table.b)
        rows = np.array([np.append(table.b, 0.0), *table.errors])
        combined = self.stages.combined(h * rows)
        moved, errors = combined[0], combined[1:]
        moved += self.stages.base
        if self.method.step_size is not None:
            return moved, 0.0
        scale = scale_of(self.stages.base, moved, self.method.rtol, self.method.atol)
        scaled = np.divide(errors, scale, out=errors)
        sizes = np.sqrt(np.einsum("ki,ki->k", scaled, scaled) / scale.size)
        return moved, table.error(sizes.tolist())

    def _settle(self) -> None:
        """Stand at the end of the last step: K_0 is its K_s, or that of the state moved to."""
        if self.waiting is None:
            return
        state, moved = self.waiting
        self.waiting = None
        if moved:
            self.stages.begin(self.t, state)
        else:
            self.stages.shift(self.tableau.stages, state)

    def _accepted(self, end: float, y1: np.ndarray) -> Segment:
        table, start, h = self.tableau, self.t, end - self.t
        if self.method.step_size is not None and not np.isfinite(y1).all():
            raise IntegrationFailure(f"The step from t = {start:.6g} ended at a state that is not finite.")
        spent = h * float(table.b @ self.stages.powers(start + h * table.c))
        dense = DenseOutput(self, (start, end), (self.stages.base, y1))
        self.last, self.t, self.waiting = (start, end), end, (y1, False)
        W = self.motion.products(y1) if self.product is None else self.product
        return Segment(np.array([start, end]), W[None], np.array([spent]), dense, layers=dense.layers)


def run_stages(stages: Stages, table: Tableau, t: float, h: float) -> None:
    """K_1 .. K_{s-1} of a step of length h."""
    for i in range(1, table.stages):
        stages.add(i, t + table.c[i] * h, h * table.a[i, :i])


class DenseOutput:
    """The states at any times of a step, until the next one is taken; its ends are the steps' own values.

    Where stability limits the steps the method's own interpolant may be thousands of times less accurate than they are:
    what is stiff in the K_i is multiplied by powers of h lambda. Of that interpolant and the one that damps (which
    misses by more where accuracy limits the steps) that one is taken which is seen to solve the equation; else a
    shorter step for each time.
    """

    def __init__(
        self, steps: RungeKuttaSteps, times: tuple[float, float], ends: tuple[np.ndarray, np.ndarray]
    ) -> None:
        self.steps, self.times, self.ends = steps, times, ends
        self.h = times[1] - times[0]

    def __call__(self, t: np.ndarray) -> np.ndarray:
        inner = (t != self.times[0]) & (t != self.times[1])
        if inner.any():
            self._check_current()
        if inner.all():
            return self._within(t)
        states = np.empty((len(t), len(self.ends[1])))
        if inner.any():
            states[inner] = self._within(t[inner])
        for end, state in zip(self.times, self.ends, strict=True):
            states[t == end] = state
        return states

    def layers(self, t: np.ndarray) -> list[Any] | None:
        """The layers at the times, as stacks that are applied and not formed; None where they are no cheaper."""
        if not isinstance(self.steps.stages, ThinStages):
            return None
        self._check_current()
        return None if self.interpolant is None else self.steps.stages.layers(self._weights(self.interpolant, t))

    def _check_current(self) -> None:
        if self.steps.last != self.times or self.steps.waiting is None:
            raise IntegrationFailure("Dense output of a step was asked for after the next one was taken.")

    def _within(self, t: np.ndarray) -> np.ndarray:
        if self.interpolant is None:
            return self._shorter_steps(t)
        states = self.steps.stages.combined(self._weights(self.interpolant, t))
        states += self.ends[0]
        return states

    def _weights(self, interpolant: Interpolant, t: np.ndarray) -> np.ndarray:
        return self.h * interpolant.weights((t - self.times[0]) / self.h)

    @cached_property
    def interpolant(self) -> Interpolant | None:
        """That which solves the equation within this step: the kind that did so in the step before is tried first."""
        own, damping = self.steps.tableau.interpolants
        found = next((p for p in ((damping, own) if self.steps.amplifies else (own, damping)) if self._solves(p)), None)
        self.steps.amplifies = found is not own
        return found

    def _solves(self, interpolant: Interpolant) -> bool:
        """Whether h ||p' - F(p)|| is small at one place of the interpolant p; computes the stages that p needs."""
        table, stages, start, h = self.steps.tableau, self.steps.stages, self.times[0], self.h
        for k, (a, c) in enumerate(interpolant.extra, start=table.stages + 1):
            stages.add(k, start + c * h, h * a)
        place = interpolant.weights(np.array([interpolant.probe + TINY * 1j]))[0]
        stages.add(len(place), start + interpolant.probe * h, h * place.real)
        defect = stages.combined(h * np.append(place.imag / TINY, -1.0)[None])[0]
        method = self.steps.method
        return scaled_norm(defect, *self.ends, method.rtol, method.atol) <= MOST_DEFECT

    def _shorter_steps(self, t: np.ndarray) -> np.ndarray:
        """The method's own step from the start of this one to each time."""
        steps, table, start = self.steps, self.steps.tableau, self.times[0]
        stages = stages_for(steps.motion, table.count, len(self.ends[0]), steps.counts)
        stages.begin(start, self.ends[0])
        states = []
        for h in t - start:
            run_stages(stages, table, start, h)
            states.append(self.ends[0] + stages.combined(h * table.b[None])[0])
        return np.array(states)
