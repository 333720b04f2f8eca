"""Step sizes that change from step to step, and the times of the steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from flowsim.checks import as_choice, as_count, as_number
from flowsim.errors import InputError
from flowsim.families import Family

MOST_STEPS = 2**53
"""Beyond, the times of successive steps are no longer told apart."""
MOST_SCHEDULED = 10**8
"""The most steps of a schedule, whose times are kept."""
BLOCK = 1024


class Schedule(Family):
    """The step size of step k over GradientDescent.step_size, k = 0, 1, ...: subclasses are frozen dataclasses.

    A subclass needs `factors`.

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import flowsim as fs
    >>> @dataclass(frozen=True)
    ... class Harmonic(fs.Schedule):
    ...     delay: float
    ...     def factors(self, k):
    ...         return self.delay / (self.delay + k)
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[1.0]])))
    >>> run = fs.simulate(problem, fs.GradientDescent(0.1, schedule=Harmonic(10.0)), t1=1.0)
    >>> np.diff(run.step_time)[:3].round(4).tolist()
    [0.1, 0.0909, 0.0833]
    """

    @abstractmethod
    def factors(self, k: np.ndarray) -> np.ndarray:
        """The factors at the numbers k of steps, finite and at least 0; from a factor 0 on there are no more steps."""

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.settings_told())})"


@dataclass(frozen=True)
class Cosine(Schedule):
    """Warm-up, then half a cosine: (k + 1) / warm_up for k < warm_up, then down to `least` at step `steps`, there on.

    Of j = (k - warm_up) / (steps - warm_up), at most 1: least + (1 - least) (1 + cos(pi j)) / 2, as
    torch.optim.lr_scheduler.CosineAnnealingLR has it (Loshchilov and Hutter, ICLR 2017, equation 5). Raises InputError
    unless 0 <= warm_up < steps and 0 <= least <= 1. With least = 0 step `steps` is the end.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> fs.Cosine(4).factors(np.arange(6)).round(3).tolist()
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    steps: int
    warm_up: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        as_count(self.steps, "steps")
        as_number(self.least, "least", least=0.0, most=1.0)
        if not 0 <= as_count(self.warm_up, "warm_up", least=0) < self.steps:
            raise InputError(f"Argument `warm_up` must be less than `steps`, {self.steps}, but it is {self.warm_up}.")

    def factors(self, k: np.ndarray) -> np.ndarray:
        """The factors at the numbers k of steps."""
        j = np.clip((k - self.warm_up) / (self.steps - self.warm_up), 0.0, 1.0)
        falling = self.least + (1 - self.least) * 0.5 * (1 + np.cos(np.pi * j))
        return np.where(k < self.warm_up, (k + 1) / max(self.warm_up, 1), falling)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """factor^(k // every): torch.optim.lr_scheduler.StepLR. Raises InputError unless every >= 1 and 0 < factor.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> fs.StepDecay(2, 0.5).factors(np.arange(5)).tolist()
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        as_count(self.every, "every")
        as_number(self.factor, "factor", above=0.0)

    def factors(self, k: np.ndarray) -> np.ndarray:
        """The factors at the numbers k of steps."""
        return self.factor ** (k // self.every).astype(float)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """(k + 1) / steps, then 1. Raises InputError unless steps >= 1.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> fs.WarmUp(4).factors(np.arange(6)).tolist()
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    steps: int

    def __post_init__(self) -> None:
        as_count(self.steps, "steps")

    def factors(self, k: np.ndarray) -> np.ndarray:
        """The factors at the numbers k of steps."""
        return np.minimum((k + 1) / self.steps, 1.0)


SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "step-decay": StepDecay, "warm-up": WarmUp}
"""name -> class; the fields are its settings, those without a default first."""


def as_schedule(value: Schedule | Callable[[int], float] | str | None) -> Schedule | Callable[[int], float] | None:
    """The schedule; of a text NAME:setting:... (cosine:1000, step-decay:100:0.5). Raises InputError.

    >>> from flowsim.methods.schedules import as_schedule
    >>> as_schedule("cosine:1000:50")
    Cosine(steps=1000, warm_up=50, least=0.0)
    """
    if not isinstance(value, str):
        if value is None or callable(value) or isinstance(value, Schedule):
            return value
        raise InputError(
            "Argument `schedule` must be a Schedule such as Cosine(1000), a function of the step's number, or a text"
            f" such as cosine:1000, but it is of type {type(value).__name__}."
        )
    name, *given = value.split(":")
    kind: Any = SCHEDULES[as_choice(name, "schedule", SCHEDULES)]
    names = [f.name for f in fields(kind)]
    try:
        numbers = [float(text) for text in given]
        return kind(*(int(x) if x.is_integer() else x for x in numbers))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"Argument `schedule` must be {name}:{':'.join(names)}, numbers, of which those with a default may be left"
            f" out, but it is {value!r}."
        ) from error


class Clock:
    """t_k, the time of step k of gradient descent: the sum of the step sizes before, k step_size without a schedule."""

    def __init__(self, step_size: float, schedule: Schedule | Callable[[int], float] | None) -> None:
        self.step_size, self.schedule = step_size, schedule
        self.table, self.own = np.zeros(1), np.zeros(0)

    def sizes(self, first: int, count: int) -> np.ndarray:
        """(count): the step sizes of steps first, first + 1, ..."""
        if self.schedule is None:
            return np.full(count, self.step_size)
        self._reach(first + count)
        return self.own[first : first + count]

    def times(self, first: int, count: int) -> np.ndarray:
        """(count + 1): t_first, ..., t_(first + count)."""
        if self.schedule is None:
            return self.step_size * np.arange(first, first + count + 1)
        self._reach(first + count)
        return self.table[first : first + count + 1]

    def times_at(self, k: np.ndarray) -> np.ndarray:
        """t_k of numbers k of steps."""
        if self.schedule is None:
            return self.step_size * k
        self._reach(int(k.max()))
        return self.table[k]

    def nearest(self, t: np.ndarray | float) -> np.ndarray:
        """The numbers of the steps whose times are nearest to t."""
        if self.schedule is None:
            return np.round(np.asarray(t) / self.step_size)
        greatest = float(np.max(t))
        while self.table[-1] < greatest:
            self._reach(2 * len(self.table) + BLOCK, greatest)
        right = np.clip(np.searchsorted(self.table, t), 1, len(self.table) - 1)
        return right - (np.asarray(t) - self.table[right - 1] < self.table[right] - np.asarray(t))

    def count(self, start: float, end: float) -> int:
        """How many steps there are from the time start to the time end, at least one. Raises InputError for less than
        half a step, more than can be told apart, or an end that the schedule never comes to."""
        if self.schedule is not None:
            found = int(self.nearest(end) - self.nearest(start))
        else:
            ratio = (end - start) / self.step_size
            if ratio > MOST_STEPS:
                raise InputError(
                    f"Argument `step_size` must be at least t1 / {MOST_STEPS:.3g}, but it is {self.step_size:g};"
                    " raise it."
                )
            found = round(ratio)
        if found < 1:
            raise InputError(
                f"Argument `t1` must be at least one step of {self.step_size:g}, but it is {end - start:g}; lower"
                " step_size."
            )
        return found

    def _reach(self, count: int, t: float | None = None) -> None:
        """Let the table have `count` steps, or as many as there are. Raises InputError where that is fewer than asked
        for, or does not come to t."""
        if len(self.own) >= count and t is None:
            return
        if count > MOST_SCHEDULED:
            raise InputError(f"Argument `schedule` must come to t1 in at most {MOST_SCHEDULED} steps; raise step_size.")
        k = np.arange(len(self.own), count)
        schedule = self.schedule
        if isinstance(schedule, Schedule):
            factors = np.asarray(schedule.factors(k), float)
        else:
            assert schedule is not None
            factors = np.array([float(schedule(int(j))) for j in k])
        if factors.shape != k.shape or not (np.isfinite(factors).all() and (factors >= 0).all()):
            raise InputError("Argument `schedule` must give a finite factor >= 0 for each step, but it does not.")
        ended = np.flatnonzero(factors == 0)
        factors = factors[: ended[0]] if len(ended) else factors
        self.own = np.append(self.own, self.step_size * factors)
        self.table = np.append(0.0, np.cumsum(self.own))
        if len(ended) and (t is None or self.table[-1] < t * (1 - 1e-12)):
            raise InputError(
                f"Argument `t1` must be at most {self.table[-1]:g}, the time that all steps of the schedule take"
                " together; lower it, or raise step_size or the schedule's steps."
            )
        if len(ended):
            self.table[-1] = max(self.table[-1], t or 0.0)
