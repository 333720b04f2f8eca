"""When to save and when to stop: the arguments of simulate, checked."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowsim.checks import as_count, as_float_array, as_number, check_memory
from flowsim.errors import InputError
from flowsim.losses import minimum_of
from flowsim.methods import GradientDescent, Method
from flowsim.methods.schedules import Clock
from flowsim.problem import Problem

SAVED_BYTES = 256
"""About what a saved time takes, its checkpoint apart."""
STEP_BYTES = 48
"""About what the record of a step takes."""

ROUNDING = 4
"""So many units in the last place a time may exceed t1 by rounding."""


@dataclass(frozen=True)
class Stopping:
    """When to stop before t1: L - f* at most `level`, ||grad L|| at most `gradient`, a count of steps, a deadline."""

    level: float | None
    gradient: float | None
    max_steps: int | None
    deadline: float | None


def stopping_of(
    problem: Problem,
    stop_loss: float | None,
    stop_gradient: float | None,
    max_steps: int | None,
    wall_limit: float | None,
    taken: int = 0,
) -> Stopping:
    """The arguments of simulate, checked; max_steps beyond those taken already."""
    if stop_loss is not None and minimum_of(problem.loss) is None:
        raise InputError("Argument `stop_loss` must be None for a loss that does not declare its `minimum`.")
    with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite at the start is refused later
        level = None if stop_loss is None else as_number(stop_loss, "stop_loss", above=0.0) * problem.initial_excess
    return Stopping(
        level,
        None if stop_gradient is None else as_number(stop_gradient, "stop_gradient", above=0.0),
        None if max_steps is None else taken + as_count(max_steps, "max_steps"),
        None if wall_limit is None else clock.perf_counter() + as_number(wall_limit, "wall_limit", above=0.0),
    )


def check_steps(method: Method, t1: float, stopping: Stopping) -> None:
    """Refuse more steps of a fixed size than the memory can record, unless something may stop them before."""
    size = method.settings.step_size
    if size is None or not (stopping.level is None and stopping.gradient is None and stopping.deadline is None):
        return
    asked = t1 / size if not isinstance(method, GradientDescent) else method.clock.count(0.0, t1)
    steps = min(asked, stopping.max_steps or math.inf)
    check_memory(STEP_BYTES * steps, "step_size", f"{steps:.3g} steps", "enlarge it, lower t1 or set max_steps")


def clock_of(method: Method) -> Clock:
    """The times of the steps of gradient descent."""
    assert isinstance(method, GradientDescent)
    return method.clock


def largest_order(problem: Problem, method: Method) -> int:
    """The order of the largest matrices that a simulation works with: layers, or a Jacobian that is factored."""
    widest = max(problem.network.dims)
    return max(widest, problem.network.size) if method.kind.dense_jacobian else widest


def save_times(method: Method, t1: float, save_points: int | Sequence[float] | np.ndarray) -> np.ndarray:
    """The times that simulate saves at, 0 and t1 among them; for gradient descent the nearest steps'.

    A time that exceeds t1 by rounding alone (such as of a multiple of a step) is t1.
    """
    if np.ndim(save_points) == 0:
        count = as_count(save_points, "save_points", least=2)
        check_memory(SAVED_BYTES * count, "save_points", "as many as that", "ask for fewer")
        times = np.unique(np.linspace(0.0, t1, count))  # t1 may have no numbers in between
    else:
        times = as_float_array(save_points, "save_points")
        beyond = times.size and (times.min() < 0 or times.max() > t1 + ROUNDING * np.spacing(t1))
        if times.ndim != 1 or (np.diff(times) <= 0).any() or beyond:
            raise InputError("Argument `save_points` must ascend strictly within [0, t1], but it does not.")
        times = np.union1d(np.minimum(times, t1), [0.0, t1])
    if method.kind.discrete:
        clock = clock_of(method)
        last = clock.count(0.0, t1)
        taken = np.unique(np.clip(clock.nearest(times), 0, last)).astype(int)
        times = clock.times_at(taken)
    return times
