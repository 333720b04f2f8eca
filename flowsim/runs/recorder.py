"""The recorder of a simulation under way: it takes segments, records them, and looks for a reason to stop."""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from flowsim.compression.control import CompressedModel, FullModel, Model, Refused, choose_model, resumed_model
from flowsim.compression.outside import Outside, square_norm
from flowsim.dynamics import Motion
from flowsim.errors import InputError, NumericalFailure
from flowsim.losses import Adapted, excess
from flowsim.methods import Method
from flowsim.methods.steps import Counts, Integrator, Segment, dissipation
from flowsim.problem import Problem
from flowsim.progress import Progress
from flowsim.runs.record import Checkpoints, Reduction, Steps, Work
from flowsim.runs.remarks import remarks, stiffness
from flowsim.runs.stopping import Stopping
from flowsim.runs.trajectory import Trajectory

GROWTH_LIMIT = 1e4
"""A loss above GROWTH_LIMIT times max(L(0), f(0)) counts as diverged."""
CHECKPOINT_BYTES = 2**26
"""Checkpoints take at most about this much memory, apart from the first and the last."""
PENDING_BYTES = 2**22
"""Saved states wait for their diagnostics, which are computed many at once, until they take this much memory."""
PATIENCE, ENDLESS = 200, 1e12
"""A loss that has not fallen in PATIENCE steps ends a run that needs more than ENDLESS such steps to its end."""
FALLEN = 0.999
BELOW = 1 - 1e-12
"""A crossing is located just below its level, so that the run ends at or below it whatever the rounding."""
RECENT = 10
"""What bounds the steps is judged by the median of so many."""


def growth_limit(problem: Problem) -> float:
    """The L - f* above which a run counts as diverged."""
    with np.errstate(over="ignore", invalid="ignore"):
        zero = float(excess(problem.loss, np.zeros(problem.loss.shape)))
        zero = zero if np.isfinite(zero) else 0.0  # a user's own loss may not be defined there
        return GROWTH_LIMIT * max(problem.initial_excess, zero, float(np.finfo(float).tiny))


@dataclass
class Recorder:
    """A simulation under way. What it has recorded grows by whole segments, so that an interruption leaves it whole."""

    whole: Motion
    method: Method
    save_times: np.ndarray
    stopping: Stopping
    progress: Progress | None
    model: Model = field(init=False)
    outside: Outside = field(init=False)
    size: int = 0
    status: str = ""
    detail: str = ""
    steps: int = 0
    stride: int = 1
    saved_until: float = 0.0
    reached: tuple[float, Callable[[np.ndarray], np.ndarray]] | None = None
    pending: list[tuple[float, np.ndarray]] = field(default_factory=list)
    rows: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    checkpoints: list[tuple[float, np.ndarray]] = field(default_factory=list)
    log: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0))
    final: tuple[float, np.ndarray] = (0.0, np.zeros(0))
    mark: tuple[int, float, float] = (0, 0.0, np.inf)
    spent: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "compile_seconds": 0.0})

    @property
    def problem(self) -> Problem:
        """What was asked for."""
        return self.whole.problem

    @property
    def _motion(self) -> Motion:
        """What is integrated."""
        return self.model.motion

    def to_end(self, t1: float, begin: Callable[[], tuple[float, np.ndarray]]) -> Trajectory:
        compiled = self.method.compile_seconds()
        begun = clock.perf_counter()
        t, state = begin()
        first = t
        while not self.status:
            try:
                integrator = self.method.start(self._motion, t, state, t1)
            except InputError as refusal:  # the model has outgrown the method
                if t == first:
                    raise
                self.status, self.detail = "diverged", str(refusal)
                break
            except NumericalFailure as failure:
                self.status, self.detail = "diverged", str(failure)
                break
            try:
                refused = self._drive(integrator)
            except NumericalFailure as failure:
                refused, self.status, self.detail = None, "diverged", str(failure)
            except KeyboardInterrupt:
                refused, self.status = None, "interrupted"
            self.counts = self.counts.plus(integrator.counts)
            self.detail = " ".join(part for part in (integrator.remark, self.detail) if part)
            if refused is None:
                break
            t = refused.t
            state = self._change_model(refused)
        self._save_where_it_stopped()
        self._flush()
        elapsed, compiled = clock.perf_counter() - begun, self.method.compile_seconds() - compiled
        self.spent["seconds"] += max(elapsed - compiled, 0.0)
        self.spent["compile_seconds"] += compiled
        return self._trajectory()

    def _drive(self, integrator: Integrator) -> Refused | None:
        """Take segments until something stops the run; a Refused where the model is too coarse to go on."""
        while not self.status and integrator.t < integrator.t1:
            segment = integrator.advance()
            refused = self._take(segment)
            if refused is not None:
                return refused
            if not self.status and self._is_endless(integrator.t1):
                self.status = "step_limit"
        if self.status in ("wall_limit", "step_limit") and self.reached is not None:
            self._say_why_so_slow(integrator.t1)
        self.status = self.status or "completed"
        return None

    def _is_endless(self, t1: float) -> bool:
        """Whether the run will never end: at rest, its steps bound by stability or round-off, and t1 far away."""
        steps, t, loss = self.mark
        if self.steps < steps + PATIENCE or self.reached is None:
            return False
        now, last = self.reached[0], float(self.log[-1][1][-1])
        self.mark = self.steps, now, last
        return last >= FALLEN * loss and (t1 - now) * (self.steps - steps) > ENDLESS * (now - t)

    def _say_why_so_slow(self, t1: float) -> None:
        """Where the steps would not have been enough: how many were left, and what is made for such a problem."""
        assert self.reached is not None
        times = np.concatenate([part for part, *_ in self.log[-RECENT:]])[-RECENT - 1 :]
        if len(times) < 2:
            return
        t, h = self.reached[0], float(np.median(np.diff(times)))
        state = self._weights(self.reached[1](np.array([t]))[0])
        self.detail = stiffness(self._motion, self.method, t, state, h, t1 - t)
        if self.stopping.max_steps is None and self.status == "step_limit":
            there = f"At t = {t:.4g} the loss no longer falls, and {t1:.3g} is {(t1 - t) / h:.1e} steps away: lower t1."
            self.detail = f"{there} {self.detail}".strip()

    def _change_model(self, refused: Refused) -> np.ndarray:
        """Go on with a finer model; what was kept so far is expressed in its coordinates."""
        self._flush()
        coarse, self.model = self.model, refused.finer
        self.size = self.model.problem.network.size
        self._widen(coarse)
        state = self._converted(coarse, refused.t, refused.state)
        thinner = self._stride_for(state) // self.stride or 1
        self.stride *= thinner
        self.checkpoints = [(t, self._converted(coarse, t, kept)) for t, kept in self.checkpoints[::thinner]]
        self.final = self.final[0], self._converted(coarse, *self.final)
        self.reached = refused.t, lambda _: state[None]
        return state

    def _widen(self, coarse: Model) -> None:
        """Count the weights that a finer model adds, where they did not count before: those of a network that was drawn
        in compressed form, where weights decay."""
        before, self.outside = self.outside, Outside(self.whole, self.method, self.model.problem)
        if before.known or not self.problem.weight_decay:
            return
        before.square = square_norm(self.model.problem) - square_norm(coarse.problem)
        log: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        last = before.energy(np.zeros(1))
        for times, losses, dissipated, stored in self.log:
            energy = before.energy(times)
            log.append((times, losses, dissipated - np.diff(energy, prepend=last), stored + energy))
            last = energy[-1:]
        self.log = log
        self.rows = [
            (times, losses, np.hypot(norms, before.gradient(times)), *others)
            for times, losses, norms, *others in self.rows
        ]

    def _converted(self, coarse: Model, t: float, whole: np.ndarray) -> np.ndarray:
        """A state of a coarser model, and what is kept beside the weights, in this model's coordinates."""
        return coarse.convert(self.model, t, whole)

    def _weights(self, whole: np.ndarray) -> np.ndarray:
        """Of a state (or a stack), without what the method keeps beside them."""
        return whole[..., : self.size]

    def _stride_for(self, state: np.ndarray) -> int:
        """One of how many saved states can be kept as a checkpoint."""
        return max(1, -(-len(self.save_times) * state.nbytes // CHECKPOINT_BYTES))

    def begin(self, reduce: str) -> tuple[float, np.ndarray]:
        """Stand at t = 0."""
        self._use(choose_model(self.whole, self.method, reduce, float(self.save_times[-1])))
        self._motion.check()
        state = self._motion.initial_state
        with np.errstate(over="ignore", invalid="ignore"):
            first, gradient = self.problem.initial_excess, self._gradient_norm(state, 0.0)
        if not (np.isfinite(first) and np.isfinite(gradient)):
            raise InputError(
                "Argument `problem` must have a finite loss and gradient at its weights, but L - f* ="
                f" {first:g} and ||grad L||_F = {gradient:g} there; scale the data, the weights or their decay down."
            )
        self.log.append((np.zeros(1), np.array([first]), np.zeros(1), self._stored(np.zeros(1), state[None])))
        self._save(np.zeros(1), state[None])
        self._stop_where_it_stands(first, state, 0.0)
        return 0.0, state

    def _stop_where_it_stands(self, loss: float, state: np.ndarray, t: float) -> None:
        """Before the first step: a level that is reached already."""
        level, gradient = self.stopping.level, self.stopping.gradient
        low = level is not None and loss <= level
        if low or (gradient is not None and self._gradient_norm(state, t) <= gradient):
            self.status = "converged"

    def resume(self, run: Trajectory) -> tuple[float, np.ndarray]:
        """Stand at the end of a trajectory, with all that it recorded."""
        reduction = run.reduction
        record = run.time, run.error_estimate
        kept, beside = run.checkpoints.states, run.checkpoints.beside
        stack = np.concatenate([kept, beside]) if len(beside) else kept
        end = float(self.save_times[-1])
        model, stack = resumed_model(self.whole, self.method, reduction.network, reduction.reason, record, stack, end)
        states = np.hstack([stack[: len(kept)], stack[len(kept) :]]) if len(beside) else stack
        self._use(model)
        steps, change = run.steps, np.diff(run.steps.dissipated, prepend=0.0)
        self.log.append((steps.time, steps.excess, change, steps.stored))
        self.rows.append((run.time, run.excess, run.gradient_norm, run.imbalance_change, run.error_estimate))
        self.checkpoints = list(zip(run.checkpoints.times.tolist(), states, strict=True))
        self.final = self.checkpoints[-1]
        self.saved_until, self.steps = self.final[0], run.stats["steps"]
        work: Any = run.stats
        self.counts = Counts(**{name: work[name] for name in vars(self.counts)})
        self.spent = {name: work[name] for name in self.spent}
        self.mark = self.steps, self.final[0], np.inf
        self._stop_where_it_stands(float(run.excess[-1]), self.final[1], self.final[0])
        return self.final

    def _use(self, model: Model) -> None:
        self.model, self.size = model, model.problem.network.size
        self.outside = Outside(self.whole, self.method, model.problem)
        self.limit = growth_limit(self.problem)
        if isinstance(self.problem.stacked_loss, Adapted):
            self.problem.stacked_loss.failure = None
        self.stride = self._stride_for(model.motion.initial_state)

    def _take(self, segment: Segment) -> Refused | None:
        """Record a segment up to where it has to stop, if anywhere in it, unless the model is too coarse for it."""
        with np.errstate(over="ignore", invalid="ignore"):
            losses = self.problem.excess(segment.products)
        count, end, status = self._first_stop(segment, losses)
        if count:
            refused = self.model.watch(segment, count, end)
            if refused is not None:
                return refused
        times = segment.times[1 : count + 1].copy()
        losses, dissipated = losses[:count].copy(), segment.dissipated[:count].copy()
        if count and end < times[-1]:
            times[-1] = end
            losses[-1] = self._excess(segment.evaluate(np.array([end]))[0], end)
            dissipated[-1] = dissipation(self._motion, segment.evaluate, float(segment.times[count - 1]), end)
        if count and self.outside.counts:
            dissipated -= np.diff(self.outside.energy(np.append(segment.times[0], times)))
        due = self.save_times[(self.save_times > self.saved_until) & (self.save_times <= end * (1 + 1e-14))]
        if len(due):
            self._save_from(segment, due)
        self.log.append((times, losses, dissipated, self._stored_along(segment, times)))
        self.steps += count
        self.status = status
        if count:
            self.reached = end, segment.evaluate
        if self.progress is not None and count:
            self.progress(end, float(losses[-1]), float(self.log[0][1][0]))
        return None

    def _stored_along(self, segment: Segment, times: np.ndarray) -> np.ndarray:
        """The energy beyond L - f* at the ends of steps."""
        return self._stored(times, segment.evaluate(times)) if self._motion.stores else np.zeros(len(times))

    def _stored(self, times: np.ndarray, states: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            inside = self._motion.stored(times, states[:, : self._motion.initial_state.size])
            return inside + self.outside.energy(times)

    def _save_where_it_stopped(self) -> None:
        if self.reached is not None and self.saved_until < self.reached[0]:
            t, evaluate = self.reached
            self._save(np.array([t]), evaluate(np.array([t])))

    def _first_stop(self, segment: Segment, losses: np.ndarray) -> tuple[int, float, str]:
        """(steps to keep, time to end at, status): status is empty where nothing stops the run."""
        candidates = [(len(losses), float(segment.times[-1]), "")]
        bad = np.flatnonzero(~(np.isfinite(losses) & (losses <= self.limit)))
        if len(bad):
            kept = int(bad[0])
            candidates.append((kept, float(segment.times[kept]), "diverged"))
        if self.stopping.level is not None:
            low = np.flatnonzero(losses <= self.stopping.level)
            if len(low):
                crossing = self._crossing(segment, int(low[0]), self._excess, self.stopping.level)
                candidates.append((int(low[0]) + 1, crossing, "converged"))
        if self.stopping.gradient is not None:
            ends = segment.times[1:]
            for step, state in enumerate(segment.evaluate(ends)):
                if self._gradient_norm(state, float(ends[step])) <= self.stopping.gradient:
                    crossing = self._crossing(segment, step, self._gradient_norm, self.stopping.gradient)
                    candidates.append((step + 1, crossing, "converged"))
                    break
        if self.stopping.max_steps is not None and self.steps + len(losses) >= self.stopping.max_steps:
            kept = self.stopping.max_steps - self.steps
            reached = segment.times[kept] >= self.save_times[-1]
            candidates.append((kept, float(segment.times[kept]), "" if reached else "step_limit"))
        first = min(candidates, key=lambda c: (c[0], c[1], not c[2]))
        if not first[2] and self.stopping.deadline is not None and clock.perf_counter() > self.stopping.deadline:
            return first[0], first[1], "" if first[1] >= self.save_times[-1] else "wall_limit"
        return first

    def _crossing(
        self, segment: Segment, step: int, measure: Callable[[np.ndarray, float], float], level: float
    ) -> float:
        """Where a measure of the state crosses the level within a step of the flow; the step's end for descent."""
        left, right = float(segment.times[step]), float(segment.times[step + 1])
        if segment.discrete or not level:
            return right
        from scipy.optimize import brentq

        def above(t: float) -> float:
            value = measure(segment.evaluate(np.array([t]))[0], t)
            return float(np.log(max(value, np.finfo(float).tiny) / (level * BELOW)))

        if above(left) <= 0 or above(right) >= 0:
            return right
        return float(brentq(above, left, right, xtol=1e-14 * right, rtol=1e-14))

    def _excess(self, state: np.ndarray, t: float) -> float:
        return float(self.problem.excess(self.model.problem.products(self._weights(state))))

    def _gradient_norm(self, state: np.ndarray, t: float) -> float:
        inside = np.linalg.norm(self.model.problem.velocity(self._weights(state)))
        return float(np.hypot(inside, self.outside.gradient(t)))

    def _save_from(self, segment: Segment, due: np.ndarray) -> None:
        """Save at times of a segment; where its layers can be applied without being formed, form checkpoints only."""
        times = np.minimum(due, segment.times[-1])
        model = self.model
        layers = segment.layers(times) if isinstance(model, FullModel) and model.takes_layers else None
        if layers is None or not isinstance(model, FullModel):
            self._save(due, segment.evaluate(times))
            return
        self._flush()
        before = sum(len(row[0]) for row in self.rows)
        with np.errstate(over="ignore", invalid="ignore"):
            self.rows.append((due, *model.diagnose_layers(due, layers)))
        kept = [k for k in range(len(due)) if (before + k) % self.stride == 0 or k == len(due) - 1]
        states = segment.evaluate(times[kept])
        found = list(zip(due[kept].tolist(), states, strict=True))
        self.checkpoints += [entry for k, entry in zip(kept, found, strict=True) if (before + k) % self.stride == 0]
        self.final, self.saved_until = found[-1], float(due[-1])

    def _save(self, times: np.ndarray, states: np.ndarray) -> None:
        self.pending += zip(times.tolist(), states, strict=True)
        self.saved_until = float(times[-1])
        if len(self.pending) * states[0].nbytes >= PENDING_BYTES:
            self._flush()

    def _flush(self) -> None:
        """The diagnostics of the states that wait for them."""
        if not self.pending:
            return
        before = sum(len(row[0]) for row in self.rows)
        times = np.array([t for t, _ in self.pending])
        states = np.array([self._weights(state) for _, state in self.pending])
        with np.errstate(over="ignore", invalid="ignore"):
            losses, norms, *others = self.model.diagnose(times, states)
            self.rows.append((times, losses, np.hypot(norms, self.outside.gradient(times)), *others))
        self.checkpoints += [entry for k, entry in enumerate(self.pending, before) if k % self.stride == 0]
        self.final = self.pending[-1]
        self.pending = []

    def _failure(self) -> str:
        """What a user's own loss failed by, where the run ended for it."""
        loss = self.problem.stacked_loss
        return (loss.failure or "") if self.status == "diverged" and isinstance(loss, Adapted) else ""

    def _kept(self) -> Checkpoints:
        size = self.size
        times, states = zip(*self.checkpoints, strict=True)
        longest = max(map(len, states))
        whole = np.zeros((len(states), longest))  # no momentum at the start
        for row, state in zip(whole, states, strict=True):
            row[: len(state)] = state
        return Checkpoints(np.array(times), whole[:, :size], whole[:, size:] if longest > size else np.zeros((0, 0)))

    def _trajectory(self) -> Trajectory:
        if self.checkpoints[-1][0] < self.final[0]:
            self.checkpoints.append(self.final)
        time, losses, norms, drift, error = (np.concatenate(column) for column in zip(*self.rows, strict=True))
        step_time, step_excess, dissipated, stored = (np.concatenate(column) for column in zip(*self.log, strict=True))
        run = Trajectory(
            problem=self.problem,
            method=self.method,
            dynamics=self.whole.dynamics,
            status=self.status,
            detail=" ".join(part for part in (self.detail, self._failure()) if part),
            time=time,
            excess=losses,
            gradient_norm=norms,
            imbalance_change=drift,
            steps=Steps(step_time, step_excess, np.cumsum(dissipated), stored),
            checkpoints=self._kept(),
            reduction=Reduction(
                self.model.network if isinstance(self.model, CompressedModel) else None, error, self.model.reason
            ),
            stats=cast(Work, {"steps": self.steps, **self.spent, **vars(self.counts)}),
        )
        return replace(run, detail=" ".join(part for part in (run.detail, remarks(run)) if part))
