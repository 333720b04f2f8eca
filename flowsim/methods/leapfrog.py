"""The leapfrog method, for dynamics with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flowsim.checks import as_number
from flowsim.errors import InputError
from flowsim.methods.base import ATOL, RTOL, Kind, Method

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class Leapfrog(Method):
    """Kick, drift, kick: of W'' + b(t) W' = -grad L, with exact damping, and symplectic where b = 0.

    Half a step of V' = -grad L - b(t) V with W held, which is solved exactly; a step of W' = V; the other half. One
    gradient a step, order 2; order 4 is Suzuki's composition of five such steps. Both halves keep the angular momenta
    M_l of the dynamics to round-off, whatever the step size: M_l' = -b M_l holds exactly. Without friction the energy
    does not drift, it swings by O(step_size^order) (Hairer, Lubich and Wanner, Geometric Numerical Integration,
    sections II.4 and IX.8; with friction: McLachlan and Perlmutter, "Conformal Hamiltonian systems", J. Geom. Phys. 39,
    2001). Stable for step_size below about 2 / lambda_max(Hess L)^(1/2); order 4 goes back for a part of its step,
    which friction much above 1 / step_size does not let it. There is no error estimate.

    Raises InputError unless step_size > 0 and order is 2 or 4; simulate refuses dynamics without momentum.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> coarse, fine = (fs.simulate(problem, fs.Leapfrog(h), t1=9.0, dynamics=fs.HeavyBall(0.5)) for h in (0.1, 0.05))
    >>> round(float(abs(coarse.energy_residual).max() / abs(fine.energy_residual).max()))  # order 2
    4
    >>> bool(max(coarse.motion.residuals(9.0, coarse.checkpoints.whole(-1)).values()) < 1e-14)  # M_l, at any step size
    True
    """

    step_size: float
    order: Literal[2, 4] = 2

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)
        if self.order not in (2, 4):
            raise InputError(f"Argument `order` must be 2 or 4, but it is {self.order!r}.")

    @property
    def name(self) -> str:
        """The method's name in tables."""
        return "leapfrog" if self.order == 2 else f"leapfrog-{self.order}"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        line = "kick, drift, kick with exact damping: dynamics with momentum only, fixed step size"
        return Kind(self.order, True, line, adaptive=False, inertial=True, sources=("mclachlan2001conformal",))

    @property
    def compression_tolerances(self) -> tuple[float, float]:
        """It has no tolerances of its own: its compression error is held to the default ones."""
        return RTOL, ATOL

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """One step a segment."""
        from flowsim.methods.leapfrog_steps import Leaps

        return Leaps(motion, self, t, state, t1)
