"""What a sweep consists of: the tables of its specification, checked at once, and its members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from flowsim.checks import as_dims, mistake
from flowsim.compression import SAMPLED, cannot_sample, sample_compressed
from flowsim.dynamics import DYNAMICS, Dynamics, as_dynamics
from flowsim.errors import InputError
from flowsim.files import read_toml
from flowsim.initialization import SCHEMES, initialize
from flowsim.losses import LOSSES
from flowsim.losses import Entry as LossEntry
from flowsim.methods import ATOL, DEFAULT_METHOD, METHODS, RTOL, Method, method_named
from flowsim.methods import Entry as MethodEntry
from flowsim.network import LinearNetwork, Network
from flowsim.problem import Problem
from flowsim.rates import THEOREMS, Theorem
from flowsim.runs.settings import (
    Atol,
    BatchSize,
    Momentum,
    Nonnegative,
    Positive,
    Reduce,
    Rtol,
    Steps,
    StopLoss,
    WallLimit,
)
from flowsim.sweeps.store import digest
from flowsim.values import Json

LARGEST_DRAWN = 2**28
"""Members with more weights than this are refused unless drawn in compressed form."""
MOST_MEMBERS = 10**7
"""A sweep of more members is refused."""


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


Numbers = Annotated[list[Positive], BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


OF_DESCENT = ("momentum", "nesterov", "schedule", "batch_size", "label_noise")
"""Settings that concern gradient descent alone; a sweep's other methods do without."""
ADDED = (*OF_DESCENT, "weight_decay", "dynamics")
"""Settings that a member has where they are not the default: the keys of older sweeps stay what they were."""


def _suited(method: str, own: Json) -> Json:
    """The settings of gradient descent, for it alone."""
    return own if method == "gd" else {}


class SweepTable(BaseModel):
    """Table [sweep] of a specification: lists are multiplied."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dims: list[list[int]] = Field(min_length=1)
    scheme: Names = ["fan_out"]
    scale: Numbers = [1.0]
    method: Names = [DEFAULT_METHOD]
    step_size: Annotated[list[Positive], BeforeValidator(_listed)] = []
    rtol: Annotated[list[Rtol], BeforeValidator(_listed), Field(min_length=1)] = [RTOL]
    atol: Annotated[list[Atol], BeforeValidator(_listed), Field(min_length=1)] = [ATOL]
    seeds: int = Field(ge=1)
    root_seed: int = Field(0, ge=0)
    t1: Positive
    stop_loss: StopLoss = None
    max_steps: Steps = None
    wall_limit: WallLimit = None
    reduce: Reduce = "auto"
    draw: Literal["full", "sampled"] = "full"
    certificates: Literal["all", "cheap", "none"] = "all"
    curve_points: int = Field(0, ge=0, le=10_000)
    momentum: Momentum = 0.0
    nesterov: bool = False
    schedule: str | None = None
    batch_size: BatchSize = None
    label_noise: Nonnegative = 0.0
    weight_decay: Nonnegative = 0.0
    dynamics: str | None = None

    @field_validator("dims")
    @classmethod
    def _dims(cls, dims: list[list[int]]) -> list[list[int]]:
        for index, sizes in enumerate(dims):
            as_dims(sizes, f"dims[{index}]")
        return dims

    @field_validator("scheme", "method")
    @classmethod
    def _known(cls, names: list[str], info: ValidationInfo) -> list[str]:
        known = SCHEMES if info.field_name == "scheme" else METHODS
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    @model_validator(mode="after")
    def _together(self) -> SweepTable:
        complaints = [str(refusal).removeprefix("Argument ").rstrip(".") for refusal in self._refusals()]
        needing = [name for name in self.method if not METHODS[name].kind.adaptive]
        if needing and not self.step_size:
            complaints.append(f"step_size must be given for {', '.join(needing)}")
        if self.draw == "sampled":
            for name in self.scheme:
                if name not in SAMPLED:
                    complaints.append(f"draw must be full for {name}: not to be had in compressed form")
                    continue
                for index, sizes in enumerate(self.dims):
                    reason = cannot_sample(name, tuple(sizes))
                    if reason is not None:
                        complaints.append(f"dims[{index}] does not go with draw = 'sampled': {reason}")
        else:
            for index, sizes in enumerate(self.dims):
                weights = sum(a * b for a, b in pairwise(sizes))
                if weights > LARGEST_DRAWN:
                    complaints.append(f"dims[{index}] has {weights:.3g} weights; use draw = 'sampled'")
        for index, sizes in enumerate(self.dims):
            if sizes[0] * sizes[-1] > LARGEST_DRAWN:
                complaints.append(f"dims[{index}] has a target of {sizes[0] * sizes[-1]:.3g} entries; lower its ends")
        if self.count > MOST_MEMBERS:
            complaints.append(f"seeds and the lists must make at most {MOST_MEMBERS} members, but they make more")
        if complaints:
            raise ValueError("; ".join(complaints))
        return self

    @model_serializer(mode="wrap")
    def _plain(self, serialize: SerializerFunctionWrapHandler) -> Json:
        """Added settings go without saying at their defaults."""
        tables: Json = serialize(self)
        fields = SweepTable.model_fields
        return {key: value for key, value in tables.items() if key not in ADDED or value != fields[key].default}

    def _refusals(self) -> Iterable[InputError]:
        """What the settings of gradient descent and the dynamics are refused for."""
        try:
            as_dynamics(self.dynamics)
        except InputError as refusal:
            yield refusal
        own = {name: getattr(self, name) for name in OF_DESCENT}
        for name in self.method:
            try:
                method_named(name, step_size=None if METHODS[name].kind.adaptive else 1.0, **_suited(name, own))
            except InputError as refusal:
                yield refusal

    @property
    def count(self) -> int:
        """How many members there are."""
        lists: tuple[Sequence[object], ...] = (self.dims, self.scheme, self.scale, self.method, self.rtol, self.atol)
        return self.seeds * max(len(self.step_size), 1) * prod(len(values) for values in lists)


class TargetTable(BaseModel):
    """Table [target]: Y of the squared loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: str = "squared"
    kind: Literal["ones", "normal"] = "ones"
    seed: int = Field(0, ge=0)
    scale: float = Field(1.0, gt=0)

    @field_validator("loss")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [key for key, entry in LOSSES.items() if entry.of_target is not None]
        if name not in known:
            raise ValueError(f"unknown {name}; known: {', '.join(known)}")
        return name

    @model_serializer(mode="wrap")
    def _plain(self, serialize: SerializerFunctionWrapHandler) -> Json:
        """The squared loss goes without saying."""
        tables: Json = serialize(self)
        return {key: value for key, value in tables.items() if (key, value) != ("loss", "squared")}


@dataclass(frozen=True)
class Entries:
    """The entries of the tables that members need: another process may not have those of a user's own."""

    methods: dict[str, MethodEntry]
    schemes: dict[str, Callable[..., LinearNetwork]]
    losses: dict[str, LossEntry]
    theorems: dict[str, Theorem]
    dynamics: dict[str, type[Dynamics]]

    def install(self) -> None:
        """Put them into the tables of this process."""
        METHODS.update(self.methods)
        SCHEMES.update(self.schemes)
        LOSSES.update(self.losses)
        THEOREMS.update(self.theorems)
        DYNAMICS.update(self.dynamics)


@dataclass(frozen=True)
class Member:
    """One combination of settings and one seed."""

    settings: Json
    entries: Entries = field(compare=False, repr=False)

    @property
    def key(self) -> str:
        """A hash of all that the member's result depends on."""
        return digest(self.settings)

    def problem(self) -> Problem:
        """Its weights and target."""
        s = self.settings
        seed = np.random.SeedSequence(s["root_seed"], spawn_key=(s["seed"],))
        draw: Callable[..., Network] = sample_compressed if s["draw"] == "sampled" else initialize
        make: Any = LOSSES[s["target"].get("loss", "squared")].of_target
        network = draw(s["scheme"], s["dims"], seed=seed, scale=s["scale"])
        return Problem(make(self.target()), network, weight_decay=s.get("weight_decay", 0.0))

    def target(self) -> np.ndarray:
        """Y (n x m)."""
        shape, target = (self.settings["dims"][0], self.settings["dims"][-1]), self.settings["target"]
        if target["kind"] == "ones":
            return np.full(shape, target["scale"])
        return target["scale"] * np.random.default_rng(target["seed"]).standard_normal(shape)

    def method(self) -> Method:
        """The method with its settings; a step size concerns those alone that have no error estimate."""
        s = self.settings
        step = None if METHODS[s["method"]].kind.adaptive else s["step_size"]
        own = {name: s[name] for name in OF_DESCENT if name in s}
        own |= {"seed": s["seed"]} if {"batch_size", "label_noise"} & set(own) else {}
        return method_named(s["method"], rtol=s["rtol"], atol=s["atol"], step_size=step, **_suited(s["method"], own))


class SweepSpec(BaseModel):
    """A whole specification, as `flowsim sweep` reads it from TOML. Lists are multiplied, one value is a list of one.

    Table [sweep]: dims (a list of lists), seeds (members k < seeds of each combination), t1 must be there; scheme =
    "fan_out", scale = 1, method = "auto", rtol = 1e-8, atol = 1e-10, step_size (for gd and euler) may be lists;
    root_seed = 0, stop_loss, max_steps, wall_limit, reduce = "auto" as for simulate; draw = "full" or "sampled" (in
    compressed form, any width); certificates = "all", "cheap" or "none"; curve_points = 0: how many times of each loss
    curve are kept in the table; weight_decay = 0; dynamics, as `flowsim simulate` takes it; of gradient descent
    momentum = 0, nesterov = false, schedule, batch_size (entries of the target a step), label_noise = 0 (drawn with the
    member's seed). Table [target]: loss = "squared" (a name in losses.LOSSES) of a target that is
    kind = "ones" or "normal" (with seed = 0), times scale = 1.

    >>> import flowsim as fs
    >>> tables = {"sweep": {"dims": [[1, 9, 1], [1, 9, 9, 1]], "scheme": ["fan_in", "ntk"], "seeds": 5, "t1": 1.0}}
    >>> len(fs.SweepSpec.build(tables).members())  # 2 dims x 2 schemes x 5 seeds
    20
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep: SweepTable
    target: TargetTable = Field(default_factory=lambda: TargetTable.model_validate({}))

    @classmethod
    def build(cls, tables: Json) -> SweepSpec:
        """The specification of these tables. Raises InputError with all mistakes at once, each with its path."""
        try:
            return cls(**tables)
        except ValidationError as error:
            known: dict[Any, Iterable[str]] = {"sweep": SweepTable.model_fields, "target": TargetTable.model_fields}
            complaints = [f"{_path(e['loc'])}: {mistake(e, known.get(e['loc'][0], known))}" for e in error.errors()]
            raise InputError(
                f"The specification has {len(complaints)} mistake{'s' if len(complaints) > 1 else ''}:\n  "
                + "\n  ".join(complaints)
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> SweepSpec:
        """The specification in a TOML file. Raises InputError when it is missing, no TOML, or mistaken."""
        return cls.build(read_toml(path))

    def members(self) -> list[Member]:
        """All members, in a fixed order: seeds fastest."""
        s = self.sweep
        fixed = s.model_dump(
            include={
                "root_seed",
                "t1",
                "stop_loss",
                "max_steps",
                "wall_limit",
                "reduce",
                "draw",
                "certificates",
                "curve_points",
            }
        )
        fixed |= {name: value for name, value in s.model_dump().items() if name in ADDED}
        names = ("dims", "scheme", "scale", "method", "step_size", "rtol", "atol", "seed")
        steps: list[float | None] = [*s.step_size] or [None]
        grid = product(s.dims, s.scheme, s.scale, s.method, steps, s.rtol, s.atol, range(s.seeds))
        target, loss = self.target.model_dump(), self.target.loss
        entries = Entries(
            {name: METHODS[name] for name in s.method},
            {name: SCHEMES[name] for name in s.scheme},
            {loss: LOSSES[loss]},
            dict(THEOREMS),
            dict(DYNAMICS),
        )
        fixed["target"] = target
        return [Member({**dict(zip(names, values, strict=True)), **fixed}, entries) for values in grid]


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
