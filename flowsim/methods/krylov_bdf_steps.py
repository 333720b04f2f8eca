"""Backward differentiation with steps and orders that vary, for the symmetric Jacobian J of a gradient flow.

With backward differences D_j of the last states, h apart, the next state y is the one of
    sum_{j=1}^k gamma_j (D_j of y) = h F(y) + kappa_k gamma_k (y - p),  gamma_j = 1 + 1/2 + ... + 1/j,
p the polynomial through the last states continued: y = p + d with d = c F(p + d) - psi, c = h / ((1 - kappa_k) gamma_k)
(Shampine and Reichelt, SIAM J. Sci. Comput. 18, 1997, sections 2.2 and 2.3, with their kappa_k). All eigenvalues of J
are real: the formulas are stable wherever they are not positive. Newton's method takes J at p, (I - c J) x = b is
solved by conjugate gradients, to a share of the tolerance in the norm of the energy, which bounds that of the weights
(Hestenes and Stiefel, J. Res. Nat. Bur. Standards 49, 1952, sections 6 and 15). A matrix that is not positive definite
says that h is too long for a growing mode: the step is halved.

Dense output is the polynomial of the differences; its slopes give the energy: no value between two steps has more of
what is stiff than the steps themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flowsim.dynamics import Motion
from flowsim.errors import NumericalFailure
from flowsim.methods.steps import (
    LEAST_SPAN,
    CountingVelocity,
    Counts,
    IntegrationFailure,
    Segment,
    check_structure,
    first_step,
)
from flowsim.network import unflatten
from flowsim.network.tangent import Tangent

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
SAFETY, LEAST_FACTOR, MOST_FACTOR, WORTHWHILE = 0.9, 0.2, 10.0, 1.2
MOST_NEWTON, SOLVED = 4, 0.1
"""An iterate of Newton's method that was moved by less than SOLVED tolerances is taken."""
LINEAR = 0.05
"""Of the tolerance: the error of conjugate gradients."""
MOST_PRODUCTS = 1000
DELAY = 4
"""The error of conjugate gradients is told so many iterations later: by what these moved the solution."""


class Linear(Protocol):
    """-J at one state, in coordinates of some of the directions; on all others it vanishes."""

    def coordinates(self, direction: np.ndarray) -> np.ndarray:
        """Those of the nearest direction that has any."""
        ...

    def lifted(self, z: np.ndarray) -> np.ndarray:
        """The direction with these coordinates."""
        ...

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """-J times the direction with coordinates z, in coordinates."""
        ...


class Whole:
    """-J on all directions."""

    def __init__(self, motion: Motion, t: float, state: np.ndarray) -> None:
        self.motion, self.t, self.state = motion, t, state

    def coordinates(self, direction: np.ndarray) -> np.ndarray:
        """Itself."""
        return direction

    lifted = coordinates

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """-J z."""
        return -self.motion.jacobian_product(self.t, self.state, z)


def is_thin(motion: Motion) -> bool:
    """Whether the coordinates of Tangent are fewer than half of the weights."""
    dims = motion.problem.network.dims
    r = min(dims[0], dims[-1])
    few = sum(r * (a + b) for a, b in zip(dims, dims[1:], strict=False))
    return motion.is_plain and 2 * few < motion.size


class KrylovBDFSteps:
    """The method from (t, state) to t1, one accepted step a segment. Raises IntegrationFailure where no step size is
    accepted."""

    def __init__(self, motion: Motion, method: KrylovBDF, t: float, state: np.ndarray, t1: float) -> None:
        check_structure(motion, method.name, "gradient")
        self.motion, self.method = motion, method
        self.counts = Counts(rejected_steps=0, jacobians=0)
        self.velocity = CountingVelocity(motion, self.counts)
        self.thin = is_thin(motion)
        self._begin(t, state, t1, 0.0)

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, by order 1."""
        self._begin(t, state, t1, 0.0)

    def _begin(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        self.t, self.t1 = t, t1
        method, span = self.method, t1 - t
        slope = self.velocity(t, state)
        if span < LEAST_SPAN:
            self.h = span
        else:
            self.h = first_step(self._known(state, slope), t, state, 1, method.rtol, method.atol, span)
        self.order, self.equal_steps = 1, 0
        self.D = np.zeros((MOST_ORDER + 3, state.size))
        self.D[0], self.D[1] = state, self.h * slope

    def _known(self, state: np.ndarray, slope: np.ndarray) -> Callable[[float, np.ndarray], np.ndarray]:
        return lambda t, y: slope if y is state else self.velocity(t, y)

    def advance(self) -> Segment:
        """One step that meets the tolerance."""
        if self.t + self.h > self.t1:
            self._rescale((self.t1 - self.t) / self.h)
        while True:
            if self.h < LEAST_STEP * np.spacing(self.t):
                raise IntegrationFailure(f"{self.method.name} stopped at t = {self.t:.6g}: no step size was accepted.")
            solved = self._solve()
            if solved is None:
                self._reject(0.5)
                continue
            change, scale = solved
            error = self._size(ERROR[self.order] * change, scale)
            if error <= 1:
                return self._accept(change, error, scale)
            self._reject(max(LEAST_FACTOR, SAFETY * error ** (-1 / (self.order + 1))))

    def _reject(self, factor: float) -> None:
        self.counts.rejected_steps = (self.counts.rejected_steps or 0) + 1
        self._rescale(factor)

    def _rescale(self, factor: float) -> None:
        """Differences of the same polynomial at states factor h apart."""
        k = self.order
        change = _differences(k, factor) @ _differences(k, 1.0)
        D = self.D.copy()
        D[: k + 1] = change.T @ self.D[: k + 1]
        self.D, self.h, self.equal_steps = D, self.h * factor, 0

    def _size(self, change: np.ndarray, scale: np.ndarray) -> float:
        scaled = change / scale
        size = float(np.sqrt(scaled @ scaled / scaled.size))
        return size if np.isfinite(size) else np.inf

    def _solve(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(d, atol + rtol |y|) of the next step; None where Newton's method or conjugate gradients fail."""
        k, method = self.order, self.method
        D, end = self.D, self.t + self.h
        predicted = D[: k + 1].sum(axis=0)
        if not np.isfinite(predicted).all():
            return None
        psi, c = GAMMA[1 : k + 1] @ D[1 : k + 1] / ALPHA[k], self.h / ALPHA[k]
        scale = method.atol + method.rtol * np.abs(predicted)
        allowed = LINEAR * float(np.linalg.norm(scale))
        linear, slope = self._linear(end, predicted)
        d = np.zeros_like(predicted)
        for iteration in range(MOST_NEWTON):
            if iteration:
                slope = self.velocity(end, predicted + d)
            b = c * slope - psi - d
            if not np.isfinite(b).all():
                return None
            moved = self._without_stiffness(linear, c, b, allowed)
            if moved is None:
                return None
            d += moved
            if self._size(moved, scale) < SOLVED:
                return d, method.atol + method.rtol * np.maximum(np.abs(D[0]), np.abs(predicted + d))
        return None

    def _linear(self, t: float, state: np.ndarray) -> tuple[Linear, np.ndarray]:
        """(-J, F) at a state."""
        self.counts.jacobians = (self.counts.jacobians or 0) + 1
        if not self.thin:
            return Whole(self.motion, t, state), self.velocity(t, state)
        problem = self.motion.problem
        dims = problem.network.dims
        tangent = Tangent(problem.stacked_loss, unflatten(state, dims), dims, problem.network.scale)
        self._count(1)
        return tangent, -tangent.gradient()

    def _count(self, gradients: int) -> None:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + gradients

    def _without_stiffness(self, linear: Linear, c: float, b: np.ndarray, allowed: float) -> np.ndarray | None:
        """(I - c J)^-1 b; None where conjugate gradients find that I - c J is not positive definite, or no end."""
        z = linear.coordinates(b)
        count = 1 if self.thin else 2
        products = 0

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal products
            products += 1
            return v + c * linear.hessian(v)

        solution = conjugate_gradients(product, z, allowed)
        self._count(count * products)
        return None if solution is None else b + linear.lifted(solution - z)

    def _accept(self, change: np.ndarray, error: float, scale: np.ndarray) -> Segment:
        k = self.order
        D = np.empty_like(self.D)
        D[k + 1], D[k + 2] = change, change - self.D[k + 1]
        for j in reversed(range(k + 1)):
            D[j] = self.D[j] + D[j + 1]
        D[k + 3 :] = 0.0
        start, h = self.t, self.h
        end = self.t1 if start + h >= self.t1 * (1 - 4e-16) else start + h
        spent = _energy(D[1 : k + 2], h)
        dense = Dense((start, end), (self.D[0], D[0]), D[: k + 1])
        self.D, self.t = D, end
        self.equal_steps += 1
        if self.equal_steps > k:
            self._choose(error, scale)
        return Segment(np.array([start, end]), self.motion.products(D[0])[None], np.array([spent]), dense)

    def _choose(self, error: float, scale: np.ndarray) -> None:
        """The order of the longest next step, and that step."""
        k, D = self.order, self.D
        lower = self._size(ERROR[k - 1] * D[k], scale) if k > 1 else np.inf
        higher = self._size(ERROR[k + 1] * D[k + 2], scale) if k < MOST_ORDER else np.inf
        with np.errstate(divide="ignore"):
            factors = np.array([lower, error, higher]) ** (-1 / np.arange(k, k + 3))
        best = int(np.argmax(factors))
        factor = min(MOST_FACTOR, SAFETY * float(factors[best]))
        if best == 1 and 1 <= factor < WORTHWHILE:
            return
        self.order = k + best - 1
        self._rescale(max(factor, LEAST_FACTOR))


def conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], b: np.ndarray, allowed: float
) -> np.ndarray | None:
    """x with A x = b for a symmetric A, products by which are given, A >= I: ||x - A^-1 b|| is at most about `allowed`.

    None where A turns out not to be positive definite, or after MOST_PRODUCTS.
    """
    x, r = np.zeros_like(b), b.copy()
    p, square = r.copy(), float(r @ r)
    gains: list[float] = []
    for _ in range(MOST_PRODUCTS):
        if square <= allowed**2:
            return x
        Ap = product(p)
        curvature = float(p @ Ap)
        if not curvature > 0:
            return None
        step = square / curvature
        x += step * p
        r -= step * Ap
        gains.append(step * square)
        if len(gains) > DELAY and sum(gains[-DELAY:]) <= allowed**2:
            return x
        before, square = square, float(r @ r)
        p *= square / before
        p += r
    return None


@cache
def _differences(order: int, factor: float) -> np.ndarray:
    """What takes values of a polynomial to backward differences at points `factor` times as far apart (Shampine and
    Reichelt, section 2.3)."""
    i, j = np.arange(1, order + 1)[:, None], np.arange(1, order + 1)
    M = np.zeros((order + 1, order + 1))
    M[0] = 1.0
    M[1:, 1:] = (i - 1 - factor * j) / i
    return np.cumprod(M, axis=0)


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


def _energy(D: np.ndarray, h: float) -> float:
    """The integral of ||p'||^2 over the last step, p the polynomial with the differences D_1, D_2, ..."""
    return float(np.sum(_slopes_squared(len(D)) * (D @ D.T)) / h)


class Dense:
    """The states at any times of a step: the polynomial of its differences; at its ends their own values."""

    def __init__(self, times: tuple[float, float], ends: tuple[np.ndarray, np.ndarray], D: np.ndarray) -> None:
        self.times, self.ends, self.D = times, ends, D

    def __call__(self, t: np.ndarray) -> np.ndarray:
        s = (t - self.times[1]) / (self.times[1] - self.times[0])
        states = np.array([C(s) for C in _newton(len(self.D) - 1)]).T @ self.D
        for end, state in zip(self.times, self.ends, strict=True):
            states[t == end] = state
        return states
