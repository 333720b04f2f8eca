"""Gauss-Legendre collocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.checks import as_count, as_number
from flowsim.methods.base import ATOL, RTOL, Kind, Method, check_settings

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class GaussLegendre(Method):
    """Gauss-Legendre collocation with 1 to 4 stages, of order 2 stages: keeps every D_l to round-off at any tolerance.

    Implicit; the stage equations use the symmetry of the flow's Jacobian. Error control by rtol and atol; with
    step_size the steps are all that long and uncontrolled. Raises InputError for stages or a tolerance out of range.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> for method in (fs.Scipy("RK45", rtol=1e-3), fs.GaussLegendre(2, rtol=1e-3)):
    ...     print(method.name, fs.simulate(problem, method, t1=2.0).imbalance_drift.max() < 1e-12)
    RK45 False
    gauss-legendre-2 True
    """

    stages: int = 4
    rtol: float = RTOL
    atol: float = ATOL
    step_size: float | None = None

    def __post_init__(self) -> None:
        as_number(as_count(self.stages, "stages"), "stages", most=4)
        check_settings(self)

    @property
    def name(self) -> str:
        """The method's name in tables: gauss-legendre-STAGES."""
        return f"gauss-legendre-{self.stages}"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return Kind(
            2 * self.stages,
            False,
            "Gauss-Legendre collocation: keeps every D_l to round-off",
            matrix_free=True,
            keeps_invariants=True,
            sources=("hairer2006geometric",),
        )

    def keeps_invariants(self, motion: Motion) -> bool:
        """Without weight decay; with it exp(-2 x t) D_l(0) is followed to the order of the method."""
        return super().keeps_invariants(motion) and not motion.problem.weight_decay

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """One step a segment."""
        from flowsim.methods.gauss_legendre_steps import GaussLegendreSteps

        return GaussLegendreSteps(motion, self, t, state, t1)
