"""The level to expect of each law: what an undisturbed run of the same method shows on the same problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from flowsim.compression.control import imbalance_changes
from flowsim.errors import FlowsimError
from flowsim.progress import Count
from flowsim.runs.simulation import resume, simulate
from flowsim.runs.tight import ROUND_OFF, Deadline, Tight, WallLimit
from flowsim.runs.trajectory import Trajectory

MARGIN = 10.0
"""A law is broken where its residual is more than MARGIN times what an undisturbed run of the same method shows."""
LOCAL_ERRORS = 100.0
"""An error-controlled step may err by LOCAL_ERRORS times the tolerance; more is not excused by the method itself."""
NEIGHBOURS = 2
"""How many steps before and after an interval show what a method errs by there."""


class Levels:
    """A trajectory, an undisturbed run of the same method beside it, and the errors of both between checkpoints.

    Each is computed when first asked for. Raises KeyboardInterrupt and WallLimit from then.
    """

    def __init__(self, trajectory: Trajectory, deadline: Deadline, tell: Count | None = None) -> None:
        self.run, self.motion, self.method = trajectory, trajectory.simulated_motion, trajectory.method
        self.problem = self.motion.problem
        self.deadline, self.tell = deadline, tell
        kept = trajectory.checkpoints
        self.times, self.states = kept.times, kept.states
        self.whole = np.array([kept.whole(place) for place in range(len(kept.times))])
        self.end = float(self.times[-1])
        self.descends = self.method.kind.discrete
        self.steps = np.histogram(trajectory.step_time[1:], self.times)[0] if self.end else np.zeros(0)
        self.compression = np.diff(np.interp(self.times, trajectory.time, trajectory.error_estimate))
        self.tight = Tight(trajectory)
        self.done = 0

    @cached_property
    def again(self) -> Trajectory | None:
        """The same methods on the same problem from the first checkpoint, gone on with where the run was; None where it
        cannot be run again."""
        if not self.end:
            return None
        first, *later = *self.run.restarts, self.end
        try:
            again = self._simulated(
                lambda **same: simulate(
                    self.problem, self.run.methods[0], t1=first, dynamics=self.motion.dynamics, reduce="never", **same
                ),
                first,
            )
            for end, method in zip(later, self.run.methods[1:], strict=True):
                again = self._simulated(
                    lambda so_far=again, end=end, method=method, **same: resume(
                        so_far, t1=end, method=method, **same
                    ),
                    end,
                )
        except FlowsimError:
            return None
        self.advanced(len(self.times) - 1)
        return again

    def _simulated(self, simulated: Callable[..., Trajectory], end: float) -> Trajectory:
        run = simulated(save_points=self.times[self.times <= end], wall_limit=self.deadline.left, progress=self._passed)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        if run.status == "wall_limit":
            raise WallLimit
        return run

    def _passed(self, t: float, *_: float) -> None:
        if self.tell is not None:
            self.tell(int(np.searchsorted(self.times, t)), 2 * (len(self.times) - 1))

    def advanced(self, intervals: int) -> None:
        """Tell that so many more intervals are done, of two passes; of three where the run is apart from its repeat."""
        self.done += intervals
        if self.tell is not None:
            self.tell(self.done, max(2 * (len(self.times) - 1), self.done))

    @cached_property
    def missed(self) -> np.ndarray:
        """max |W(t_{k+1}) - (the tight flow from W(t_k))| over all weights, for each interval."""
        return self._errors(self.whole, np.ones(len(self.times) - 1, dtype=bool))

    def _errors(self, states: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        self.tight.afresh()
        errors = np.zeros(len(wanted))
        for k in np.flatnonzero(wanted):
            end = self.tight.end(float(self.times[k]), states[k], float(self.times[k + 1]), self.deadline)
            errors[k] = np.abs(end - states[k + 1]).max()
            self.advanced(1)
        return errors

    @cached_property
    def own(self) -> np.ndarray:
        """The errors of the undisturbed run, each the greatest within NEIGHBOURS steps: the steps of a run that was
        gone on with, or is a rounding apart, end elsewhere, and dense output is not equally accurate all along a step.

        Where both runs have the same states to round-off, they have the same error.
        """
        if self.again is None or len(self.again.checkpoints.times) != len(self.times):
            return np.full(len(self.times) - 1, np.inf)
        kept, last = self.again.checkpoints, len(self.times) - 2
        repeated = np.array([kept.whole(place) for place in range(len(kept.times))])
        apart = np.abs(repeated - self.whole).max(axis=1) > ROUND_OFF * np.abs(repeated).max(axis=1)
        apart = apart[:-1] | apart[1:]
        own = np.where(apart, self._errors(repeated, apart), self.missed)
        begun = np.searchsorted(self.again.step_time, self.times[:-1], side="right")
        ended = np.searchsorted(self.again.step_time, self.times[1:], side="left")
        first = np.searchsorted(ended, begun - NEIGHBOURS)
        beyond = np.searchsorted(begun, ended + NEIGHBOURS, side="right")
        near = [
            slice(min(a, max(k - 1, 0)), max(b, min(k + 1, last) + 1))
            for k, (a, b) in enumerate(zip(first, beyond, strict=True))
        ]
        return np.array([own[window].max() for window in near])

    @cached_property
    def tolerance(self) -> np.ndarray:
        """What a step may err by at each state: ||atol + rtol |W|||_2; at fixed steps, what they show."""
        if self.descends:
            return np.zeros(len(self.states))
        settings = self.method.settings
        if settings.step_size is not None:
            shown = float(self.own.max(initial=0.0)) * np.sqrt(self.whole.shape[1]) if self.end else 0.0
            return np.full(len(self.whole), shown)
        return np.linalg.norm(settings.atol + settings.rtol * np.abs(self.whole), axis=1)

    @cached_property
    def noise(self) -> float:
        """What the error of a step can add to sqrt(L - f*): sqrt(S / 2) times the error, S the greatest curvature."""
        if self.descends:
            return 0.0
        radius = self.tight.radius
        curvature = max(radius**2, 1.0) if self.motion.structure == "inertial" else radius
        return MARGIN * float(np.sqrt(0.5 * curvature) * self.tolerance.max())

    @cached_property
    def speed(self) -> float:
        """The greatest ||V||_F of velocities that are kept beside the weights."""
        beside = self.whole[:, self.motion.size :]
        return float(np.linalg.norm(beside, axis=1).max()) if beside.size else 0.0

    def drift(self, states: np.ndarray) -> np.ndarray:
        """||D_l - D_l(0)||_F (count, L-1) at states of what was integrated."""
        kept = self.method.remaining(self.motion, self.times)[0]
        return imbalance_changes(self.problem, self.run.reduction.network, states, kept)
