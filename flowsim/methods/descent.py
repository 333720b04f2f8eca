"""Gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flowsim.checks import as_choice, as_number
from flowsim.dynamics import GradientFlow
from flowsim.errors import InputError
from flowsim.methods.base import ATOL, RTOL, Kind, Method

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

    backend "numpy" is a plain loop, "jax" a compiled scan. Raises InputError unless step_size > 0, 0 <= momentum < 1,
    and for nesterov without momentum.

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

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)
        as_choice(self.backend, "backend", ("numpy", "jax"))
        if as_number(self.momentum, "momentum", least=0.0, most=1.0) == 1.0:
            raise InputError("Argument `momentum` must be less than 1, or nothing ever slows down; 0.9 is usual.")
        if self.nesterov not in (True, False):
            raise InputError(f"Argument `nesterov` must be True or False, but it is {self.nesterov!r}.")
        if self.nesterov and not self.momentum:
            raise InputError("Argument `nesterov` must not be True without momentum; give momentum too.")

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
        """Without momentum, step_size."""
        return None if self.momentum else self.step_size

    @property
    def edge(self) -> float:
        """The curvature beyond which steps on a quadratic grow: 2 (1 + mu) / step_size, nesterov: that over 1 + 2 mu.

        Of v <- mu v + s w, w <- w - v (s = step_size times the curvature) the eigenvalues solve
        z^2 - (1 + mu - s) z + mu = 0, and with nesterov z^2 - (1 + mu)(1 - s) z + mu (1 - s) = 0: one is -1 there.
        """
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
        """As one loop over a stack, by the jax backend, without momentum."""
        return self.backend == "jax" and not self.momentum

    def remaining(self, motion: Motion, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, v) of the motion after t / step_size steps from (1, 0), by powers of a matrix: the gradient is x q.

        Without momentum (1 - step_size weight_decay)^k. Between steps straight lines.
        """
        import numpy as np

        x, eta, mu = motion.problem.weight_decay, self.step_size, self.momentum
        k = np.asarray(t, float) / eta
        if not x:
            return np.ones_like(k), np.zeros_like(k)
        ahead = x + mu * x if self.nesterov else x  # of the gradient, in the step
        kept = mu**2 if self.nesterov else mu  # of the momentum
        step = np.array([[1 - eta * ahead, -eta * kept], [x, mu]])
        left = np.floor(k + 1e-9).astype(int)
        pairs = {int(j): np.linalg.matrix_power(step, int(j))[:, 0] for j in np.unique([left, left + 1])}
        share = np.clip(k - left, 0.0, 1.0)[..., None]
        below, above = (np.array([pairs[int(j)] for j in np.ravel(n)]).reshape(*k.shape, 2) for n in (left, left + 1))
        found = np.where(share > 1e-9, below + share * (above - below), below)
        return found[..., 0], found[..., 1]

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
