"""Values that a user may add to: frozen dataclasses of settings, whose class name stands for them in files."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from flowsim.errors import InputError
from flowsim.values import Json


class Family(ABC):
    """What methods, dynamics and schedules share; each of these has a table of its own, FAMILIES.

    A subclass is a frozen dataclass of settings that JSON can hold. It is in the table from its definition on: a file
    that names it can be read then. Raises InputError for a subclass with the name of one of flowsim's.
    """

    FAMILIES: ClassVar[dict[str, type[Any]]]
    """class name -> class."""

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if Family in cls.__bases__:
            cls.FAMILIES = {}
            return
        known = cls.FAMILIES.get(cls.__name__)
        if known is not None and _is_ours(known) and known.__module__ != cls.__module__:
            root = next(base for base in cls.__mro__ if Family in base.__bases__)
            raise InputError(
                f"A {root.__name__.lower()}'s class must not be called {cls.__name__}: flowsim has one of that name."
            )
        cls.FAMILIES[cls.__name__] = cls

    @property
    def built_in(self) -> bool:
        """Whether it is one of flowsim's own."""
        return _is_ours(type(self))

    def settings_told(self) -> list[str]:
        """Its settings in words."""
        return [f"{name} {told(value)}" for name, value in settings_of(self).items()]

    def describe(self) -> Json:
        """A JSON-able record, which `described` reads; a function among the settings is told by its name."""
        return {"family": type(self).__name__, **{name: _plain(value) for name, value in settings_of(self).items()}}

    @classmethod
    def described(cls, record: Mapping[str, Any]) -> Self:
        """The value of a record. Raises InputError, KeyError or TypeError for a foreign one."""
        settings = dict(record)
        found: Self = cls.FAMILIES[str(settings.pop("family"))](**settings)
        return found


def settings_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass; of a class that is none there are none."""
    return {f.name: getattr(value, f.name) for f in fields(value)} if hasattr(value, "__dataclass_fields__") else {}


def told(value: Any) -> str:
    """A setting in words."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Family):
        return value.describe()
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def _is_ours(kind: type[Any]) -> bool:
    return kind.__module__.startswith("flowsim.")
