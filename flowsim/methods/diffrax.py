"""The integrators of diffrax, compiled by jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowsim.checks import as_choice, as_number
from flowsim.methods.base import ATOL, RTOL, Kind, Method, check_settings, check_step_size

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Movable


def _kind(order: int, explicit: bool, line: str, *formula: str, adaptive: bool = True) -> Kind:
    return Kind(order, explicit, line, adaptive=adaptive, sources=("kidger2021neural", *formula))


ESDIRK = "ESDIRK, diffrax: for small stiff networks"
DIFFRAX = {
    "Euler": _kind(1, True, "explicit Euler, diffrax: needs a step size", adaptive=False),
    "Heun": _kind(2, True, "explicit Runge-Kutta, diffrax"),
    "Midpoint": _kind(2, True, "explicit Runge-Kutta, diffrax"),
    "Ralston": _kind(2, True, "explicit Runge-Kutta, diffrax"),
    "Bosh3": _kind(3, True, "explicit Runge-Kutta (Bogacki, Shampine), diffrax", "bogacki1989pair"),
    "Tsit5": _kind(5, True, "explicit Runge-Kutta (Tsitouras), diffrax", "tsitouras2011runge"),
    "Dopri5": _kind(5, True, "explicit Runge-Kutta (Dormand, Prince), diffrax", "dormand1980family"),
    "Dopri8": _kind(8, True, "explicit Runge-Kutta (Dormand, Prince), diffrax", "hairer1993solving"),
    "ImplicitEuler": _kind(1, False, "implicit Euler, diffrax: for small stiff networks"),
    "Kvaerno3": _kind(3, False, ESDIRK, "kvaerno2004singly"),
    "Kvaerno4": _kind(4, False, ESDIRK, "kvaerno2004singly"),
    "Kvaerno5": _kind(5, False, ESDIRK, "kvaerno2004singly"),
}
"""name in diffrax -> what is known of it."""


@dataclass(frozen=True)
class Diffrax(Method):
    """An integrator of diffrax, by its name there (a key of DIFFRAX), compiled by jax, in float64.

    Error control by rtol and atol through diffrax's PIDController with the coefficients pcoeff, icoeff and dcoeff (by
    default an integral controller); with step_size the steps are all that long and uncontrolled.
    Raises InputError for an unknown name or a setting out of range.

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    >>> flow = fs.simulate(problem, fs.Diffrax("Tsit5"), t1=3.0)
    >>> bool(abs(flow.product_at(3.0).item() - fs.exact.saxe_mode(3.0, s=2.0, u0=0.01)) < 1e-6)
    True
    >>> fs.Diffrax("Euler")
    Traceback (most recent call last):
    flowsim.errors.InputError: Argument `step_size` must be given for Euler, which has no error estimate.
    """

    takes_single_steps = True

    name: str = "Tsit5"
    rtol: float = RTOL
    atol: float = ATOL
    step_size: float | None = None
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0

    def __post_init__(self) -> None:
        as_choice(self.name, "name", DIFFRAX)
        check_settings(self)
        for coefficient in ("pcoeff", "icoeff", "dcoeff"):
            as_number(getattr(self, coefficient), coefficient)
        check_step_size(self)

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return DIFFRAX[self.name]

    @property
    def key(self) -> str:
        """The name in lower case; implicit-euler."""
        return {"ImplicitEuler": "implicit-euler"}.get(self.name, self.name.lower())

    @property
    def side_by_side(self) -> bool:
        """Explicit methods, under vmap."""
        return self.kind.explicit

    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        import diffrax  # noqa: F401

        from flowsim.methods.jax_support import compile_seconds

        return compile_seconds()

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Movable:
        """Several steps a segment."""
        from flowsim.methods.diffrax_steps import DiffraxSteps

        return DiffraxSteps(motion, self, t, state, t1)

    def step_by_step(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Movable:
        """One step a segment."""
        from flowsim.methods.diffrax_steps import DiffraxSteps

        return DiffraxSteps(motion, self, t, state, t1, longest=1)
