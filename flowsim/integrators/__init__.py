"""One adapter a family of methods, behind one protocol (base.Integrator)."""

from __future__ import annotations

import numpy as np

from flowsim.integrators.base import IntegrationFailure, Integrator, Segment
from flowsim.methods import Diffrax, GradientDescent, Method, Scipy
from flowsim.problem import Problem

__all__ = ["IntegrationFailure", "Integrator", "Segment", "start"]


def start(problem: Problem, method: Method, t: float, state: np.ndarray, t1: float) -> Integrator:
    """The integrator of `method`, standing at (t, state), bound for t1."""
    if isinstance(method, GradientDescent):
        from flowsim.integrators.descent import CompiledDescent, Descent

        return (CompiledDescent if method.backend == "jax" else Descent)(problem, method, t, state, t1)
    if isinstance(method, Diffrax):
        from flowsim.integrators.diffrax_steps import DiffraxSteps

        return DiffraxSteps(problem, method, t, state, t1)
    if isinstance(method, Scipy):
        from flowsim.integrators.scipy_steps import ScipySteps

        return ScipySteps(problem, method, t, state, t1)
    raise TypeError(f"no integrator for {method!r}")
