"""Methods: frozen values that name an integrator and its settings, and the table of the known names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from flowsim.checks import as_choice, as_count, as_number
from flowsim.errors import InputError

LEAST_RTOL = 1e-13
"""Below this relative tolerance round-off in float64 decides, and step-size control fails."""


TOLD = ("rtol", "atol", "stages")
"""Settings that str() of a method always tells."""


@dataclass(frozen=True)
class Kind:
    """One method: its order (None where it varies), whether it is explicit, a line on it; matrix_free if implicit."""

    order: int | None
    explicit: bool
    line: str
    matrix_free: bool = False

    @property
    def dense_jacobian(self) -> bool:
        """Whether the method forms and factors the Jacobian as a matrix."""
        return not (self.explicit or self.matrix_free)


SCIPY = {
    "RK23": Kind(3, True, "explicit Runge-Kutta (Bogacki, Shampine), scipy"),
    "RK45": Kind(5, True, "explicit Runge-Kutta (Dormand, Prince), scipy"),
    "DOP853": Kind(8, True, "explicit Runge-Kutta (Dormand, Prince), scipy: the default"),
    "Radau": Kind(5, False, "implicit Runge-Kutta Radau IIA, scipy: for small stiff networks"),
    "BDF": Kind(None, False, "backward differentiation, order 1 to 5, scipy: for small stiff networks"),
    "LSODA": Kind(None, False, "Adams or backward differentiation, switching by itself, scipy: for small networks"),
}
DIFFRAX = {
    "Euler": Kind(1, True, "explicit Euler, diffrax: needs a step size"),
    "Heun": Kind(2, True, "explicit Runge-Kutta, diffrax"),
    "Midpoint": Kind(2, True, "explicit Runge-Kutta, diffrax"),
    "Ralston": Kind(2, True, "explicit Runge-Kutta, diffrax"),
    "Bosh3": Kind(3, True, "explicit Runge-Kutta (Bogacki, Shampine), diffrax"),
    "Tsit5": Kind(5, True, "explicit Runge-Kutta (Tsitouras), diffrax"),
    "Dopri5": Kind(5, True, "explicit Runge-Kutta (Dormand, Prince), diffrax"),
    "Dopri8": Kind(8, True, "explicit Runge-Kutta (Dormand, Prince), diffrax"),
    "ImplicitEuler": Kind(1, False, "implicit Euler, diffrax: for small stiff networks"),
    "Kvaerno3": Kind(3, False, "ESDIRK, diffrax: for small stiff networks"),
    "Kvaerno4": Kind(4, False, "ESDIRK, diffrax: for small stiff networks"),
    "Kvaerno5": Kind(5, False, "ESDIRK, diffrax: for small stiff networks"),
}


def _check_settings(method: Any) -> None:
    as_number(method.rtol, "rtol", least=LEAST_RTOL, most=1.0)
    as_number(method.atol, "atol", least=0.0)
    if method.step_size is not None:
        as_number(method.step_size, "step_size", above=0.0)


class Named:
    """What the methods share: str() of a method: its name, its tolerances, and what differs from the default."""

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        usual = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        name = str(values.pop("name", type(self).__name__))
        told = {k: v for k, v in values.items() if k in TOLD or v != usual[k]}
        settings = [
            str(v) if k == "method" else f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items()
        ]
        return ", ".join([name, *settings])


@dataclass(frozen=True)
class Scipy(Named):
    """An integrator of scipy.integrate, by its name there (a key of SCIPY), with error control by rtol and atol.

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

    name: str = "DOP853"
    rtol: float = 1e-8
    atol: float = 1e-10
    step_size: float | None = None

    def __post_init__(self) -> None:
        as_choice(self.name, "name", SCIPY)
        _check_settings(self)
        if self.kind.order is None and self.step_size is not None:
            raise InputError(f"Argument `step_size` must be None for {self.name}, which varies its step and order.")

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return SCIPY[self.name]


@dataclass(frozen=True)
class Diffrax(Named):
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

    name: str = "Tsit5"
    rtol: float = 1e-8
    atol: float = 1e-10
    step_size: float | None = None
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0

    def __post_init__(self) -> None:
        as_choice(self.name, "name", DIFFRAX)
        _check_settings(self)
        for coefficient in ("pcoeff", "icoeff", "dcoeff"):
            as_number(getattr(self, coefficient), coefficient)
        if self.name == "Euler" and self.step_size is None:
            raise InputError("Argument `step_size` must be given for Euler, which has no error estimate.")

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return DIFFRAX[self.name]


@dataclass(frozen=True)
class GaussLegendre(Named):
    """Gauss-Legendre collocation with 1 to 4 stages, of order 2 stages: keeps every D_l to round-off at any tolerance.

    Implicit; the stage equations use the symmetry of the flow's Jacobian. With step_size the steps are all that long
    and uncontrolled. Raises InputError for stages or a tolerance out of range.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> for method in (fs.Scipy("RK45", rtol=1e-3), fs.GaussLegendre(2, rtol=1e-3)):
    ...     print(method.name, fs.simulate(problem, method, t1=2.0).imbalance_drift.max() < 1e-12)
    RK45 False
    gauss-legendre-2 True
    """

    stages: int = 4
    rtol: float = 1e-8
    atol: float = 1e-10
    step_size: float | None = None

    def __post_init__(self) -> None:
        as_number(as_count(self.stages, "stages"), "stages", most=4)
        _check_settings(self)

    @property
    def name(self) -> str:
        """The method's name in tables: gauss-legendre-STAGES."""
        return f"gauss-legendre-{self.stages}"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return Kind(
            2 * self.stages, False, "Gauss-Legendre collocation: keeps every D_l to round-off", matrix_free=True
        )


@dataclass(frozen=True)
class RKC(Named):
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

    rtol: float = 1e-8
    atol: float = 1e-10
    step_size: float | None = None

    def __post_init__(self) -> None:
        _check_settings(self)

    name = "rkc"
    kind = Kind(2, True, "stabilised explicit Runge-Kutta-Chebyshev: stiff networks of any size, loose tolerances")


@dataclass(frozen=True)
class Projected(Named):
    """An explicit one-step method whose every step is projected back onto {D_l = D_l(0) for all l}.

    method: Scipy or Diffrax with the name of an explicit method, or RKC. Raises InputError for another one.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> plain = fs.Scipy("RK45", rtol=1e-3)
    >>> for method in (plain, fs.Projected(plain)):
    ...     print(method.name, fs.simulate(problem, method, t1=2.0).imbalance_drift.max() < 1e-12)
    RK45 False
    projected-RK45 True
    """

    method: Scipy | Diffrax | RKC

    def __post_init__(self) -> None:
        if not isinstance(self.method, (Scipy, Diffrax, RKC)) or not self.method.kind.explicit:
            raise InputError(
                "Argument `method` must be an explicit Runge-Kutta method of Scipy or Diffrax, or RKC, to be projected,"
                f" but it is {getattr(self.method, 'name', self.method)!r}; gauss-legendre keeps the invariants itself."
            )

    @property
    def name(self) -> str:
        """The method's name in tables: projected-NAME."""
        return f"projected-{self.method.name}"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return replace(self.method.kind, line=f"{self.method.kind.line}; projected onto the invariants")

    @property
    def rtol(self) -> float:
        """The relative tolerance of the method."""
        return self.method.rtol

    @property
    def atol(self) -> float:
        """The absolute tolerance of the method."""
        return self.method.atol


@dataclass(frozen=True)
class GradientDescent(Named):
    """W_l <- W_l - step_size dL/dW_l; step k is time t = k step_size.

    backend "numpy" is a plain loop, "jax" a compiled scan. Raises InputError unless step_size > 0.

    Until a given time the imbalance drifts in proportion to the step size; the flow conserves it:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> coarse, fine = (fs.simulate(problem, fs.GradientDescent(eta), t1=2.0) for eta in (0.01, 0.005))
    >>> coarse.stats["steps"], fine.stats["steps"]
    (200, 400)
    >>> round(float(coarse.imbalance_drift.max() / fine.imbalance_drift.max()), 1)
    2.0
    """

    step_size: float
    backend: Literal["numpy", "jax"] = "numpy"

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)
        as_choice(self.backend, "backend", ("numpy", "jax"))

    name = "gd"
    kind = Kind(1, True, "gradient descent with a fixed step size")


Method = Scipy | Diffrax | GaussLegendre | RKC | Projected | GradientDescent
FAMILIES: dict[str, Any] = {f.__name__: f for f in (Scipy, Diffrax, GaussLegendre, RKC, Projected, GradientDescent)}


def settings_of(method: Method) -> Any:
    """What carries the tolerances or the step size: the method itself, or the one that is projected."""
    return method.method if isinstance(method, Projected) else method


def step_tolerance(method: Method, size: float, count: int) -> float | None:
    """What a step may err by, rtol ||W||_F + atol N^(1/2) for N weights; None where the steps are not controlled."""
    settings = settings_of(method)
    if settings.step_size is not None:
        return None
    return float(settings.rtol * size + settings.atol * count**0.5)


def describe(method: Method) -> dict[str, Any]:
    """The method as a JSON-able record, which `described` reads."""
    values = ((f.name, getattr(method, f.name)) for f in fields(method))
    settings = {name: describe(value) if name == "method" else value for name, value in values}
    return {"family": type(method).__name__, **settings}


def described(record: Mapping[str, Any]) -> Method:
    """The method of a record. Raises InputError, KeyError or TypeError for a foreign one."""
    settings: dict[str, Any] = {k: described(v) if k == "method" else v for k, v in record.items()}
    family = FAMILIES[str(settings.pop("family"))]
    method: Method = family(**settings)
    return method


def _entries() -> dict[str, tuple[Callable[..., Method], Kind]]:
    plain: dict[str, tuple[Callable[..., Any], Kind]] = {}
    for family, names in ((Scipy, SCIPY), (Diffrax, DIFFRAX)):
        for name, kind in names.items():
            plain[_spelled(name)] = (lambda f=family, n=name, **settings: f(n, **settings)), kind
    plain["rkc"] = RKC, RKC.kind
    gauss = {
        f"gauss-legendre-{s}": ((lambda s=s, **settings: GaussLegendre(s, **settings)), GaussLegendre(s).kind)
        for s in (1, 2, 3, 4)
    }
    projected = {
        f"projected-{name}": (
            (lambda make=make, **settings: Projected(make(**settings))),
            replace(kind, line=f"{name}, projected onto the invariants: every D_l to round-off"),
        )
        for name, (make, kind) in plain.items()
        if kind.explicit
    }
    default = {"gauss-legendre": gauss["gauss-legendre-4"]}
    return {**plain, **default, **gauss, **projected, "gd": (GradientDescent, GradientDescent.kind)}


def _spelled(name: str) -> str:
    return {"ImplicitEuler": "implicit-euler"}.get(name, name.lower())


METHODS = _entries()
"""name -> (constructor with rtol, atol and step_size, what is known of it)."""


def as_method(value: Any) -> Method:
    """A method, or the one of a name; the default for None. Raises InputError for anything else."""
    if value is None:
        return Scipy()
    if isinstance(value, str):
        return method_named(value)
    if not isinstance(value, Method):
        what = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise InputError(
            f"Argument `method` must be a method such as Scipy('DOP853') or a name such as 'dop853', but it is {what}."
        )
    return value


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

    >>> import flowsim as fs
    >>> fs.method_named("gauss-legendre", rtol=1e-6) == fs.GaussLegendre(4, rtol=1e-6)
    True
    >>> fs.method_named("projected-rk45").method
    Scipy(name='RK45', rtol=1e-08, atol=1e-10, step_size=None)
    """
    key = as_choice(str(name).lower(), "method", METHODS)
    if key == "gd":
        if step_size is None:
            raise InputError(
                "Argument `step_size` must be given for gradient descent; GradientDescent(step_size=5e-6) has one."
            )
        return GradientDescent(step_size, backend)
    if backend != "numpy":
        raise InputError(f"Argument `backend` must be numpy for method {key}: only gradient descent has a choice.")
    return METHODS[key][0](rtol=rtol, atol=atol, step_size=step_size)
