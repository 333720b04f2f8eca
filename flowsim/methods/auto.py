"""The method that changes its integrator where the problem turns stiff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.methods.base import Kind, Tolerated

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class Auto(Tolerated):
    """DOP853, and krylov-bdf while the problem is stiff; the run's detail says when.

    It hands over where stability has bounded the steps of DOP853 for a while and much time is left at such steps, and
    hands back where krylov-bdf takes more gradients a unit of time than DOP853 would at the stability bound. Dynamics
    that krylov-bdf is not made for are DOP853's alone.
    Raises InputError for a tolerance out of range, or a step_size.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> loss = fs.LeastSquares(np.diag([1.0, 30.0]), np.ones((2, 1)))
    >>> run = fs.simulate(fs.Problem(loss, fs.fan_in((2, 3, 1), seed=0)), "auto", t1=20.0)
    >>> run.status, run.detail.split(" from")[0]
    ('completed', 'Stiff: krylov-bdf took over')
    """

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        line = "dop853, and krylov-bdf while the problem is stiff"
        sources = ("virtanen2020scipy", "hairer1993solving", "shampine1997matlab", "brown1989reduced")
        return Kind(None, True, line, stabilised=True, sources=sources)

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """One step a segment."""
        from flowsim.methods.auto_steps import AutoSteps

        return AutoSteps(motion, self, t, state, t1)
