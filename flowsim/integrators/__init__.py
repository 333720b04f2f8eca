"""One adapter a family of methods, behind one protocol (base.Integrator)."""

from __future__ import annotations

import numpy as np

from flowsim.integrators.base import DENSE_JACOBIAN_LIMIT, IntegrationFailure, Integrator, Movable, Reusable, Segment
from flowsim.integrators.guard import MEMBER_FAILURES, Guarded, breakdown
from flowsim.methods import RKC, Diffrax, GaussLegendre, GradientDescent, Method, Projected, Scipy
from flowsim.problem import Problem

__all__ = [
    "DENSE_JACOBIAN_LIMIT",
    "MEMBER_FAILURES",
    "IntegrationFailure",
    "Integrator",
    "Reusable",
    "Segment",
    "compile_seconds",
    "start",
]


def compile_seconds(method: Method) -> float:
    """Seconds that this thread has spent compiling for jax so far; imports what `method` needs, so that it is there."""
    if isinstance(method, Projected):
        return compile_seconds(method.method)
    if isinstance(method, Diffrax):
        import diffrax  # noqa: F401
    elif not (isinstance(method, GradientDescent) and method.backend == "jax"):
        return 0.0
    from flowsim.integrators import jax_support

    return jax_support.compile_seconds()


def start(problem: Problem, method: Method, t: float, state: np.ndarray, t1: float) -> Integrator:
    """The integrator of `method`, standing at (t, state), which it copies, bound for t1.

    Raises IntegrationFailure where it cannot start.
    """
    with breakdown(method.name, t):
        return Guarded(_unguarded(problem, method, t, np.array(state), t1), method.name)


def _unguarded(problem: Problem, method: Method, t: float, state: np.ndarray, t1: float) -> Integrator:
    if isinstance(method, GradientDescent):
        from flowsim.integrators.descent import CompiledDescent, Descent

        return (CompiledDescent if method.backend == "jax" else Descent)(problem, method, t, state, t1)
    if isinstance(method, GaussLegendre):
        from flowsim.integrators.gauss_legendre import GaussLegendreSteps

        return GaussLegendreSteps(problem, method, t, state, t1)
    if isinstance(method, Projected):
        from flowsim.integrators.projected import ProjectedSteps

        return ProjectedSteps(problem, _one_by_one(problem, method.method, t, state, t1))
    if isinstance(method, Diffrax):
        from flowsim.integrators.diffrax_steps import DiffraxSteps

        return DiffraxSteps(problem, method, t, state, t1)
    return _one_by_one(problem, method, t, state, t1)


def _one_by_one(problem: Problem, method: Scipy | Diffrax | RKC, t: float, state: np.ndarray, t1: float) -> Movable:
    """An integrator that takes one step a segment."""
    if isinstance(method, Diffrax):
        from flowsim.integrators.diffrax_steps import DiffraxSteps

        return DiffraxSteps(problem, method, t, state, t1, longest=1)
    if isinstance(method, RKC):
        from flowsim.integrators.chebyshev import ChebyshevSteps

        return ChebyshevSteps(problem, method, t, state, t1)
    from flowsim.integrators.scipy_steps import ScipySteps

    return ScipySteps(problem, method, t, state, t1)
