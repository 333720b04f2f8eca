"""Methods: frozen values that name an integrator and its settings, and the table of the known names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flowsim.checks import as_choice, as_number
from flowsim.errors import InputError

LEAST_RTOL = 1e-13
"""Below this relative tolerance round-off in float64 decides, and step-size control fails."""

SCIPY_NAMES = ("RK45", "DOP853", "Radau", "LSODA")
DIFFRAX_NAMES = ("Tsit5", "Dopri5", "Dopri8", "Kvaerno5")


def _check_adaptive(method: Any, names: tuple[str, ...]) -> None:
    as_choice(method.name, "name", names)
    as_number(method.rtol, "rtol", least=LEAST_RTOL, most=1.0)
    as_number(method.atol, "atol", least=0.0)
    if method.step_size is not None:
        as_number(method.step_size, "step_size", above=0.0)


@dataclass(frozen=True)
class Scipy:
    """An integrator of scipy.integrate: "RK45", "DOP853", "Radau" or "LSODA", with error control by rtol and atol.

    With step_size the steps are all that long and uncontrolled (RK45, DOP853, Radau; LSODA varies its own order).
    Raises InputError for an unknown name or a tolerance out of range.
    """

    name: str = "DOP853"
    rtol: float = 1e-8
    atol: float = 1e-10
    step_size: float | None = None

    def __post_init__(self) -> None:
        _check_adaptive(self, SCIPY_NAMES)
        if self.name == "LSODA" and self.step_size is not None:
            raise InputError("Argument `step_size` must be None for LSODA, which varies its step and order.")


@dataclass(frozen=True)
class Diffrax:
    """An integrator of diffrax: "Tsit5", "Dopri5", "Dopri8" or "Kvaerno5", compiled by jax, in float64.

    With step_size the steps are all that long and uncontrolled.
    Raises InputError for an unknown name or a tolerance out of range.
    """

    name: str = "Tsit5"
    rtol: float = 1e-8
    atol: float = 1e-10
    step_size: float | None = None

    def __post_init__(self) -> None:
        _check_adaptive(self, DIFFRAX_NAMES)


@dataclass(frozen=True)
class GradientDescent:
    """W_l <- W_l - step_size dL/dW_l; step k is time t = k step_size.

    backend "numpy" is a plain loop, "jax" a compiled scan. Raises InputError unless step_size > 0.
    """

    step_size: float
    backend: Literal["numpy", "jax"] = "numpy"

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)
        as_choice(self.backend, "backend", ("numpy", "jax"))

    @property
    def name(self) -> str:
        """The method's name in tables."""
        return "gd"


Method = Scipy | Diffrax | GradientDescent

METHODS: dict[str, tuple[Callable[..., Method], str]] = {
    "dop853": (Scipy, "explicit Runge-Kutta, order 8 (scipy), the default"),
    "rk45": (Scipy, "explicit Runge-Kutta, order 5 (scipy)"),
    "radau": (Scipy, "implicit Runge-Kutta Radau IIA, order 5 (scipy), for small stiff networks"),
    "lsoda": (Scipy, "Adams / BDF with automatic switching (scipy), for small networks"),
    "tsit5": (Diffrax, "explicit Runge-Kutta, order 5 (diffrax)"),
    "dopri5": (Diffrax, "explicit Runge-Kutta, order 5 (diffrax)"),
    "dopri8": (Diffrax, "explicit Runge-Kutta, order 8 (diffrax)"),
    "kvaerno5": (Diffrax, "ESDIRK, order 5 (diffrax), for small stiff networks"),
    "gd": (GradientDescent, "gradient descent with a fixed step size"),
}
"""name -> (constructor, one line on it)."""

_PROPER = {name.lower(): name for name in SCIPY_NAMES + DIFFRAX_NAMES}


def method_named(
    name: str = "dop853",
    *,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    step_size: float | None = None,
    backend: Literal["numpy", "jax"] = "numpy",
) -> Method:
    """The method of that name (a key of METHODS). Gradient descent needs step_size; backend concerns it alone.

    Raises InputError for an unknown name (listing the known), or settings that the method cannot use.
    """
    key = as_choice(str(name).lower(), "method", METHODS)
    if key == "gd":
        if step_size is None:
            raise InputError("Argument `step_size` must be given for gradient descent, for example 5e-6.")
        return GradientDescent(step_size, backend)
    if backend != "numpy":
        raise InputError(f"Argument `backend` must be numpy for method {key}: only gradient descent has a choice.")
    return METHODS[key][0](_PROPER[key], rtol, atol, step_size)
