"""Gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

from flowsim.checks import as_choice, as_count, as_number
from flowsim.dynamics import GradientFlow
from flowsim.errors import InputError
from flowsim.methods.base import ATOL, RTOL, Kind, Method
from flowsim.methods.schedules import Clock, Schedule, as_schedule

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class GradientDescent(Method):
    """W_l <- W_l - step_size dL/dW_l; step k is time t = k step_size.

    momentum mu: V_l <- mu V_l + dL/dW_l from V_l = 0, W_l <- W_l - step_size V_l (the heavy ball of Polyak 1964); with
    nesterov W_l <- W_l - step_size (dL/dW_l + mu V_l): the steps of torch.optim.SGD. A step goes 1 / (1 - mu) times as
    far in the end: k steps are like a time k step_size / (1 - mu) of the flow. Momentum conserves no D_l, and no
    certificate is on it.

    schedule: step k has the size step_size times its factor k, of a Schedule (Cosine, StepDecay, WarmUp), or a function
    of k; the time is then the sum of the step sizes. batch_size, label_noise: the gradient of step k is that of a
    batch of the samples (rows of the data, or entries of the target), times their number over the batch's, and the
    labels are Y + label_noise xi_k with standard normal xi_k; both are functions of (seed, k) alone, so that a run gone
    on with, and the other backend, draw the same. Batches pass through the samples, in a new order each time;
    independent_batches: each is drawn anew from all of them. See flowsim.losses.samples.Batches; of weight decay see
    Problem.

    backend "numpy" is a plain loop, "jax" a compiled scan. Raises InputError unless step_size > 0, 0 <= momentum < 1,
    and for nesterov without momentum; simulate for a loss without samples, where they are asked for.

    Until a given time the imbalance drifts in proportion to the step size; the flow conserves it:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> coarse, fine = (fs.simulate(problem, fs.GradientDescent(eta), t1=2.0) for eta in (0.01, 0.005))
    >>> coarse.stats["steps"], fine.stats["steps"]
    (200, 400)
    >>> round(float(coarse.imbalance_drift.max() / fine.imbalance_drift.max()), 1)
    2.0
    """

    step_size: float
    backend: Literal["numpy", "jax"] = "numpy"
    momentum: float = 0.0
    nesterov: bool = False
    schedule: Schedule | Callable[[int], float] | str | None = None
    batch_size: int | None = None
    label_noise: float = 0.0
    seed: int = 0
    independent_batches: bool = False

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)
        as_choice(self.backend, "backend", ("numpy", "jax"))
        if as_number(self.momentum, "momentum", least=0.0, most=1.0) == 1.0:
            raise InputError("Argument `momentum` must be less than 1, or nothing ever slows down; 0.9 is usual.")
        if self.nesterov not in (True, False):
            raise InputError(f"Argument `nesterov` must be True or False, but it is {self.nesterov!r}.")
        if self.nesterov and not self.momentum:
            raise InputError("Argument `nesterov` must not be True without momentum; give momentum too.")
        object.__setattr__(self, "schedule", as_schedule(self.schedule))
        if self.batch_size is not None:
            as_count(self.batch_size, "batch_size")
        as_number(self.label_noise, "label_noise", least=0.0)
        as_count(self.seed, "seed", least=0)
        if self.independent_batches not in (True, False) or (self.independent_batches and self.batch_size is None):
            raise InputError("Argument `independent_batches` must be True or False, and False without batch_size.")
        if self.independent_batches not in (True, False) or (self.independent_batches and self.batch_size is None):
            raise InputError("Argument `independent_batches` must be True or False, and False without batch_size.")

    @property
    def name(self) -> str:
        """The method's name in tables."""
        return "gd"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return Kind(1, True, "gradient descent with a fixed step size", adaptive=False, discrete=True)

    @property
    def compression_tolerances(self) -> tuple[float, float]:
        """Descent has no tolerances of its own: its compression error is held to the default ones of the flow."""
        return RTOL, ATOL

    @property
    def plain_step_size(self) -> float | None:
        """step_size; None with momentum, a schedule, batches or noise."""
        plain = not (self.momentum or self.schedule or self.stochastic)
        return self.step_size if plain else None

    @property
    def stochastic(self) -> bool:
        """With batches or label noise."""
        return self.batch_size is not None or self.label_noise > 0

    def for_member(self, k: int) -> GradientDescent:
        """With the seed seed + k, where batches or noise need one."""
        return replace(self, seed=self.seed + k) if self.stochastic else self

    @cached_property
    def clock(self) -> Clock:
        """The times of its steps."""
        return Clock(self.step_size, cast("Schedule | Callable[[int], float] | None", self.schedule))

    @property
    def edge(self) -> float | None:
        """The curvature beyond which steps on a quadratic grow: 2 (1 + mu) / step_size, nesterov: that over 1 + 2 mu;
        None with a schedule.

        Of v <- mu v + s w, w <- w - v (s = step_size times the curvature) the eigenvalues solve
        z^2 - (1 + mu - s) z + mu = 0, and with nesterov z^2 - (1 + mu)(1 - s) z + mu (1 - s) = 0: one is -1 there.
        """
        if self.schedule is not None:
            return None
        return 2 * (1 + self.momentum) / (self.step_size * (1 + 2 * self.momentum * self.nesterov))

    @property
    def carries(self) -> bool:
        """With momentum."""
        return self.momentum > 0

    @property
    def gain(self) -> float:
        """A wrong gradient moves the weights 1 / (1 - momentum) times as far in the end."""
        return 1 / (1 - self.momentum)

    @property
    def side_by_side(self) -> bool:
        """As one loop over a stack, by the jax backend, where it is plain."""
        return self.backend == "jax" and self.plain_step_size is not None

    def remaining(self, motion: Motion, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, v) of the motion after the steps until t, from (1, 0), of the gradient x q, x the weight decay.

        Without momentum prod (1 - step_size x). Between steps straight lines.
        """
        import numpy as np

        x, t = motion.problem.weight_decay, np.asarray(t, float)
        if not x:
            return np.ones_like(t), np.zeros_like(t)
        last = int(np.max(self.clock.nearest(t)))
        last += bool(np.max(t) > self.clock.times(last, 0)[0] * (1 + 1e-12))  # between two steps
        pairs = self._decayed.setdefault(x, [(1.0, 0.0)])
        ahead = self.momentum * self.nesterov
        for size in self.clock.sizes(0, last)[len(pairs) - 1 :]:
            q, v = pairs[-1]
            v = self.momentum * v + x * q
            pairs.append((q - size * (x * q + ahead * v if self.nesterov else v), v))
        q, v = np.array(pairs[: last + 1]).T
        times = self.clock.times(0, last)
        return np.interp(t, times, q), np.interp(t, times, v)

    @cached_property
    def _decayed(self) -> dict[float, list[tuple[float, float]]]:
        """Weight decay -> (q, v) after 0, 1, 2, ... steps, as far as was asked for."""
        return {}

    def compile_seconds(self) -> float:
        """Seconds spent compiling so far, by the jax backend."""
        if self.backend == "numpy":
            return 0.0
        from flowsim.methods.jax_support import compile_seconds

        return compile_seconds()

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """Many steps a segment."""
        if not isinstance(motion.dynamics, GradientFlow):
            raise InputError(
                f"Argument `dynamics` must be gradient flow, which descent discretises, but it is"
                f" {motion.dynamics.name}; momentum= gives descent momentum."
            )
        from flowsim.methods.descent_steps import CompiledDescent, Descent

        return (CompiledDescent if self.backend == "jax" else Descent)(motion.problem, self, t, state, t1)
