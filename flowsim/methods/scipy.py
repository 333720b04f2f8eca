"""The integrators of scipy.integrate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.checks import as_choice
from flowsim.methods.base import ATOL, RTOL, Kind, Method, check_settings

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Movable


def _kind(order: int | None, explicit: bool, line: str, formula: str) -> Kind:
    return Kind(order, explicit, line, sources=("virtanen2020scipy", formula))


SCIPY = {
    "RK23": _kind(3, True, "explicit Runge-Kutta (Bogacki, Shampine), scipy", "bogacki1989pair"),
    "RK45": _kind(5, True, "explicit Runge-Kutta (Dormand, Prince), scipy", "dormand1980family"),
    "DOP853": _kind(8, True, "explicit Runge-Kutta (Dormand, Prince), scipy", "hairer1993solving"),
    "Radau": _kind(5, False, "implicit Runge-Kutta Radau IIA, scipy: for small stiff networks", "hairer1996solving"),
    "BDF": _kind(
        None, False, "backward differentiation, order 1 to 5, scipy: for small stiff networks", "shampine1997matlab"
    ),
    "LSODA": _kind(
        None,
        False,
        "Adams or backward differentiation, switching by itself, scipy: for small networks",
        "petzold1983automatic",
    ),
}
"""name in scipy.integrate -> what is known of it."""


@dataclass(frozen=True)
class Scipy(Method):
    """An integrator of scipy.integrate, by its name there (a key of SCIPY), with error control by rtol and atol.

    The explicit ones take scipy's steps by code of our own. Of gradient flow on networks whose product is thin beside
    their width the stages are matrices of rank min(n, m), applied to thin matrices and never formed: the weights are
    formed once a step, and at times to save for the checkpoints alone. Between the ends of steps that stability limits,
    where the interpolant of an explicit method is of no use, states are those of a polynomial that damps what is stiff;
    each is seen to solve the equation within MOST_DEFECT times the tolerance (flowsim.methods.steps).

    With step_size the steps are all that long and uncontrolled (BDF and LSODA vary their own order: they refuse).
    Raises InputError for an unknown name or a setting out of range.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[1.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    >>> true = fs.exact.saxe_mode(3.0, s=1.0, u0=0.01)
    >>> for rtol in (1e-4, 1e-8):
    ...     flow = fs.simulate(problem, fs.Scipy("RK45", rtol, rtol / 100), t1=3.0)
    ...     print(abs(flow.product_at(3.0).item() - true) < 10 * rtol)
    True
    True
    """

    takes_single_steps = True

    name: str = "DOP853"
    rtol: float = RTOL
    atol: float = ATOL
    step_size: float | None = None

    def __post_init__(self) -> None:
        as_choice(self.name, "name", SCIPY)
        check_settings(self)

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return SCIPY[self.name]

    @property
    def key(self) -> str:
        """The name in lower case."""
        return self.name.lower()

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Movable:
        """One step a segment."""
        if self.kind.explicit:
            from flowsim.methods.runge_kutta_steps import RungeKuttaSteps

            return RungeKuttaSteps(motion, self, t, state, t1)
        from flowsim.methods.scipy_steps import ScipySteps

        return ScipySteps(motion, self, t, state, t1)

    step_by_step = begin
