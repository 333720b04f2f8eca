"""What every integrator offers: it starts at (t, state) and advances segment by segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flowsim.errors import NumericalFailure
from flowsim.problem import Problem

DENSE_JACOBIAN_LIMIT = 3000
"""Implicit methods of scipy and diffrax form and factor a dense Jacobian: beyond this many weights they are refused."""


class IntegrationFailure(NumericalFailure):
    """The integrator could not take another step; what was computed before stays valid."""


@dataclass(frozen=True)
class Segment:
    """One or more accepted steps.

    times (K+1): the ends of the steps, times[0] where the segment starts; products (K, n, m): W at times[1:];
    dissipated (K): the integral of ||grad L||_F^2 over each step; evaluate(t): the states (S, size) at any times t (S)
    of the segment; discrete: the method lives on its steps only (gradient descent), straight lines join them.
    """

    times: np.ndarray
    products: np.ndarray
    dissipated: np.ndarray
    evaluate: Callable[[np.ndarray], np.ndarray]
    discrete: bool = False


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

    counts: Counts

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


GAUSS_NODES, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(4)


def dissipation(problem: Problem, evaluate: Callable[[np.ndarray], np.ndarray], start: float, end: float) -> float:
    """The integral of ||grad L||_F^2 along evaluate(t) from start to end, by four Gauss points."""
    half = 0.5 * (end - start)
    velocities = (problem.velocity(state) for state in evaluate(start + half * (1 + GAUSS_NODES)))
    return half * float(sum(weight * (v @ v) for weight, v in zip(GAUSS_WEIGHTS, velocities, strict=True)))


@dataclass
class CountingVelocity:
    """The right-hand side of the flow, counting its evaluations."""

    problem: Problem
    counts: Counts = field(default_factory=Counts)

    def __call__(self, t: float, state: np.ndarray) -> np.ndarray:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + 1
        return self.problem.velocity(state)
