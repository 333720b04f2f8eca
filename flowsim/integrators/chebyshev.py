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

from functools import cache
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from flowsim.integrators.base import (
    CountingVelocity,
    IntegrationFailure,
    Segment,
    dissipation,
    first_step,
    scaled_norm,
)
from flowsim.methods import RKC
from flowsim.network import product, unflatten
from flowsim.problem import Problem

DAMPING = 2 / 13
MOST_STAGES = 300
REFRESH = 25
"""The greatest eigenvalue is sought again after so many steps, and after every rejected one."""
MARGIN = 1.1
"""Lanczos approaches the greatest eigenvalue from below."""
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
    """RKC from (t, state) to t1, one accepted step a segment; dense output by cubic Hermite interpolation, order 3."""

    def __init__(self, problem: Problem, method: RKC, t: float, state: np.ndarray, t1: float) -> None:
        self.problem, self.method, self.t, self.t1, self.y = problem, method, t, t1, np.array(state)
        self.velocity = CountingVelocity(problem)
        self.counts = self.velocity.counts
        self.counts.rejected_steps = 0
        self.f = self.velocity(t, self.y)
        self.direction, self.radius, self.age = np.ones_like(self.y), 0.0, REFRESH
        if method.step_size is not None:
            self.h = method.step_size
        else:
            self.h = first_step(lambda y: self.velocity(t, y), self.y, 2, method.rtol, method.atol, t1 - t)

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
                y = self._step(h)
                f = self.velocity(self.t + h, y)
                error = 0.8 * (self.y - y) + 0.4 * h * (self.f + f)
                size = scaled_norm(error, self.y, y, self.method.rtol, self.method.atol)
            if not fixed:
                factor = SAFETY * size ** (-1 / 3) if size > 0 else MOST_FACTOR
                self.h = h * min(max(factor, LEAST_FACTOR), MOST_FACTOR)
            if fixed or size <= 1:
                return self._accept(h, y, f, self.t1 if h == remaining else self.t + h)
            self.counts.rejected_steps = (self.counts.rejected_steps or 0) + 1
            self.age = REFRESH

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached."""
        self.y, self.f = state, self.velocity(self.t, state)

    def go_on(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, with a step of at least that size first, and the spectral radius as it is."""
        self.t, self.t1, self.h = t, t1, max(self.h, step)
        self.move(state)

    def _accept(self, h: float, y: np.ndarray, f: np.ndarray, end: float) -> Segment:
        dense = _Hermite(self.t, end, (self.y, self.f), (y, f))
        energy = dissipation(self.problem, dense, self.t, end)
        times = np.array([self.t, end])
        self.t, self.y, self.f, self.age = end, y, f, self.age + 1
        W = product(unflatten(y, self.problem.network.dims), self.problem.network.scale)
        return Segment(times, W[None], np.array([energy]), dense)

    def _step(self, h: float) -> np.ndarray:
        k = coefficients(stages_for(h * self.radius))
        before, now, start = self.y, self.y + k.first * h * self.f, h * self.f
        for mu, nu, mu_tilde, gamma_tilde in zip(k.mu, k.nu, k.mu_tilde, k.gamma_tilde, strict=True):
            slope = h * self.velocity(self.t, now)
            following = (1 - mu - nu) * self.y + mu * now + nu * before + mu_tilde * slope + gamma_tilde * start
            before, now = now, following
        return now

    def _bound_spectrum(self) -> None:
        """|lambda|_max of the Jacobian by Lanczos, started where the last search ended."""
        if self.age < REFRESH:
            return
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        self.age, size = 0, self.y.size
        J = LinearOperator((size, size), matvec=self._jacobian_product, dtype=np.float64)
        if size <= 3:
            self.radius = MARGIN * float(np.abs(np.linalg.eigvalsh(J @ np.eye(size))).max())
            return
        try:
            value, vector = eigsh(J, 1, which="LM", tol=0.05, v0=self.direction)
        except ArpackNoConvergence as partial:
            value, vector = partial.eigenvalues, partial.eigenvectors
        if len(value):
            self.direction = vector[:, -1] + 1e-3 * np.ones(size)
            self.radius = MARGIN * float(np.abs(value).max())

    def _jacobian_product(self, v: np.ndarray) -> np.ndarray:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + 2  # two sweeps
        return self.problem.jacobian_product(self.y, np.ravel(v))


class _Hermite:
    """The cubic through the states and velocities at both ends."""

    def __init__(
        self, start: float, end: float, first: tuple[np.ndarray, np.ndarray], last: tuple[np.ndarray, np.ndarray]
    ) -> None:
        self.start, self.end, self.first, self.last = start, end, first, last

    def __call__(self, t: np.ndarray) -> np.ndarray:
        h = self.end - self.start
        s = ((t - self.start) / h)[:, None]
        (y0, f0), (y1, f1) = self.first, self.last
        states = y0 + s * (y1 - y0) + s * (s - 1) * ((1 - 2 * s) * (y1 - y0) + h * ((s - 1) * f0 + s * f1))
        states[t == self.end] = y1
        return states
