"""Weights that were trained elsewhere: what stands for the method of a run that flowsim did not make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.errors import InputError
from flowsim.methods.base import Kind, Method

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class Observed(Method):
    """No method of integration: the weights of the run were recorded while something else trained them.

    Such a run has weights at its recorded times and nowhere else; none of its laws is judged, for it is not known what
    it should obey. `observe` makes it.
    """

    @property
    def kind(self) -> Kind:
        """What is known of it."""
        line = "weights that were trained elsewhere, at the times at which they were recorded"
        return Kind(None, True, line, adaptive=False, discrete=True, recorded=True)

    @property
    def step_size(self) -> None:
        """Not known."""
        return None

    @property
    def tolerances(self) -> None:
        """There are none."""
        return None

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """Raises InputError: between and beyond the recorded times nothing is known."""
        raise InputError(
            f"Argument `t` must be one of the recorded times, such as {t:.6g}, but it lies between two of them: the"
            " weights were recorded elsewhere. To go on, simulate(Problem(loss, run.network_at(run.time[-1])))."
        )
