"""Methods: frozen values that name an integrator and its settings, and the table of the known names.

Families: Auto, Scipy, Diffrax, GaussLegendre, KrylovBDF, RKC, Projected, Leapfrog, GradientDescent; each starts its
integrator (`*_steps`), which is imported then.
"""

from __future__ import annotations

from flowsim.methods.auto import Auto
from flowsim.methods.base import ATOL, LEAST_RTOL, RTOL, Kind, Method
from flowsim.methods.descent import GradientDescent
from flowsim.methods.diffrax import DIFFRAX, Diffrax
from flowsim.methods.gauss_legendre import GaussLegendre
from flowsim.methods.krylov_bdf import KrylovBDF
from flowsim.methods.leapfrog import Leapfrog
from flowsim.methods.observed import Observed
from flowsim.methods.projected import Projected
from flowsim.methods.rkc import RKC
from flowsim.methods.schedules import Cosine, Schedule, StepDecay, WarmUp
from flowsim.methods.scipy import SCIPY, Scipy
from flowsim.methods.table import DEFAULT_METHOD, METHODS, Entry, as_method, method_named

__all__ = [
    "ATOL",
    "DEFAULT_METHOD",
    "DIFFRAX",
    "LEAST_RTOL",
    "METHODS",
    "RKC",
    "RTOL",
    "SCIPY",
    "Auto",
    "Cosine",
    "Diffrax",
    "Entry",
    "GaussLegendre",
    "GradientDescent",
    "Kind",
    "KrylovBDF",
    "Leapfrog",
    "Method",
    "Observed",
    "Projected",
    "Schedule",
    "Scipy",
    "StepDecay",
    "WarmUp",
    "as_method",
    "method_named",
]
