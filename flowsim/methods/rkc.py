"""The Runge-Kutta-Chebyshev method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.methods.base import Kind, Tolerated

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Movable


@dataclass(frozen=True)
class RKC(Tolerated):
    """The stabilised explicit Runge-Kutta-Chebyshev method of order 2: long steps where only stability limits them.

    With step_size the steps are all that long and uncontrolled, their stages as many as stability asks for.
    Raises InputError for a tolerance out of range.

    Data of condition number 900 make the flow stiff; where RK45 takes hundreds of short steps, RKC takes few with many
    stages:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> loss = fs.LeastSquares(np.diag([1.0, 30.0]), np.ones((2, 1)))
    >>> problem = fs.Problem(loss, fs.fan_in((2, 3, 1), seed=0))
    >>> methods = fs.Scipy("RK45", rtol=1e-3, atol=1e-5), fs.RKC(rtol=1e-3, atol=1e-5)
    >>> plain, stabilised = (fs.simulate(problem, method, t1=2.0).stats for method in methods)
    >>> 10 * stabilised["steps"] < plain["steps"], stabilised["rhs_evaluations"] < plain["rhs_evaluations"]
    (True, True)
    """

    takes_single_steps = True

    @property
    def name(self) -> str:
        """The method's name in tables."""
        return "rkc"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        line = "stabilised explicit Runge-Kutta-Chebyshev: stiff networks of any size, loose tolerances"
        return Kind(2, True, line, stabilised=True, sources=("sommeijer1998rkc",))

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Movable:
        """One step a segment."""
        from flowsim.methods.rkc_steps import ChebyshevSteps

        return ChebyshevSteps(motion, self, t, state, t1)

    step_by_step = begin
