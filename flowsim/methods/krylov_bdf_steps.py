"""Backward differentiation with steps and orders that vary, for the symmetric Jacobian J of a gradient flow.

With backward differences D_j of the last states, h apart, the next state y is the one of
    sum_{j=1}^k gamma_j (D_j of y) = h F(y) + kappa_k gamma_k (y - p),  gamma_j = 1 + 1/2 + ... + 1/j,
p the polynomial through the last states continued: y = p + d with d = c F(p + d) - psi, c = h / ((1 - kappa_k) gamma_k)
(Shampine and Reichelt, SIAM J. Sci. Comput. 18, 1997, sections 2.2 and 2.3, with their kappa_k). All eigenvalues of J
are real: the formulas are stable wherever they are not positive. Newton's method takes J at p, (I - c J) x = b is
solved by conjugate gradients, to a share of the tolerance in the norm of the energy, which bounds that of the weights
(Hestenes and Stiefel, J. Res. Nat. Bur. Standards 49, 1952, sections 6 and 15). They begin along psi: of weights at
rest among minima it is all that is left to solve, in directions without curvature, where nothing drives back what they
err by. A matrix that is not positive definite says that h is too long for a growing mode: the step is halved.

Dense output is the polynomial of the differences; its slopes give the energy: no value between two steps has more of
what is stiff than the steps themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from flowsim.dynamics import Motion
from flowsim.errors import NumericalFailure
from flowsim.methods.linearized import Linear, conjugate_gradients, linearized
from flowsim.methods.steps import (
    LEAST_SPAN,
    CountingVelocity,
    Counts,
    IntegrationFailure,
    Segment,
    check_structure,
    first_step,
)

if TYPE_CHECKING:
    from flowsim.methods.krylov_bdf import KrylovBDF

MOST_ORDER = 5
KAPPA = np.array([0.0, -0.1850, -1 / 9, -0.0823, -0.0415, 0.0])
GAMMA = np.append(0.0, np.cumsum(1 / np.arange(1.0, MOST_ORDER + 1)))
ALPHA = (1 - KAPPA) * GAMMA
ERROR = KAPPA * GAMMA + 1 / np.arange(1.0, MOST_ORDER + 2)
"""Of D_{k+1}: the error of a step of order k."""
LEAST_STEP = 10
"""So many units in the last place of t a step has at least."""
END = 1e-14
"""A step that falls short of the end by this share of itself, by rounding, ends there."""
SAFETY, LEAST_FACTOR, MOST_FACTOR, WORTHWHILE = 0.9, 0.2, 10.0, 1.2
RELAXED = 1.2
"""Steps longer than the half of one whose equations were not solved are tried by and by: the bound grows so with each
choice."""
MOST_NEWTON, SOLVED = 4, 0.1
"""An iterate of Newton's method that was moved by less than SOLVED tolerances is taken."""
LINEAR = 0.02
"""Of the tolerance: the error of conjugate gradients."""
RELATIVE = 0.1
"""Of d, however small it is: the differences that are to come are made of it."""
BLOCK = 8192


class KrylovBDFSteps:
    """The method from (t, state) to t1, one accepted step a segment. Raises IntegrationFailure where no step size is
    accepted."""

    def __init__(self, motion: Motion, method: KrylovBDF, t: float, state: np.ndarray, t1: float) -> None:
        check_structure(motion, method.name, "gradient")
        self.motion, self.method = motion, method
        self.counts = Counts(rejected_steps=0, jacobians=0)
        self.velocity = CountingVelocity(motion, self.counts)
        self.D = np.zeros((MOST_ORDER + 3, state.size))
        self.predicted, self.psi, self.scale, self.scaled = np.empty((4, state.size))
        self.resume(t, state, t1, 0.0)

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, by order 1, with a step of at least that size first."""
        self.t, self.t1 = t, t1
        self.dense: Dense | None = None
        method, span = self.method, t1 - t
        slope = self.velocity(t, state)
        if span < LEAST_SPAN:
            self.h = span
        else:
            first = first_step(self._known(state, slope), t, state, 1, method.rtol, method.atol, span)
            self.h = max(first, min(step, span))
        self.order, self.equal_steps, self.errors, self.longest = 1, 0, (np.inf, np.inf, np.inf), np.inf
        self.D[0], self.D[1] = state, self.h * slope

    def _known(self, state: np.ndarray, slope: np.ndarray) -> Callable[[float, np.ndarray], np.ndarray]:
        return lambda t, y: slope if y is state else self.velocity(t, y)

    def advance(self) -> Segment:
        """One step that meets the tolerance."""
        if self.equal_steps > self.order:
            self._choose()
        self.dense = None
        least, left = LEAST_STEP * float(np.spacing(self.t)), self.t1 - self.t
        if self.h > left:
            self._rescale(left / self.h)
        reason = ""
        while True:
            if self.h < min(least, left * (1 - END)):
                stopped = f"{self.method.name} stopped at t = {self.t:.6g}: no step size was accepted."
                raise IntegrationFailure(f"{stopped} {reason}".strip())
            try:
                change = self._solve()
            except NumericalFailure as failure:  # at a state of this trial
                change, reason = None, str(failure)
            if change is None:
                self._reject(0.5)
                self.longest = self.h
                continue
            error = ERROR[self.order] * self._size(change)
            if error <= 1:
                return self._accept(change, error)
            self._reject(max(LEAST_FACTOR, SAFETY * error ** (-1 / (self.order + 1))))

    def _reject(self, factor: float) -> None:
        self.counts.rejected_steps = (self.counts.rejected_steps or 0) + 1
        self._rescale(factor)

    def _rescale(self, factor: float) -> None:
        """Differences of the same polynomial at states factor h apart."""
        k = self.order
        change = (_differences(k, factor) @ _unscaled(k)).T
        for block in self._blocks():
            self.D[: k + 1, block] = change @ self.D[: k + 1, block]
        self.h, self.equal_steps = self.h * factor, 0

    def _blocks(self) -> list[slice]:
        """Columns of D that a cache holds."""
        return [slice(start, start + BLOCK) for start in range(0, self.D.shape[1], BLOCK)]

    def _size(self, change: np.ndarray) -> float:
        """The root mean square in units of the tolerance."""
        np.divide(change, self.scale, out=self.scaled)
        size = float(np.sqrt(self.scaled @ self.scaled / change.size))
        return size if np.isfinite(size) else np.inf

    def _solve(self) -> np.ndarray | None:
        """d of the next step; None where Newton's method or conjugate gradients fail."""
        k, end = self.order, self.t + self.h
        c, predicted, psi = self.h / ALPHA[k], self.predicted, self.psi
        np.matmul(np.ones(k + 1), self.D[: k + 1], out=predicted)
        np.matmul(GAMMA[1 : k + 1] / ALPHA[k], self.D[1 : k + 1], out=psi)
        np.abs(predicted, out=self.scale)
        self.scale *= self.method.rtol
        self.scale += self.method.atol
        allowed = LINEAR * float(np.linalg.norm(self.scale))
        if not np.isfinite(allowed):
            return None
        linear = self._linear(end, predicted)
        z = linear.coordinates(psi)
        solution = self._without_stiffness(linear, c, -c * linear.gradient() - z, allowed, RELATIVE, z)
        if solution is None:
            return None
        d = linear.lifted(solution + z)
        d -= psi
        moved = self._size(d)
        for _ in range(MOST_NEWTON - 1):
            if moved < SOLVED:
                return d
            b = self.velocity(end, predicted + d)
            b *= c
            b -= psi
            b -= d
            z = linear.coordinates(b)
            solution = self._without_stiffness(linear, c, z, allowed)
            if solution is None:
                return None
            b += linear.lifted(solution - z)
            d += b
            moved = self._size(b)
        return d if moved < SOLVED else None

    def _linear(self, t: float, state: np.ndarray) -> Linear:
        """F and -J at a state."""
        self.counts.jacobians = (self.counts.jacobians or 0) + 1
        self._count(1)
        return linearized(self.motion, t, state)

    def _count(self, gradients: int) -> None:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + gradients

    def _without_stiffness(
        self,
        linear: Linear,
        c: float,
        z: np.ndarray,
        allowed: float,
        share: float = np.inf,
        along: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """(I - c J)^-1 z; None where conjugate gradients find that I - c J is not positive definite, or no end."""
        if not np.isfinite(z).all():
            return None
        products = 0

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal products
            products += 1
            return v + c * linear.hessian(v)

        solution = conjugate_gradients(product, z, allowed, share, along)
        self._count(linear.work * products)
        return solution

    def _accept(self, change: np.ndarray, error: float) -> Segment:
        k, D, start = self.order, self.D, self.t
        first = D[0].copy()
        squares = np.zeros((k + 1, k + 1))
        for block in self._blocks():
            part = D[:, block]
            part[k + 2] = change[block] - part[k + 1]
            part[k + 1] = change[block]
            for j in reversed(range(k + 1)):
                part[j] += part[j + 1]
            slopes = part[1 : k + 2]
            squares += slopes @ slopes.T
        lower = ERROR[k - 1] * self._size(D[k]) if k > 1 else np.inf
        higher = ERROR[k + 1] * self._size(D[k + 2]) if k < MOST_ORDER else np.inf
        self.errors = lower, error, higher
        self.equal_steps += 1
        self.t = self.t1 if self.h >= (self.t1 - start) * (1 - END) else start + self.h
        power = float(self.motion.power(0.5 * (start + self.t), np.ones(1)))
        spent = power * float(np.sum(_slopes_squared(k + 1) * squares)) / self.h
        self.dense = Dense(self, (start, self.t), (first, D[0].copy()))
        return Segment(np.array([start, self.t]), self.motion.products(D[0])[None], np.array([spent]), self.dense)

    def _choose(self) -> None:
        """The order of the longest next step, and that step."""
        k = self.order
        with np.errstate(divide="ignore"):
            factors = np.array(self.errors) ** (-1 / np.arange(k, k + 3))
        best = int(np.argmax(factors))
        factor = min(MOST_FACTOR, SAFETY * float(factors[best]))
        factor, self.longest = min(factor, self.longest / self.h), RELAXED * self.longest
        if best == 1 and 1 <= factor < WORTHWHILE:
            return
        self.order = k + best - 1
        self._rescale(max(factor, LEAST_FACTOR))


def _differences(order: int, factor: float) -> np.ndarray:
    """What takes values of a polynomial to backward differences at points `factor` times as far apart (Shampine and
    Reichelt, section 2.3)."""
    i, j = np.arange(1, order + 1)[:, None], np.arange(1, order + 1)
    M = np.zeros((order + 1, order + 1))
    M[0] = 1.0
    M[1:, 1:] = (i - 1 - factor * j) / i
    return np.cumprod(M, axis=0)


@cache
def _unscaled(order: int) -> np.ndarray:
    """Of points as far apart: its own inverse."""
    return _differences(order, 1.0)


@cache
def _newton(order: int) -> list[np.polynomial.Polynomial]:
    """C_j(s) = s (s + 1) .. (s + j - 1) / j!, j = 0 .. order: the polynomial of D_j at t + s h is sum_j C_j(s) D_j."""
    found = [np.polynomial.Polynomial([1.0])]
    for j in range(1, order + 1):
        found.append(found[-1] * np.polynomial.Polynomial([j - 1, 1.0]) / j)
    return found


@cache
def _slopes_squared(order: int) -> np.ndarray:
    """int_{-1}^0 C_i'(s) C_j'(s) ds, i, j = 1 .. order."""
    slopes = [C.deriv() for C in _newton(order)[1:]]
    return np.array([[-(a * b).integ()(-1.0) for b in slopes] for a in slopes])


class Dense:
    """The states at any times of a step, until the next one is begun: the polynomial of its differences; at its ends
    their own values."""

    def __init__(
        self, steps: KrylovBDFSteps, times: tuple[float, float], ends: tuple[np.ndarray, np.ndarray]
    ) -> None:
        self.steps, self.times, self.ends, self.order = steps, times, ends, steps.order

    def __call__(self, t: np.ndarray) -> np.ndarray:
        at_end, at_start = t == self.times[1], t == self.times[0]
        states = np.empty((len(t), len(self.ends[0])))
        inner = ~(at_start | at_end)
        if inner.any():
            if self.steps.dense is not self:
                raise IntegrationFailure("Dense output of a step was asked for after the next one was taken.")
            s = (t[inner] - self.times[1]) / (self.times[1] - self.times[0])
            weights = np.array([C(s) for C in _newton(self.order)]).T
            states[inner] = weights @ self.steps.D[: self.order + 1]
        states[at_start], states[at_end] = self.ends
        return states
