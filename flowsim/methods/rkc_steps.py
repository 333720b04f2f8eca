"""RKC: an explicit Runge-Kutta-Chebyshev method of order 2 whose real stability interval grows with stages squared.

The Jacobian of gradient flow is -Hess L: symmetric, and negative semidefinite near the end. There the step size of an
ordinary explicit method is bound by the greatest eigenvalue of T (gamma lambda_max for the squared loss), however
smooth the solution; s stages of RKC reach steps of about 0.65 s^2 / |lambda|_max.

    Y_0 = y,  Y_1 = y + mu~_1 h F_0,
    Y_j = (1 - mu_j - nu_j) y + mu_j Y_{j-1} + nu_j Y_{j-2} + mu~_j h F_{j-1} + gamma~_j h F_0,  j = 2 .. s,
with coefficients from Chebyshev polynomials at w_0 = 1 + (2/13) / s^2 (Sommeijer, Shampine and Verwer, J. Comput. Appl.
Math. 88, 1997, section 2); the error estimate is theirs, 0.8 (y - y_1) + 0.4 h (F_0 + F_1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from math import ceil, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowsim.dynamics import Motion
from flowsim.methods.steps import (
    CountingVelocity,
    IntegrationFailure,
    Segment,
    check_structure,
    counted_product,
    first_step,
    is_faithful,
    scaled_norm,
    spectral_radius,
)

if TYPE_CHECKING:
    from flowsim.methods.rkc import RKC

DAMPING = 2 / 13
MOST_STAGES = 300
REFRESH = 25
"""The greatest eigenvalue is sought again after so many steps, and after every rejected one."""
MARGIN = 1.1
"""Lanczos approaches the greatest eigenvalue from below."""
STIFF = 20.0
"""Accuracy alone seldom allows steps with h |lambda|_max beyond this."""
MOST_RAISES = 8
"""Dense output raises its |lambda|_max by MARGIN at most so often."""
SAFETY, LEAST_FACTOR, MOST_FACTOR = 0.8, 0.1, 10.0


class Coefficients(NamedTuple):
    """mu, nu, mu~, gamma~ of the stages 2 .. s, and mu~_1."""

    mu: np.ndarray
    nu: np.ndarray
    mu_tilde: np.ndarray
    gamma_tilde: np.ndarray
    first: float


@cache
def coefficients(stages: int) -> Coefficients:
    """Of the second-order Runge-Kutta-Chebyshev method with that many stages, at least 2."""
    w0 = 1 + DAMPING / stages**2
    T, dT, ddT = np.ones(stages + 1), np.zeros(stages + 1), np.zeros(stages + 1)
    T[1], dT[1] = w0, 1.0
    for j in range(2, stages + 1):
        T[j] = 2 * w0 * T[j - 1] - T[j - 2]
        dT[j] = 2 * T[j - 1] + 2 * w0 * dT[j - 1] - dT[j - 2]
        ddT[j] = 4 * dT[j - 1] + 2 * w0 * ddT[j - 1] - ddT[j - 2]
    w1 = dT[-1] / ddT[-1]
    b = np.empty(stages + 1)
    b[2:] = ddT[2:] / dT[2:] ** 2
    b[0], b[1] = b[2], 1 / w0
    a = 1 - b * T
    mu_tilde = 2 * w1 * b[2:] / b[1:-1]
    return Coefficients(2 * w0 * b[2:] / b[1:-1], -b[2:] / b[:-2], mu_tilde, -a[1:-1] * mu_tilde, b[1] * w1)


def stages_for(z: float) -> int:
    """The fewest stages that are stable for h |lambda|_max = z: z <= 2/3 (s^2 - 1) (1 - 2/15 damping)."""
    return max(2, ceil(sqrt(1 + 1.5 * z / (1 - 2 / 15 * DAMPING))))


class ChebyshevSteps:
    """RKC from (t, state) to t1, one accepted step a segment.

    Dense output: the cubic through both ends and their slopes where it solves the equation in the middle of the step,
    else the ends of shorter steps. Where stability asks for many stages, slopes and stages multiply what is left of
    stiff components by h |lambda|: there it is the parabola through both ends and the start of the step before, while
    the two agree within the tolerance: the gradient has no spikes between its values at the ends.
    Dissipated energy: z' = ||F(y)||^2 by the same stages, of order 2.
    """

    def __init__(self, motion: Motion, method: RKC, t: float, state: np.ndarray, t1: float) -> None:
        check_structure(motion, method.name, "gradient")
        self.motion, self.method, self.t, self.t1, self.y = motion, method, t, t1, np.array(state)
        self.velocity = CountingVelocity(motion)
        self.counts = self.velocity.counts
        self.counts.rejected_steps = 0
        self.f = self.velocity(t, self.y)
        self.before: tuple[float, np.ndarray] | None = None
        self.direction, self.radius, self.age = np.ones_like(self.y), 0.0, REFRESH
        if method.step_size is not None:
            self.h = method.step_size
        else:
            self.h = first_step(self.velocity, t, self.y, 2, method.rtol, method.atol, t1 - t)

    def advance(self) -> Segment:
        """One step that meets the tolerance."""
        fixed = self.method.step_size is not None
        while True:
            self._bound_spectrum()
            remaining = self.t1 - self.t
            h = min(self.h, remaining, (MOST_STAGES**2 - 1) / (1.6 * self.radius) if self.radius else np.inf)
            if not self.t + h > self.t:
                raise IntegrationFailure(f"RKC stopped at t = {self.t:.6g}: no step size was accepted.")
            with np.errstate(over="ignore", invalid="ignore"):
                y, energy = self._step(self.y, self.f, h, self.radius)
                f = self.velocity(self.t + h, y)
                size = self.error(self.y, self.f, y, f, h)
            if not fixed:
                factor = SAFETY * size ** (-1 / 3) if size > 0 else MOST_FACTOR
                self.h = h * min(max(factor, LEAST_FACTOR), MOST_FACTOR)
            if fixed or size <= 1:
                return self._accept(energy, y, f, self.t1 if h == remaining else self.t + h)
            self.counts.rejected_steps = (self.counts.rejected_steps or 0) + 1
            self.age = REFRESH

    def error(self, y0: np.ndarray, f0: np.ndarray, y1: np.ndarray, f1: np.ndarray, h: float) -> float:
        """The estimated error of a step, 1 where it is the tolerance."""
        return scaled_norm(0.8 * (y0 - y1) + 0.4 * h * (f0 + f1), y0, y1, self.method.rtol, self.method.atol)

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached."""
        self.y, self.f = state, self.velocity(self.t, state)

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, with a step of at least that size first, and the spectral radius as it is."""
        self.t, self.t1, self.h = t, t1, max(self.h, step)
        self.move(state)

    def _accept(self, energy: float, y: np.ndarray, f: np.ndarray, end: float) -> Segment:
        dense = _Dense(self, (self.t, end), (self.y, y), (self.f, f))
        times = np.array([self.t, end])
        self.before = self.t, self.y
        self.t, self.y, self.f, self.age = end, y, f, self.age + 1
        W = self.motion.products(y)
        return Segment(times, W[None], np.array([energy]), dense)

    def _step(self, y: np.ndarray, f: np.ndarray, h: float, radius: float) -> tuple[np.ndarray, float]:
        """(the end of a step of length h from y, where F(y) = f; the energy dissipated in it)."""
        k = coefficients(stages_for(h * radius))
        before, now, start = y, y + k.first * h * f, h * f
        power = h * float(self.motion.power(self.t, f))
        spent_before, spent = 0.0, k.first * power
        for mu, nu, mu_tilde, gamma_tilde in zip(k.mu, k.nu, k.mu_tilde, k.gamma_tilde, strict=True):
            velocity = self.velocity(self.t, now)
            following = (1 - mu - nu) * y + mu * now + nu * before + mu_tilde * h * velocity + gamma_tilde * start
            slope = h * float(self.motion.power(self.t, velocity))
            spent_before, spent = spent, mu * spent + nu * spent_before + mu_tilde * slope + gamma_tilde * power
            before, now = now, following
        return now, spent

    def _bound_spectrum(self) -> None:
        """|lambda|_max of the Jacobian by Lanczos, started where the last search ended."""
        if self.age < REFRESH:
            return
        radius, vector = spectral_radius(
            counted_product(self.motion, self.counts, self.t, self.y), self.direction
        )
        self.age, self.radius = 0, MARGIN * radius
        if vector is not None:
            self.direction = vector + 1e-3 * np.ones(vector.size)


class _Dense:
    """The states at any times of a step."""

    def __init__(
        self,
        steps: ChebyshevSteps,
        times: tuple[float, float],
        ends: tuple[np.ndarray, np.ndarray],
        slopes: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self.steps, self.times, self.ends, self.slopes = steps, times, ends, slopes
        self.radius, self.before = steps.radius, steps.before

    @cached_property
    def hermite(self) -> Callable[[np.ndarray], np.ndarray]:
        """The cubic through the states and velocities at both ends."""
        from scipy.interpolate import CubicHermiteSpline

        cubic: Callable[[np.ndarray], np.ndarray] = CubicHermiteSpline(self.times, self.ends, self.slopes)
        return cubic

    @cached_property
    def faithful(self) -> bool:
        """Whether the cubic solves the equation in the middle of the step: seldom where the problem is stiff."""
        method, velocity = self.steps.method, self.steps.velocity
        return is_faithful(self.hermite, velocity, self.times, self.ends, method.rtol, method.atol)

    def parabola(self, t: np.ndarray) -> np.ndarray:
        """Through both ends and the start of the step before: none of them bends more than the steps err."""
        assert self.before is not None
        (t0, t1), (tb, yb), (y0, y1) = self.times, self.before, self.ends
        bend = ((y1 - y0) / (t1 - t0) - (y0 - yb) / (t0 - tb)) / (t1 - tb)
        s = (t - t0)[:, None]
        return y0 + s * (y1 - y0) / (t1 - t0) + s * (t - t1)[:, None] * bend

    @cached_property
    def smooth(self) -> bool:
        """Whether the step is a stiff one whose parabola and cubic agree in its middle."""
        h = self.times[1] - self.times[0]
        if self.before is None or h * self.radius < STIFF:
            return False
        middle, method = np.array([self.times[0] + 0.5 * h]), self.steps.method
        gap = self.parabola(middle)[0] - self.hermite(middle)[0]
        return scaled_norm(gap, *self.ends, method.rtol, method.atol) <= 1

    def __call__(self, t: np.ndarray) -> np.ndarray:
        states = np.empty((len(t), len(self.ends[0])))
        inner = (t != self.times[0]) & (t != self.times[1])
        if inner.any():
            within = self.parabola if self.smooth else self.hermite if self.faithful else self._shorter_steps
            states[inner] = within(t[inner])
        for end, state in zip(self.times, self.ends, strict=True):
            states[t == end] = state
        return states

    def _shorter_steps(self, t: np.ndarray) -> np.ndarray:
        return np.array([self._shorter(float(end) - self.times[0]) for end in t])

    def _shorter(self, h: float) -> np.ndarray:
        """A step of length h from the start, of more stages where its own error says that |lambda|_max was too low."""
        y, f, radius, steps = self.ends[0], self.slopes[0], self.radius, self.steps
        for _ in range(MOST_RAISES):
            state, _ = steps._step(y, f, h, radius)
            if steps.method.step_size is not None:
                return state
            if steps.error(y, f, state, steps.velocity(self.times[0], state), h) <= 1:
                return state
            radius *= MARGIN
        return self.hermite(np.array([self.times[0] + h]))[0]
