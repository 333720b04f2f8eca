"""simulate: the one place that composes problem, method, saving and stopping."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowsim.checks import as_count, as_float_array, as_number
from flowsim.errors import InputError
from flowsim.integrators import IntegrationFailure, Segment, compile_seconds, start
from flowsim.integrators.base import dissipation
from flowsim.integrators.descent import count_steps
from flowsim.losses import excess, excess_stack, minimum_of
from flowsim.methods import GradientDescent, Method, Scipy
from flowsim.network import flatten, imbalance, product, unflatten
from flowsim.problem import Problem
from flowsim.trajectory import Checkpoints, Steps, Trajectory

GROWTH_LIMIT = 1e4
"""A loss above GROWTH_LIMIT times max(L(0), f(0)) counts as diverged."""
CHECKPOINT_BYTES = 2**26
"""Checkpoints take at most about this much memory, apart from the first and the last."""

Progress = Callable[[float, float, float], None]


def simulate(
    problem: Problem,
    method: Method | None = None,
    *,
    t1: float,
    save_points: int | Sequence[float] | np.ndarray = 101,
    stop_loss: float | None = None,
    stop_gradient: float | None = None,
    max_steps: int | None = None,
    wall_limit: float | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """Gradient flow dW_l/dt = -dL/dW_l (or gradient descent) from problem.network's weights at t = 0 to t1.

    method: Scipy("DOP853") by default. save_points: how many times to save, evenly, both ends included, or the times
    themselves (0 and the end are added). stop_loss: stop when L - f* <= stop_loss (L(0) - f*); the flow's time of
    crossing is located. stop_gradient: stop when ||grad L||_F <= stop_gradient. max_steps, wall_limit (seconds): stop
    after that many accepted steps or that long. progress(t, excess, initial_excess) is called after every segment.
    Ctrl-C returns what there is.

    Gradient descent takes round(t1 / step_size) steps, saves at the nearest steps and reports the times it reached.
    Numerical failure never raises: see Trajectory.status. Raises InputError for arguments out of range.
    """
    method = Scipy() if method is None else method
    t1 = as_number(t1, "t1", above=0.0)
    if stop_loss is not None and minimum_of(problem.loss) is None:
        raise InputError("Argument `stop_loss` must be None for a loss that does not declare its `minimum`.")
    stopping = Stopping(
        None if stop_loss is None else as_number(stop_loss, "stop_loss", above=0.0) * problem.initial_excess,
        None if stop_gradient is None else as_number(stop_gradient, "stop_gradient", above=0.0),
        None if max_steps is None else as_count(max_steps, "max_steps"),
        None if wall_limit is None else clock.perf_counter() + as_number(wall_limit, "wall_limit", above=0.0),
    )
    run = _Run(problem, method, _save_times(method, t1, save_points), stopping, progress)
    return run.to_end(t1)


@dataclass(frozen=True)
class Stopping:
    """When to stop before t1: L - f* at most `level`, ||grad L|| at most `gradient`, a count of steps, a deadline."""

    level: float | None
    gradient: float | None
    max_steps: int | None
    deadline: float | None


def _save_times(method: Method, t1: float, save_points: Any) -> np.ndarray:
    if np.ndim(save_points) == 0:
        times = np.linspace(0.0, t1, as_count(save_points, "save_points", least=2))
    else:
        times = as_float_array(np.asarray(save_points), "save_points")
        if times.ndim != 1 or (np.diff(times) <= 0).any() or times[0] < 0 or times[-1] > t1:
            raise InputError("Argument `save_points` must ascend strictly within [0, t1], but it does not.")
        times = np.union1d(times, [0.0, t1])
    if isinstance(method, GradientDescent):
        steps = np.clip(np.round(times / method.step_size), 0, count_steps(method.step_size, t1))
        times = np.unique(steps) * method.step_size
    return times


@dataclass
class _Run:
    """A simulation under way. `saved` grows by whole rows, so that an interruption leaves it consistent."""

    problem: Problem
    method: Method
    save_times: np.ndarray
    stopping: Stopping
    progress: Progress | None
    status: str = ""
    detail: str = ""
    steps: int = 0
    reached: tuple[float, Segment] | None = None
    saved: list[tuple[float, np.ndarray, float, np.ndarray]] = field(default_factory=list)
    checkpoints: list[tuple[float, np.ndarray]] = field(default_factory=list)
    log: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def to_end(self, t1: float) -> Trajectory:
        compiled = compile_seconds(self.method)
        begun = clock.perf_counter()
        state = self.problem.initial_state
        integrator = start(self.problem, self.method, 0.0, state, t1)
        self._begin(state)
        try:
            while not self.status and integrator.t < integrator.t1:
                self._take(integrator.advance())
            self.status = self.status or "completed"
        except IntegrationFailure as failure:
            self.status, self.detail = "diverged", str(failure)
        except KeyboardInterrupt:
            self.status = "interrupted"
        self._save_where_it_stopped()
        elapsed, compiled = clock.perf_counter() - begun, compile_seconds(self.method) - compiled
        return self._trajectory(integrator, {"seconds": max(elapsed - compiled, 0.0), "compile_seconds": compiled})

    def _begin(self, state: np.ndarray) -> None:
        self.initial = self.problem.network.imbalances
        self.scales = [max(1.0, float(np.linalg.norm(D))) for D in self.initial]
        first = self.problem.initial_excess
        zero = excess(self.problem.loss, np.zeros(self.problem.loss.shape))
        self.limit = GROWTH_LIMIT * max(first, float(zero), np.finfo(float).tiny)
        self.stride = max(1, -(-len(self.save_times) * state.nbytes // CHECKPOINT_BYTES))
        self.log.append((np.zeros(1), np.array([first]), np.zeros(1)))
        self._save(0.0, state)
        if self.stopping.level is not None and first <= self.stopping.level:
            self.status = "converged"

    def _take(self, segment: Segment) -> None:
        """Record a segment up to where it has to stop, if anywhere in it."""
        with np.errstate(over="ignore", invalid="ignore"):
            losses = excess_stack(self.problem.loss, segment.products)
        count, end, status = self._first_stop(segment, losses)
        times = segment.times[1 : count + 1].copy()
        losses, dissipated = losses[:count].copy(), segment.dissipated[:count].copy()
        if count and end < times[-1]:
            times[-1] = end
            losses[-1] = excess(self.problem.loss, self._product(segment.evaluate(end)))
            dissipated[-1] = dissipation(self.problem, segment.evaluate, float(segment.times[count - 1]), end)
        due = self.save_times[(self.save_times > self.saved[-1][0]) & (self.save_times <= end * (1 + 1e-14))]
        for t in due:
            self._save(float(t), segment.evaluate(float(t)))
        self.log.append((times, losses, dissipated))
        self.steps += count
        self.status = status
        if count:
            self.reached = end, segment
        if self.progress is not None and count:
            self.progress(end, float(losses[-1]), float(self.log[0][1][0]))

    def _save_where_it_stopped(self) -> None:
        if self.reached is not None and self.saved[-1][0] < self.reached[0]:
            t, segment = self.reached
            self._save(t, segment.evaluate(t))

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
                if np.linalg.norm(self.problem.velocity(segment.evaluate(float(t)))) <= self.stopping.gradient:
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
            value = float(excess(self.problem.loss, self._product(segment.evaluate(t))))
            return float(np.log(max(value, np.finfo(float).tiny) / level))

        if above(left) <= 0 or above(right) >= 0:
            return right
        return float(brentq(above, left, right, xtol=1e-14 * right, rtol=1e-14))

    def _product(self, state: np.ndarray) -> np.ndarray:
        network = self.problem.network
        return product(unflatten(state, network.dims), network.scale)

    def _save(self, t: float, state: np.ndarray) -> None:
        weights = unflatten(state, self.problem.network.dims)
        W, gradients = self.problem.gradients(weights)
        with np.errstate(over="ignore", invalid="ignore"):
            drift = [
                np.linalg.norm(imbalance(weights, layer) - D) / scale
                for layer, (D, scale) in enumerate(zip(self.initial, self.scales, strict=True), start=1)
            ]
        row = (t, np.asarray(excess(self.problem.loss, W)), float(np.linalg.norm(flatten(gradients))), np.array(drift))
        if len(self.saved) % self.stride == 0:
            self.checkpoints.append((t, state))
        self.final = t, state
        self.saved.append(row)

    def _trajectory(self, integrator: Any, seconds: dict[str, float]) -> Trajectory:
        if self.checkpoints[-1][0] < self.final[0]:
            self.checkpoints.append(self.final)
        time, losses, norms, drift = (np.array(column) for column in zip(*self.saved, strict=True))
        step_time, step_excess, dissipated = (np.concatenate(column) for column in zip(*self.log, strict=True))
        counts = integrator.counts
        return Trajectory(
            problem=self.problem,
            method=self.method,
            status=self.status,
            detail=self.detail,
            time=time,
            excess=losses,
            gradient_norm=norms,
            imbalance_drift=drift,
            steps=Steps(step_time, step_excess, np.cumsum(dissipated)),
            checkpoints=Checkpoints(*(np.array(column) for column in zip(*self.checkpoints, strict=True))),
            stats={"steps": self.steps, **seconds, **vars(counts)},
        )
