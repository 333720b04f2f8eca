"""The dynamics by name: a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from flowsim.checks import as_choice
from flowsim.dynamics.base import Dynamics
from flowsim.dynamics.flows import GradientFlow, ModifiedFlow
from flowsim.dynamics.inertial import HeavyBall, Nesterov
from flowsim.errors import InputError

DYNAMICS: dict[str, type[Dynamics]] = {
    "gradient-flow": GradientFlow,
    "heavy-ball": HeavyBall,
    "nesterov": Nesterov,
    "modified-flow": ModifiedFlow,
}
"""name -> class; the fields are its settings."""


def as_dynamics(value: Dynamics | str | None) -> Dynamics:
    """The dynamics itself, or of a text NAME or NAME:setting (heavy-ball:0.5); None is gradient flow. InputError."""
    if value is None:
        return GradientFlow()
    if isinstance(value, Dynamics):
        return value
    if isinstance(value, str):
        return dynamics_named(value)
    raise InputError(
        f"Argument `dynamics` must be a Dynamics, such as HeavyBall(0.5), or a name, but it is of type"
        f" {type(value).__name__}."
    )


def dynamics_named(text: str) -> Dynamics:
    """NAME or NAME:setting, as the command takes them; InputError for another name or a setting that is no number.

    >>> from flowsim.dynamics import dynamics_named
    >>> dynamics_named("heavy-ball:0.5")
    HeavyBall(friction=0.5)
    """
    name, *given = text.split(":")
    kind: Callable[..., Dynamics] = DYNAMICS[as_choice(name, "dynamics", DYNAMICS)]
    wanted: list[str] = [f.name for f in fields(kind)] if is_dataclass(kind) else []
    if len(given) != len(wanted):
        example = ":".join([name, *("0.5" for _ in wanted)])
        needs = " and ".join(wanted) if wanted else "no setting"
        raise InputError(f"Argument `dynamics` must give {name} {needs}, as in {example}, but it is {text!r}.")
    settings: dict[str, Any] = {}
    for field, number in zip(wanted, given, strict=True):
        try:
            settings[field] = float(number)
        except ValueError as error:
            raise InputError(f"Argument `dynamics` must give a number as {field}, but it is {number!r}.") from error
    return kind(**settings)
