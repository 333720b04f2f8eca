"""Momentum in continuous time: W'' + b(t) W' = -grad L, from rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from flowsim.checks import as_number
from flowsim.dynamics.base import Dynamics, Equation, LawResiduals, factor
from flowsim.values import Array

SOONEST = 1e-300
"""Times before it count as 0, where 3 / t is concerned."""


class Inertial(Dynamics):
    """W_l'' + b(t) W_l' = -dL/dW_l - x W_l from rest, W_l'(0) = 0; x is the weight decay.

    Laws. The energy L + x/2 ||W||_F^2 + ||W'||_F^2 / 2 falls by int b ||W'||_F^2. L is unchanged by orthogonal changes
    of a hidden basis, W_l -> W_l Q, W_{l+1} -> Q^T W_{l+1}, and so is the kinetic energy: by Noether's theorem

        M_l = W_l^T W_l' - W_l'^T W_l + W_{l+1} W_{l+1}'^T - W_{l+1}' W_{l+1}^T

    obeys M_l' = -b M_l, and from rest M_l = 0 for all time. D_l is not conserved: D_l'' + b D_l' =
    2 (W_l'^T W_l' - W_{l+1}' W_{l+1}'^T), without decay.

    The same symmetry lets the width be compressed: acceleration and velocity are sums of A_l^T (.) B_l^T, as the
    gradient is, and what the loss does not reach is q(t) W_l(0) with q'' + b q' + x q = 0, q(0) = 1, q'(0) = 0.
    """

    second_order = True
    structure: ClassVar[Literal["gradient", "inertial", "general"]] = "inertial"
    compressible = True

    @abstractmethod
    def damping(self, t: Array) -> Array:
        """b(t)."""

    @abstractmethod
    def faded(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """exp(-int_s^t b): what friction alone leaves of a velocity."""

    @abstractmethod
    def kicked(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """int_s^t faded(r, t) dr: the velocity that a unit of force has given from s to t."""

    @abstractmethod
    def swept(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """int_s^t kicked(s, r) dr: how far a unit of force, held from s to t, has moved what was at rest."""

    def acceleration(self, t: Array, gradients: list[Array], velocities: list[Array]) -> list[Array]:
        """-G - b(t) V."""
        b = factor(self.damping(t))
        return [-G - b * V for G, V in zip(gradients, velocities, strict=True)]

    def velocity(self, problem: Equation, t: Array, state: Sequence[Array]) -> list[Array]:
        """(V, -grad L - b(t) V)."""
        weights, velocities = halves(state)
        _, gradients = problem.gradients(weights)
        return [*velocities, *self.acceleration(t, gradients, velocities)]

    def power(self, t: Array) -> Array:
        """b(t)."""
        return self.damping(t)

    def stored(self, problem: Equation, t: Array, state: Sequence[np.ndarray]) -> np.ndarray | float:
        """||W'||_F^2 / 2."""
        square: np.ndarray = sum((V * V).sum((-2, -1)) for V in halves(state)[1])
        return 0.5 * square

    def jacobian_product(
        self, problem: Equation, t: float, state: Sequence[np.ndarray], directions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """(Y, -H X - b Y) of the directions (X, Y)."""
        X, Y = halves(directions)
        return [*Y, *self.acceleration(t, problem.hessian_product(halves(state)[0], X), Y)]

    def residuals(
        self, problem: Equation, t: float, state: Sequence[np.ndarray], start: Sequence[np.ndarray]
    ) -> LawResiduals:
        """||M_l||_F, l = 1 .. L-1."""
        return {
            (f"angular momentum M_{layer}", f"M_{layer}(t) = 0, from rest"): float(np.linalg.norm(M))
            for layer, M in enumerate(angular_momenta(state), start=1)
        }


@dataclass(frozen=True)
class HeavyBall(Inertial):
    """W_l'' + friction W_l' = -dL/dW_l - x W_l from rest: the heavy ball with friction, x the weight decay.

    Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Comput. Math. Math. Phys. 4, 1964;
    the flow of GradientDescent(step_size, momentum=mu): with h = step_size^(1/2) and mu = 1 - friction h, step k is the
    time k h, to first order in h. friction: in 1 / [time]; 0: nothing is ever lost. With little of it large weights
    swing chaotically, and errors grow exponentially, whatever the laws say: Trajectory.global_error tells how far.
    Inertial has its laws. Raises InputError unless friction >= 0.

    One weight a layer near its minimum swings as a damped oscillator:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[4.0]]), fs.LinearNetwork(([[2.0]], [[1.999]])))
    >>> run = fs.simulate(problem, t1=3.0, dynamics=fs.HeavyBall(0.5))
    >>> omega = (8 - 0.25**2) ** 0.5  # of u'' + u' / 2 + 8 u = 0
    >>> t = run.checkpoints.times
    >>> linear = np.exp(-t / 4) * (np.cos(omega * t) + np.sin(omega * t) / (4 * omega))
    >>> bool(abs((run.products[:, 0, 0] - 4) / -0.002 - linear).max() < 1e-3)
    True
    """

    friction: float

    def __post_init__(self) -> None:
        as_number(self.friction, "friction", least=0.0)

    def damping(self, t: Array) -> Array:
        """friction, at all times."""
        return self.friction + 0 * t

    def faded(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """exp(-friction (t - s))."""
        return np.exp(-self.friction * (t - s))

    def kicked(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """(1 - exp(-friction (t - s))) / friction; t - s without friction, or where that is lost in rounding."""
        span = np.asarray(t, float) - s
        lost = self.friction * span
        safe = np.where(np.abs(lost) < SOONEST, 1.0, lost)
        return span * np.where(np.abs(lost) < SOONEST, 1.0, -np.expm1(-safe) / safe)

    def swept(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """span^2 (exp(-x) - 1 + x) / x^2, x = friction span, span = t - s; by its series where x is small."""
        span = np.asarray(t, float) - s
        x = self.friction * span
        near = np.abs(x) < 1e-2
        safe = np.where(near, 1.0, x)
        series = 0.5 - x / 6 + x**2 / 24 - x**3 / 120 + x**4 / 720 - x**5 / 5040
        return span**2 * np.where(near, series, (np.expm1(-safe) + safe) / safe**2)

    def reach(self, s: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        """As kicked: friction fades what a kick does later as it fades what kicks did before."""
        return self.kicked(s, np.asarray(t))

    def remaining(self, weight_decay: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The damped oscillator q'' + friction q' + x q = 0 from q = 1 at rest, x = weight_decay.

        With a = friction/2 and w^2 = a^2 - x: q = exp(-a t) (cosh w t + a sinh(w t) / w), q' = -x exp(-a t)
        sinh(w t) / w; cos and sin where w^2 < 0.
        """
        t, a = np.asarray(t, float), 0.5 * self.friction
        w = np.sqrt(complex(a * a - weight_decay))
        grown, shrunk = np.exp((w - a) * t), np.exp(-(w + a) * t)
        small = np.abs(w * t) < 1e-3
        near = t * np.exp(-a * t) * (1 + (w * t) ** 2 / 6)  # of sinh(w t) / w, to (w t)^4 / 120
        share = np.where(small, near, (grown - shrunk) / (2 * w or 1.0))
        return np.real(0.5 * (grown + shrunk) + a * share), np.real(-weight_decay * share)


@dataclass(frozen=True)
class Nesterov(Inertial):
    """W_l'' + (3 / t) W_l' = -dL/dW_l - x W_l from rest: the flow of Nesterov's accelerated gradient method.

    Su, Boyd, Candes, "A differential equation for modeling Nesterov's accelerated gradient method", JMLR 17, 2016,
    equation 3: of a convex L, L - L* <= 2 ||W(0) - W*||^2 / t^2 (Theorem 3); ours is convex in no neighbourhood that is
    known before. The methods step s is the time t = k s^(1/2). At t = 0 the acceleration is -grad L / 4, its limit.
    Inertial has its laws: what friction leaves of a velocity is (s / t)^3.

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[1.0]])))
    >>> run = fs.simulate(problem, t1=5.0, dynamics=fs.Nesterov())
    >>> bool(abs(run.energy_residual).max() < 1e-6)
    True
    """

    def damping(self, t: Array) -> Array:
        """3 / t; at t = 0, where velocities are 0, a number that makes no difference."""
        return 3.0 / _positive(t)

    def acceleration(self, t: Array, gradients: list[Array], velocities: list[Array]) -> list[Array]:
        """-G - (3 / t) V; -G / 4 at t = 0."""
        b, first = factor(self.damping(t)), factor(1.0 * (t < SOONEST))
        return [-(1 - 0.75 * first) * G - (1 - first) * b * V for G, V in zip(gradients, velocities, strict=True)]

    def faded(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """(s / t)^3."""
        return (s / _positive(t)) ** 3

    def kicked(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """(t - s (s / t)^3) / 4."""
        return 0.25 * (t - s * self.faded(s, t))

    def swept(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """(t - s^2 / t)^2 / 8."""
        return 0.125 * (t - s * s / _positive(t)) ** 2

    def reach(self, s: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        """s/2 (1 - (s / t)^2)."""
        return 0.5 * s * (1 - (s / _positive(np.asarray(t, float))) ** 2)

    def remaining(self, weight_decay: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """2 J_1(z) / z at z = x^(1/2) t, x = weight_decay, and its derivative -2 x^(1/2) J_2(z) / z."""
        from scipy.special import jv

        z = np.sqrt(weight_decay) * np.asarray(t, float)
        near = z < 1e-4  # where the series are right to round-off, and tiny z do not underflow
        safe = np.where(near, 1.0, z)
        q, share = np.where(near, 1 - z * z / 8, 2 * jv(1, safe) / safe), np.where(near, z / 4, 2 * jv(2, safe) / safe)
        return q, -np.sqrt(weight_decay) * share


def _positive(t: Array) -> Array:
    """t, and 1 in the place of 0 (and of times whose inverse is no number)."""
    return t + (t < SOONEST)


def halves(state: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """(W_1 .. W_L), (V_1 .. V_L)."""
    depth = len(state) // 2
    return list(state[:depth]), list(state[depth:])


def angular_momenta(state: Sequence[np.ndarray]) -> list[np.ndarray]:
    """M_l = W_l^T V_l - V_l^T W_l + W_{l+1} V_{l+1}^T - V_{l+1} W_{l+1}^T of a state, l = 1 .. L-1."""
    weights, velocities = halves(state)
    halved = [W.T @ V + U @ Y.T for (W, U), (V, Y) in zip(pairwise(weights), pairwise(velocities), strict=True)]
    return [half - half.T for half in halved]
