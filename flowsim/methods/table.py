"""The table of the known names: one line a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, Literal, NamedTuple

from flowsim.checks import as_choice
from flowsim.errors import InputError
from flowsim.methods.auto import Auto
from flowsim.methods.base import ATOL, RTOL, Kind, Method
from flowsim.methods.descent import GradientDescent
from flowsim.methods.diffrax import DIFFRAX, Diffrax
from flowsim.methods.gauss_legendre import GaussLegendre
from flowsim.methods.krylov_bdf import KrylovBDF
from flowsim.methods.leapfrog import Leapfrog
from flowsim.methods.projected import Projected, projected_kind
from flowsim.methods.rkc import RKC
from flowsim.methods.schedules import Schedule
from flowsim.methods.scipy import SCIPY, Scipy


class Entry(NamedTuple):
    """make(rtol=, atol=, step_size=) gives the method; kind: what is known of it."""

    make: Callable[..., Method]
    kind: Kind


def _entries() -> dict[str, Entry]:
    plain = {
        method(name, step_size=1.0).key if not kind.adaptive else method(name).key: Entry(partial(method, name), kind)
        for method, table in ((Scipy, SCIPY), (Diffrax, DIFFRAX))
        for name, kind in table.items()
    }
    plain["rkc"] = Entry(RKC, RKC().kind)
    plain["krylov-bdf"] = Entry(KrylovBDF, KrylovBDF().kind)
    gauss = {f"gauss-legendre-{s}": Entry(partial(GaussLegendre, s), GaussLegendre(s).kind) for s in (1, 2, 3, 4)}
    projected = {
        f"projected-{key}": Entry(partial(_projected, entry.make), projected_kind(entry.kind, key))
        for key, entry in plain.items()
        if entry.kind.explicit
    }
    auto = {"auto": Entry(Auto, Auto().kind)}
    default = {"gauss-legendre": gauss["gauss-legendre-4"]}
    descent = {"gd": Entry(GradientDescent, GradientDescent(1.0).kind)}
    leaps = Leapfrog(1.0), Leapfrog(1.0, 4)
    leapfrog = {leap.key: Entry(partial(_leapfrog, leap.order), leap.kind) for leap in leaps}
    return {**auto, **plain, **default, **gauss, **projected, **descent, **leapfrog}


def _leapfrog(order: Literal[2, 4], *, step_size: float, rtol: float, atol: float) -> Method:
    return Leapfrog(step_size, order)  # it has no tolerances


def _projected(make: Callable[..., Method], **settings: float | None) -> Method:
    return Projected(make(**settings))


METHODS = _entries()
"""name -> how to make it, and what is known of it. A method of one's own is one more line."""
DEFAULT_METHOD = Auto().key
"""What simulate takes where no method is given."""


def as_method(value: object) -> Method:
    """A method, or the one of a name; the default for None. Raises InputError for anything else."""
    if value is None:
        return method_named()
    if isinstance(value, str):
        return method_named(value)
    if not isinstance(value, Method):
        what = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise InputError(
            f"Argument `method` must be a method such as Scipy('DOP853') or a name such as 'dop853', but it is {what}."
        )
    if value.kind.recorded:
        raise InputError("Argument `method` must take steps, but Observed stands for weights recorded elsewhere.")
    return value


def method_named(
    name: str = DEFAULT_METHOD,
    *,
    rtol: float = RTOL,
    atol: float = ATOL,
    step_size: float | None = None,
    backend: Literal["numpy", "jax"] = "numpy",
    momentum: float = 0.0,
    nesterov: bool = False,
    schedule: Schedule | str | None = None,
    batch_size: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    independent_batches: bool = False,
) -> Method:
    """The method of that name (a key of METHODS). Gradient descent needs step_size; backend, momentum, nesterov,
    schedule (also as a text, cosine:1000), batch_size, label_noise, seed and independent_batches concern it alone.

    Raises InputError for an unknown name (listing the known), or settings that the method cannot use.

    >>> import flowsim as fs
    >>> fs.method_named("gauss-legendre", rtol=1e-6) == fs.GaussLegendre(4, rtol=1e-6)
    True
    >>> fs.method_named("projected-rk45").method
    Scipy(name='RK45', rtol=1e-08, atol=1e-10, step_size=None)
    """
    key = as_choice(str(name).lower(), "method", METHODS)
    entry = METHODS[key]
    if not entry.kind.adaptive and step_size is None:
        raise InputError(f"Argument `step_size` must be given for {key}, which has no error estimate.")
    own: dict[str, Any] = {"backend": backend, "momentum": momentum, "nesterov": nesterov, "schedule": schedule}
    own |= {"batch_size": batch_size, "label_noise": label_noise, "seed": seed}
    own |= {"independent_batches": independent_batches}
    if key == "gd":
        assert step_size is not None
        return GradientDescent(step_size, **own)
    usual = {field.name: field.default for field in fields(GradientDescent)}
    for name, value in own.items():
        if value != usual[name]:
            raise InputError(f"Argument `{name}` must not be given for method {key}: only gradient descent has it.")
    return entry.make(rtol=rtol, atol=atol, step_size=step_size)
