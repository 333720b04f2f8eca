"""A simulation under way: segments are taken, recorded, and looked at for a reason to stop."""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flowsim.errors import InputError
from flowsim.integrators import IntegrationFailure, Segment, compile_seconds, start
from flowsim.integrators.base import Counts, dissipation
from flowsim.losses import excess
from flowsim.methods import GradientDescent, Method, Projected
from flowsim.model import CompressedModel, Model, Refused, choose_model, continued
from flowsim.network import product, unflatten
from flowsim.problem import Problem
from flowsim.progress import Progress
from flowsim.simulation.arguments import Stopping
from flowsim.trajectory import Checkpoints, Reduction, Steps, Trajectory

GROWTH_LIMIT = 1e4
"""A loss above GROWTH_LIMIT times max(L(0), f(0)) counts as diverged."""
CHECKPOINT_BYTES = 2**26
"""Checkpoints take at most about this much memory, apart from the first and the last."""
UNRESOLVED = 0.1
"""A tolerance above this share of the weights' whole change is remarked on."""
RISE = 1e-3
"""A loss that ended this much higher, over its excess at the start, is remarked on."""
PENDING_BYTES = 2**22
"""Saved states wait for their diagnostics, which are computed many at once, until they take this much memory."""


@dataclass
class Run:
    """A simulation under way. What it has recorded grows by whole segments, so that an interruption leaves it whole."""

    problem: Problem
    method: Method
    save_times: np.ndarray
    stopping: Stopping
    progress: Progress | None
    model: Model = field(init=False)
    status: str = ""
    detail: str = ""
    steps: int = 0
    stride: int = 1
    saved_until: float = 0.0
    reached: tuple[float, Callable[[np.ndarray], np.ndarray]] | None = None
    pending: list[tuple[float, np.ndarray]] = field(default_factory=list)
    rows: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    checkpoints: list[tuple[float, np.ndarray]] = field(default_factory=list)
    log: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0))
    final: tuple[float, np.ndarray] = (0.0, np.zeros(0))
    spent: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "compile_seconds": 0.0})

    def to_end(self, t1: float, begin: Callable[[], tuple[float, np.ndarray]]) -> Trajectory:
        compiled = compile_seconds(self.method)
        begun = clock.perf_counter()
        t, state = begin()
        while True:
            try:
                integrator = start(self.model.problem, self.method, t, state, t1)
            except InputError as refusal:  # the model has outgrown the method
                if t == 0.0:
                    raise
                self.status, self.detail = "diverged", str(refusal)
                break
            try:
                refused = self._drive(integrator)
            except IntegrationFailure as failure:
                refused, self.status, self.detail = None, "diverged", str(failure)
            except KeyboardInterrupt:
                refused, self.status = None, "interrupted"
            self.counts = self.counts.plus(integrator.counts)
            if refused is None:
                break
            t = refused.t
            state = self._change_model(refused)
        self._save_where_it_stopped()
        self._flush()
        elapsed, compiled = clock.perf_counter() - begun, compile_seconds(self.method) - compiled
        self.spent["seconds"] += max(elapsed - compiled, 0.0)
        self.spent["compile_seconds"] += compiled
        return self._trajectory()

    def _drive(self, integrator: Any) -> Refused | None:
        """Take segments until something stops the run; a Refused where the model is too coarse to go on."""
        while not self.status and integrator.t < integrator.t1:
            segment = integrator.advance()
            refused = self._take(segment)
            if refused is not None:
                return refused
        self.status = self.status or "completed"
        return None

    def _change_model(self, refused: Refused) -> np.ndarray:
        """Go on with a finer model; what was kept so far is expressed in its coordinates."""
        self._flush()
        coarse, self.model = self.model, refused.finer
        state = coarse.convert(self.model, refused.state)
        thinner = self._stride_for(state) // self.stride or 1
        self.stride *= thinner
        self.checkpoints = [(t, coarse.convert(self.model, kept)) for t, kept in self.checkpoints[::thinner]]
        self.final = self.final[0], coarse.convert(self.model, self.final[1])
        self.reached = refused.t, lambda _: state[None]
        return state

    def _stride_for(self, state: np.ndarray) -> int:
        """One of how many saved states can be kept as a checkpoint."""
        return max(1, -(-len(self.save_times) * state.nbytes // CHECKPOINT_BYTES))

    def begin(self, reduce: str) -> tuple[float, np.ndarray]:
        """Stand at t = 0."""
        self._use(choose_model(self.problem, self.method, reduce))
        first = self.problem.initial_excess
        self.log.append((np.zeros(1), np.array([first]), np.zeros(1)))
        self._save(np.zeros(1), self.model.initial_state[None])
        if self.stopping.level is not None and first <= self.stopping.level:
            self.status = "converged"
        return 0.0, self.model.initial_state

    def go_on(self, run: Trajectory) -> tuple[float, np.ndarray]:
        """Stand at the end of a trajectory, with all that it recorded."""
        model, states = continued(run)
        self._use(model)
        steps, change = run.steps, np.diff(run.steps.dissipated, prepend=0.0)
        self.log.append((steps.time, steps.excess, change))
        self.rows.append((run.time, run.excess, run.gradient_norm, run.imbalance_change, run.error_estimate))
        self.checkpoints = list(zip(run.checkpoints.times.tolist(), states, strict=True))
        self.final = self.checkpoints[-1]
        self.saved_until, self.steps = self.final[0], run.stats["steps"]
        self.counts = Counts(**{name: run.stats[name] for name in vars(self.counts)})
        self.spent = {name: run.stats[name] for name in self.spent}
        if self.stopping.level is not None and run.excess[-1] <= self.stopping.level:
            self.status = "converged"
        return self.final

    def _use(self, model: Model) -> None:
        self.model = model
        zero = excess(self.problem.loss, np.zeros(self.problem.loss.shape))
        self.limit = GROWTH_LIMIT * max(self.problem.initial_excess, float(zero), np.finfo(float).tiny)
        self.stride = self._stride_for(model.initial_state)

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
            losses[-1] = excess(self.problem.loss, self._product(segment.evaluate(np.array([end]))[0]))
            dissipated[-1] = dissipation(self.model.problem, segment.evaluate, float(segment.times[count - 1]), end)
        due = self.save_times[(self.save_times > self.saved_until) & (self.save_times <= end * (1 + 1e-14))]
        if len(due):
            self._save(due, segment.evaluate(np.minimum(due, segment.times[-1])))
        self.log.append((times, losses, dissipated))
        self.steps += count
        self.status = status
        if count:
            self.reached = end, segment.evaluate
        if self.progress is not None and count:
            self.progress(end, float(losses[-1]), float(self.log[0][1][0]))
        return None

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
                candidates.append((int(low[0]) + 1, self._crossing(segment, int(low[0])), "converged"))
        if self.stopping.gradient is not None:
            for step, t in enumerate(segment.times[1:], start=1):
                velocity = self.model.problem.velocity(segment.evaluate(np.array([t]))[0])
                if np.linalg.norm(velocity) <= self.stopping.gradient:
                    candidates.append((step, float(t), "converged"))
                    break
        if self.stopping.max_steps is not None and self.steps + len(losses) >= self.stopping.max_steps:
            kept = self.stopping.max_steps - self.steps
            reached = segment.times[kept] >= self.save_times[-1]
            candidates.append((kept, float(segment.times[kept]), "" if reached else "step_limit"))
        first = min(candidates, key=lambda c: (c[0], c[1], not c[2]))
        if not first[2] and self.stopping.deadline is not None and clock.perf_counter() > self.stopping.deadline:
            return first[0], first[1], "" if first[1] >= self.save_times[-1] else "wall_limit"
        return first

    def _crossing(self, segment: Segment, step: int) -> float:
        """Where L - f* crosses the level within a step of the flow; the step's end for gradient descent."""
        left, right = float(segment.times[step]), float(segment.times[step + 1])
        level = self.stopping.level
        if segment.discrete or not level:
            return right
        from scipy.optimize import brentq

        def above(t: float) -> float:
            value = float(excess(self.problem.loss, self._product(segment.evaluate(np.array([t]))[0])))
            return float(np.log(max(value, np.finfo(float).tiny) / level))

        if above(left) <= 0 or above(right) >= 0:
            return right
        return float(brentq(above, left, right, xtol=1e-14 * right, rtol=1e-14))

    def _product(self, state: np.ndarray) -> np.ndarray:
        network = self.model.problem.network
        return product(unflatten(state, network.dims), network.scale)

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
        times, states = np.array([t for t, _ in self.pending]), np.array([state for _, state in self.pending])
        with np.errstate(over="ignore", invalid="ignore"):
            self.rows.append((times, *self.model.diagnose(times, states)))
        self.checkpoints += [entry for k, entry in enumerate(self.pending, before) if k % self.stride == 0]
        self.final = self.pending[-1]
        self.pending = []

    def _unresolved(self) -> str:
        """A remark where rtol, which is relative to the weights, says little of their change: very wide networks."""
        method = self.method.method if isinstance(self.method, Projected) else self.method
        rtol, (_, first), (_, last) = getattr(method, "rtol", 0.0), self.checkpoints[0], self.final
        if getattr(method, "step_size", None) is not None or len(first) != len(last):
            return ""
        change, size = float(np.linalg.norm(last - first)), float(np.linalg.norm(last))
        if not 0 < change < rtol * size / UNRESOLVED:
            return ""
        share = f"{change / size:.1e}"
        return f"The weights changed by {share} of their norm, which rtol {rtol:g} hardly resolves: lower rtol."

    def _trajectory(self) -> Trajectory:
        if self.checkpoints[-1][0] < self.final[0]:
            self.checkpoints.append(self.final)
        time, losses, norms, drift, error = (np.concatenate(column) for column in zip(*self.rows, strict=True))
        step_time, step_excess, dissipated = (np.concatenate(column) for column in zip(*self.log, strict=True))
        run = Trajectory(
            problem=self.problem,
            method=self.method,
            status=self.status,
            detail=" ".join(part for part in (self.detail, self._unresolved()) if part),
            time=time,
            excess=losses,
            gradient_norm=norms,
            imbalance_change=drift,
            steps=Steps(step_time, step_excess, np.cumsum(dissipated)),
            checkpoints=Checkpoints(*(np.array(column) for column in zip(*self.checkpoints, strict=True))),
            reduction=Reduction(
                self.model.network if isinstance(self.model, CompressedModel) else None, error, self.model.reason
            ),
            stats={"steps": self.steps, **self.spent, **vars(self.counts)},
        )
        return replace(run, detail=" ".join(part for part in (run.detail, _floor(run), _rise(run)) if part))


def _rise(run: Trajectory) -> str:
    """A remark on a loss that did not fall: from a stationary point, or by steps that are too large."""
    if run.gradient_norm[0] == 0 and run.excess[0] > 0:
        return "The gradient is 0 at the start, a stationary point: the weights do not move."
    if 0 < run.gradient_norm[0] < np.finfo(float).tiny ** 0.5 and run.excess[0] == 0:
        return "L - f* is 0 in float64 at the start, but the gradient is not: its square underflows; scale the problem."
    if run.status == "completed" and run.excess[-1] - run.excess[0] > RISE * abs(run.excess[0]):
        return f"L rose from {run.loss[0]:.4g} to {run.loss[-1]:.4g}, against the flow: lower the step size or rtol."
    return ""


def _floor(run: Trajectory) -> str:
    """A remark on a run that went on below what its tolerance resolves."""
    if run.resolved_until is None:
        return ""
    level = run.excess[-1] / run.excess[0]
    lower = "" if isinstance(run.method, GradientDescent) else ", a smaller tolerance takes it lower"
    return (
        f"From t = {run.resolved_until:.4g} on L - f* is no longer resolved but what errors leave, {level:.1e} of its"
        f" start at the end: stop_loss ends a run before{lower}."
    )
