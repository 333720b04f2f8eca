"""What the file of a run holds beside its arrays: one JSON object, its schema written once. Imported where it is read.

Kinds are strict: a text is no number, a number no text, and none is NaN or infinite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model, model_validator

from flowsim.checks import WIDEST, as_choice, check_schema, mistake
from flowsim.dynamics import Dynamics, GradientFlow
from flowsim.errors import InputError
from flowsim.methods import Method, Schedule
from flowsim.runs.record import Count, Work
from flowsim.values import Json

SCHEMA = 1
"""Raised when a file can no longer be read as before."""

Width = Annotated[int, Field(ge=1, le=WIDEST)]
Nonnegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """Of the JSON object; keys that it does not know are left alone."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Part)


class Compression(Part):
    """How the width was compressed; steps None: not at all, and nothing else is there."""

    reason: str
    steps: Count | None
    counts: list[list[Width]] = Field(default_factory=list)
    complete: bool = False
    imbalance_norms: list[Nonnegative] = Field(default_factory=list)


class Drawn(Part):
    """The origin of a network that was drawn in compressed form, from which it can be drawn again."""

    scheme: str
    dims: list[Width]
    scale: Positive
    seed: Annotated[int, Field(ge=0)] | None
    spawn_key: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default_factory=list)


class Provenance(Part):
    """What flowsim itself reads of Trajectory.provenance."""

    configuration: dict[str, JsonValue] = Field(default_factory=dict)


class Contents(Part):
    """The whole object."""

    dims: Annotated[list[Width], Field(min_length=3)]
    scale: Positive
    origin: dict[str, JsonValue]
    method: dict[str, JsonValue]
    loss: str
    loss_numbers: dict[str, float]
    status: str
    detail: str
    stats: Work
    provenance: dict[str, JsonValue]
    reduction: Compression
    weight_decay: Nonnegative = 0.0
    dynamics: dict[str, JsonValue] = Field(default_factory=GradientFlow().describe)
    restarts: list[Positive] = Field(default_factory=list)
    before: list[dict[str, JsonValue]] = Field(default_factory=list)

    @model_validator(mode="after")
    def fits(self) -> Contents:
        """What one field says of another."""
        counts, dims = self.reduction.counts, self.dims
        if any(later <= earlier for earlier, later in pairwise(self.restarts)):
            raise ValueError("`restarts` must ascend, but they do not")
        if self.before and len(self.before) != len(self.restarts):
            raise ValueError("`before` must be a method for each of `restarts`, or none, but it is not")
        if self.reduction.steps is None:
            return self
        if len(self.reduction.imbalance_norms) != len(dims) - 2:
            raise ValueError(f"`reduction.imbalance_norms` must be {len(dims) - 2}, but they are not")
        if not counts or any(
            len(row) != len(dims) or row[0] != dims[0] or row[-1] != dims[-1] or any(map(int.__gt__, row, dims))
            for row in counts
        ):
            raise ValueError("`reduction.counts` must be widths within `dims`, a list a level, but they are not")
        if any(any(map(int.__gt__, below, above)) for below, above in pairwise(counts)):
            raise ValueError("`reduction.counts` must grow from level to level, but they do not")
        return self


def contents_of(text: Any, path: str | Path, schema: int) -> tuple[Contents, Json]:
    """The object, checked, and as it stands there. Raises InputError saying which entry is what it cannot be, or that
    it is of a schema beyond the one known."""
    try:
        record = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, "its attribute flowsim is no JSON") from error
    if not isinstance(record, dict):
        raise damaged(path, "its attribute flowsim is no JSON object")
    check_schema(record.get("schema"), schema, f"File {path}")
    contents = _as(Contents, record, path, "")
    configuration = _as(Provenance, record["provenance"], path, "provenance.").configuration
    if not isinstance(configuration.get("method", ""), str):
        raise damaged(path, "`provenance.configuration.method` must be a name, but it is none")
    if not isinstance(contents.origin.get("scheme", ""), str):
        raise damaged(path, "`origin.scheme` must be a name, but it is none")
    if contents.origin.get("form") == "sampled" and _as(Drawn, record["origin"], path, "origin.").dims != contents.dims:
        raise damaged(path, "`origin.dims` must be `dims`, but they are others")
    return contents, record


def method_of(record: Mapping[str, Any], path: str | Path) -> Method:
    """The method that `describe` described. Raises InputError for another record."""
    settings = dict(record)
    if isinstance(settings.get("method"), dict):
        settings["method"] = method_of(settings["method"], path)
    if isinstance(settings.get("schedule"), dict):
        settings["schedule"] = _described(settings["schedule"], Schedule.FAMILIES, path, "method.schedule")
    found: Method = _described(settings, Method.FAMILIES, path, "method")
    return found


def dynamics_of(record: Mapping[str, Any], path: str | Path) -> Dynamics:
    """The dynamics that `describe` described. Raises InputError for another record, or where its class is unknown: one
    of one's own has to be defined before."""
    found: Dynamics = _described(record, Dynamics.FAMILIES, path, "dynamics")
    return found


def _described(record: Mapping[str, Any], families: Mapping[str, type], path: str | Path, place: str) -> Any:
    """An object of one of the families, whose fields declare the kinds of its settings."""
    settings = dict(record)
    with refusals_of(path):
        family = families[as_choice(settings.pop("family", None), f"{place}.family", families)]
    hints = get_type_hints(family)
    hints |= {name: Any for name, value in settings.items() if isinstance(value, Method | Schedule)}
    hints |= {"schedule": Any} if settings.get("schedule", 0) is None else {}
    usual = {f.name: ... if f.default is MISSING else f.default for f in fields(family)}
    declared: dict[str, Any] = {name: (hints[name], default) for name, default in usual.items()}
    model = create_model(family.__name__, __base__=_Settings, **declared)
    _as(model, settings, path, f"{place}.")
    with refusals_of(path):
        return family(**settings)


class _Settings(Part):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def damaged(path: str | Path, cause: str) -> InputError:
    """One sentence on a file that is not what flowsim saved."""
    return InputError(
        f"Argument `path` must be a run saved by flowsim, but {path} is damaged or foreign: {cause}; restore it from a"
        " copy, or simulate again."
    )


@contextmanager
def refusals_of(path: str | Path) -> Iterator[None]:
    """What is refused within the block is a part of the file."""
    try:
        yield
    except InputError as error:
        raise damaged(path, str(error).removeprefix("Argument ").rstrip(".")) from error


def _as(kind: type[P], record: object, path: str | Path, place: str) -> P:
    """The record as that part of the object, its first mistake told."""
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = place + ".".join(map(str, first["loc"]))
        raise damaged(path, " ".join(part for part in (f"`{name}`" if name else "", mistake(first)) if part)) from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is no float64")
    return number
