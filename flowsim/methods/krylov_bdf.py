"""Backward differentiation with conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.methods.base import Kind, Tolerated

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class KrylovBDF(Tolerated):
    """Backward differentiation of order 1 to 5, its equations solved by Newton's method and conjugate gradients.

    For stiff gradient flows of any size: it forms no Jacobian. The Jacobian -Hess L is symmetric, and where the
    product is thin beside the widths it acts on few coordinates (flowsim.network.tangent), so that a step of a length h
    takes about (h |lambda|_max)^(1/2) products, each the work of a gradient, where stability bounds explicit methods
    to h |lambda|_max of a few. It varies its step and order: there is no step_size. It keeps about twenty copies of the
    weights.
    Raises InputError for a tolerance out of range, or a step_size.

    Data of condition number 900, whose flow is stiff:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> loss = fs.LeastSquares(np.diag([1.0, 30.0]), np.ones((2, 1)))
    >>> problem = fs.Problem(loss, fs.fan_in((2, 3, 1), seed=0))
    >>> plain, stiff = (fs.simulate(problem, name, t1=20.0) for name in ("dop853", "krylov-bdf"))
    >>> 5 * stiff.stats["steps"] < plain.stats["steps"], np.allclose(stiff.products, plain.products, atol=1e-6)
    (True, True)
    """

    @property
    def name(self) -> str:
        """The method's name in tables."""
        return "krylov-bdf"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        line = "backward differentiation, order 1 to 5, by conjugate gradients: stiff networks of any size"
        return Kind(None, False, line, matrix_free=True, sources=("shampine1997matlab", "brown1989reduced"))

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """One step a segment."""
        from flowsim.methods.krylov_bdf_steps import KrylovBDFSteps

        return KrylovBDFSteps(motion, self, t, state, t1)
