"""What every integrator offers: it starts at (t, state) and advances segment by segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from flowsim.dynamics import Motion
from flowsim.errors import InputError, NumericalFailure

ROUND_OFF = 4 * float(np.finfo(float).eps)
"""Of the greatest weight (or of its square): no correction is asked to be smaller."""
DENSE_JACOBIAN_LIMIT = 3000
"""Implicit methods of scipy and diffrax form and factor a dense Jacobian: beyond this many weights they are refused."""
LEAST_SPAN = 1e-150
"""A shorter span is first tried in one step."""


class IntegrationFailure(NumericalFailure):
    """The integrator could not take another step; what was computed before stays valid."""


@dataclass(frozen=True)
class Segment:
    """One or more accepted steps.

    times (K+1): the ends of the steps, times[0] where the segment starts; products (K, n, m): W at times[1:];
    dissipated (K): the integral of the power, ||grad L||_F^2 for gradient flow, over each step; evaluate(t): the states
    (S, size) at any times t (S) of the segment, before the next is taken; discrete: the method lives on its steps only
    (gradient descent), straight lines join them; layers(t): the weights at these times as L stacks that are applied and
    not formed, or None where they are no cheaper than the states.
    """

    times: np.ndarray
    products: np.ndarray
    dissipated: np.ndarray
    evaluate: Callable[[np.ndarray], np.ndarray]
    discrete: bool = False
    layers: Callable[[np.ndarray], list[Any] | None] = lambda t: None


@dataclass
class Counts:
    """Work done so far; None where the integrator does not tell."""

    rhs_evaluations: int | None = 0
    rejected_steps: int | None = None
    jacobians: int | None = None

    def plus(self, other: Counts) -> Counts:
        """The work of two integrators, one after the other."""
        sums = {name: _sum(value, getattr(other, name)) for name, value in vars(self).items()}
        return Counts(**sums)


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


class Integrator(Protocol):
    """Driven by `while integrator.t < integrator.t1: segment = integrator.advance()`."""

    @property
    def counts(self) -> Counts:
        """The work done so far."""
        ...

    @property
    def t(self) -> float:
        """The time reached."""
        ...

    @property
    def t1(self) -> float:
        """The time it is bound for."""
        ...

    def advance(self) -> Segment:
        """Take one or more steps. Raises IntegrationFailure when the next one is impossible."""
        ...


class Movable(Integrator, Protocol):
    """An integrator of a one-step method, one step a segment, that can go on from another state."""

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached."""
        ...


class Reusable(Integrator, Protocol):
    """An integrator that can go on from another state and time, knowing what it knows of step sizes and Jacobian."""

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, with a step of at least that size first."""
        ...


GAUSS_NODES, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(4)


def dissipation(motion: Motion, evaluate: Callable[[np.ndarray], np.ndarray], start: float, end: float) -> float:
    """The integral of the power, ||grad L||_F^2 for gradient flow, along evaluate(t) from start to end, by four Gauss
    points."""
    half = 0.5 * (end - start)
    times = start + half * (1 + GAUSS_NODES)
    powers = (float(motion.power(t, motion.velocity(t, y))) for t, y in zip(times, evaluate(times), strict=True))
    return half * sum(weight * power for weight, power in zip(GAUSS_WEIGHTS, powers, strict=True))


@dataclass
class CountingVelocity:
    """The right-hand side F(t, y), counting its evaluations."""

    motion: Motion
    counts: Counts = field(default_factory=Counts)

    def __call__(self, t: float, state: np.ndarray) -> np.ndarray:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + 1
        return self.motion.velocity(t, state)


def scaled_norm(error: np.ndarray, y0: np.ndarray, y1: np.ndarray, rtol: float, atol: float) -> float:
    """The root mean square of error / (atol + rtol max(|y0|, |y1|)): at most 1 when the tolerance is met."""
    scaled = error / scale_of(y0, y1, rtol, atol)
    value = float(np.sqrt(scaled @ scaled / scaled.size))
    return value if np.isfinite(value) else np.inf


def scale_of(y0: np.ndarray, y1: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """atol + rtol max(|y0|, |y1|)."""
    scale = np.abs(y1)
    np.maximum(np.abs(y0), scale, out=scale)
    scale *= rtol
    scale += atol
    return scale


MOST_DEFECT = 10.0
"""Of h ||p' - F(p)|| in the middle of a step with interpolant p (a quarter in, where p has the flow's slope in the
middle), in units of the tolerance: about 1 where accuracy limits the step of DOP853, from 100 on where stability does.
"""
# p' by the central difference of order 4; the last point is the middle itself
STENCIL = 1e-3 * np.array([-2.0, -1.0, 1.0, 2.0, 0.0])
DERIVATIVE = np.array([1.0, -8.0, 8.0, -1.0, 0.0]) / 12e-3


def is_faithful(
    interpolant: Callable[[np.ndarray], np.ndarray],
    velocity: Callable[[float, np.ndarray], np.ndarray],
    times: tuple[float, float],
    ends: tuple[np.ndarray, np.ndarray],
    rtol: float,
    atol: float,
) -> bool:
    """Whether an interpolant p(t), (S, size) at times (S), solves the equation in the middle of a step.

    An error e of p in a stiff direction has the defect h |lambda| e: it is seen long before it spoils the weights.
    """
    h, middle = times[1] - times[0], 0.5 * (times[0] + times[1])
    near = interpolant(middle + h * STENCIL)
    defect = DERIVATIVE @ near - h * velocity(middle, near[-1])
    return scaled_norm(defect, *ends, rtol, atol) <= MOST_DEFECT


def spectral_radius(
    product: Callable[[np.ndarray], np.ndarray], direction: np.ndarray
) -> tuple[float, np.ndarray | None]:
    """(|lambda|_max of a symmetric matrix to 5 per cent, from below; its eigenvector, None where that was not found).

    product: the matrix times a vector, or times each row of a stack. Lanczos starts from `direction`; three rows or
    fewer are solved directly.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    size = direction.size
    if size <= 3:
        return float(np.abs(np.linalg.eigvalsh(product(np.eye(size)))).max()), None
    if not product(direction).any():  # Lanczos cannot start: a stationary point of order 2, or a direction without luck
        direction = np.random.default_rng(0).standard_normal(size)
        if not product(direction).any():
            return 0.0, None
    J = LinearOperator((size, size), matvec=lambda v: product(np.ravel(v)), dtype=np.float64)
    try:
        values, vectors = eigsh(J, 1, which="LM", tol=0.05, v0=direction)
    except ArpackNoConvergence as partial:
        values, vectors = partial.eigenvalues, partial.eigenvectors
    except ArpackError:
        values = np.zeros(0)
    if not len(values):
        return float(np.linalg.norm(product(direction)) / np.linalg.norm(direction)), None
    return float(np.abs(values).max()), vectors[:, -1]


STABILITY_GRADIENTS = 12 / 6.1
"""That DOP853 takes a unit of time and |lambda|_max where stability bounds its steps: 12 a step, h |lambda|_max 6.1."""


def greatest_eigenvalue(motion: Motion, t: float, state: np.ndarray) -> float:
    """About |lambda|_max of dF/dy at a state."""
    return motion.radius(t, state, lambda product, size: spectral_radius(product, np.ones(size))[0])


def counted_product(motion: Motion, counts: Counts, t: float, state: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """v -> dF/dy v at a state, or of each row of a stack: two gradients' work, counted."""

    def product(v: np.ndarray) -> np.ndarray:
        counts.rhs_evaluations = (counts.rhs_evaluations or 0) + 2 * v[..., 0].size
        return motion.jacobian_product(t, state, v)

    return product


def first_step(
    velocity: Callable[[float, np.ndarray], np.ndarray],
    t: float,
    y: np.ndarray,
    order: int,
    rtol: float,
    atol: float,
    span: float,
) -> float:
    """A first step size from (t, y) for a method of that order (Hairer, Norsett and Wanner, section II.4)."""
    f = velocity(t, y)
    size, speed = scaled_norm(y, y, y, rtol, atol), scaled_norm(f, y, y, rtol, atol)
    trial = min(0.01 * size / speed if min(size, speed) > 1e-5 else 1e-6, span)
    bend = scaled_norm(velocity(t + trial, y + trial * f) - f, y, y, rtol, atol) / trial
    greatest = max(speed, bend)
    step = (0.01 / greatest) ** (1 / (order + 1)) if greatest > 1e-15 else max(1e-6, 1e-3 * trial)
    return min(100 * trial, step, span)


def check_structure(motion: Motion, name: str, *fits: str) -> None:
    """Refuse a dynamics that a method is not made for."""
    if motion.structure not in fits:
        raise InputError(
            f"Argument `method` must suit the dynamics, but {name} is made for the symmetric Jacobian of a gradient"
            f" flow and cannot take {motion.dynamics.name}; use dop853, or radau where it is stiff."
        )
