"""Sweeps: the product of lists of settings, many seeds each, planned from one specification and resumable.

A member is one combination and one seed. Everything about it follows from the specification alone: its weights come
from SeedSequence(root_seed).spawn(seeds)[k], the same for every combination, and it is simulated by itself, with one
BLAS thread, so that neither the order nor the number of workers nor an interruption changes a digit.
"""

from __future__ import annotations

import json
import time as clock
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from flowsim.checks import as_dims
from flowsim.config import provenance
from flowsim.ensembles import certified, column, scalars_of
from flowsim.errors import FlowsimError, InputError, StorageError
from flowsim.files import write_atomically
from flowsim.initialization import GAUSSIAN, SCHEMES, initialize
from flowsim.losses import SquaredLoss
from flowsim.methods import METHODS, Method, method_named
from flowsim.problem import Problem
from flowsim.reduction import sample_compressed
from flowsim.simulation import simulate
from flowsim.store import Store, canonical, digest
from flowsim.trajectory import EXIT_CODES, Trajectory

if TYPE_CHECKING:
    import xarray

LARGEST_DRAWN = 2**28
"""Members with more weights than this are refused unless drawn in compressed form."""
NEEDS_STEP = ("gd", "euler", "projected-euler")
RETRIES = 3
"""How often in a row workers may die without finishing anything."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Numbers = Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


class SweepTable(BaseModel):
    """Table [sweep] of a specification: lists are multiplied."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dims: list[list[int]] = Field(min_length=1)
    scheme: Names = ["fan_out"]
    scale: Numbers = [1.0]
    method: Names = ["dop853"]
    step_size: Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(_listed)] = []
    rtol: Annotated[list[Annotated[float, Field(ge=1e-13, le=1)]], BeforeValidator(_listed), Field(min_length=1)] = [
        1e-8
    ]
    atol: Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)] = [1e-10]
    seeds: int = Field(ge=1)
    root_seed: int = Field(0, ge=0)
    t1: float = Field(gt=0)
    stop_loss: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    wall_limit: float | None = Field(None, gt=0)
    reduce: Literal["auto", "always", "never"] = "auto"
    draw: Literal["full", "sampled"] = "full"
    certificates: Literal["all", "cheap", "none"] = "all"
    curve_points: int = Field(0, ge=0, le=10_000)

    @field_validator("dims")
    @classmethod
    def _dims(cls, dims: list[list[int]]) -> list[list[int]]:
        for index, sizes in enumerate(dims):
            as_dims(sizes, f"dims[{index}]")
        return dims

    @field_validator("scheme", "method")
    @classmethod
    def _known(cls, names: list[str], info: Any) -> list[str]:
        known = SCHEMES if info.field_name == "scheme" else METHODS
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    @model_validator(mode="after")
    def _together(self) -> SweepTable:
        complaints = []
        needing = [name for name in self.method if name in NEEDS_STEP]
        if needing and not self.step_size:
            complaints.append(f"step_size must be given for {', '.join(needing)}")
        if self.draw == "sampled":
            others = [name for name in self.scheme if name not in GAUSSIAN]
            if others:
                complaints.append(f"draw must be full for {', '.join(others)}, which is not Gaussian")
        else:
            for index, sizes in enumerate(self.dims):
                weights = sum(a * b for a, b in pairwise(sizes))
                if weights > LARGEST_DRAWN:
                    complaints.append(f"dims[{index}] has {weights:.3g} weights; use draw = 'sampled'")
        if complaints:
            raise ValueError("; ".join(complaints))
        return self


class TargetTable(BaseModel):
    """Table [target]: Y of the squared loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["ones", "normal"] = "ones"
    seed: int = Field(0, ge=0)
    scale: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class Member:
    """One combination of settings and one seed."""

    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """A hash of all that the member's result depends on."""
        return digest(self.settings)

    def problem(self) -> Problem:
        """Its weights and target."""
        s = self.settings
        seed = np.random.SeedSequence(s["root_seed"], spawn_key=(s["seed"],))
        draw: Any = sample_compressed if s["draw"] == "sampled" else initialize
        return Problem(SquaredLoss(self.target()), draw(s["scheme"], s["dims"], seed=seed, scale=s["scale"]))

    def target(self) -> np.ndarray:
        """Y (n x m)."""
        shape, target = (self.settings["dims"][0], self.settings["dims"][-1]), self.settings["target"]
        if target["kind"] == "ones":
            return np.full(shape, target["scale"])
        return target["scale"] * np.random.default_rng(target["seed"]).standard_normal(shape)

    def method(self) -> Method:
        """The method with its settings; a step size concerns those alone that have no error estimate."""
        s = self.settings
        step = s["step_size"] if s["method"] in NEEDS_STEP else None
        return method_named(s["method"], rtol=s["rtol"], atol=s["atol"], step_size=step)


class SweepSpec(BaseModel):
    """A whole specification, as `flowsim sweep` reads it from TOML."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep: SweepTable
    target: TargetTable = Field(default_factory=lambda: TargetTable.model_validate({}))

    @classmethod
    def build(cls, tables: dict[str, Any]) -> SweepSpec:
        """The specification of these tables. Raises InputError with all mistakes at once, each with its path."""
        try:
            return cls(**tables)
        except ValidationError as error:
            complaints = [f"{_path(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
            raise InputError(
                f"The specification has {len(complaints)} mistake{'s' if len(complaints) > 1 else ''}:\n  "
                + "\n  ".join(complaints)
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> SweepSpec:
        """The specification in a TOML file. Raises InputError when it is missing, no TOML, or mistaken."""
        try:
            return cls.build(tomllib.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise InputError(f"File {path} could not be read: {error.strerror or error}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"File {path} must be TOML, but {error}.") from error

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
        names = ("dims", "scheme", "scale", "method", "step_size", "rtol", "atol", "seed")
        steps: list[float | None] = [*s.step_size] or [None]
        grid = product(s.dims, s.scheme, s.scale, s.method, steps, s.rtol, s.atol, range(s.seeds))
        target = self.target.model_dump()
        return [Member({**dict(zip(names, values, strict=True)), **fixed, "target": target}) for values in grid]


def _path(location: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


# ---------------------------------------------------------------------------------------------------------- one member


def run_member(member: Member) -> dict[str, Any]:
    """The record of one member: its settings, scalars, and the loss at curve_points times if asked. Never raises for
    what goes wrong numerically: then the status and the reason say so."""
    from threadpoolctl import threadpool_limits

    begun = clock.perf_counter()
    with threadpool_limits(1):
        try:
            problem = member.problem()
            scalars = certified(problem, member.settings["certificates"])
            run = _simulated(member, problem)
            scalars |= {**scalars_of(run), "final_loss": float(run.loss[-1])}
            if member.settings["curve_points"]:
                scalars |= {"loss_curve": run.excess.tolist(), "loss_curve_time": run.time.tolist()}
        except (FlowsimError, ArithmeticError, MemoryError, np.linalg.LinAlgError) as error:
            scalars = {"status": "failed", "reason": str(error) or type(error).__name__}
    scalars["seconds"] = clock.perf_counter() - begun
    return {
        "settings": member.settings,
        "scalars": {k: _plain(v) for k, v in scalars.items()},
        "versions": provenance(),
    }


def _simulated(member: Member, problem: Problem) -> Trajectory:
    s = member.settings
    return simulate(
        problem,
        member.method(),
        t1=s["t1"],
        save_points=max(2, s["curve_points"]),
        stop_loss=s["stop_loss"],
        max_steps=s["max_steps"],
        wall_limit=s["wall_limit"],
        reduce=s["reduce"],
    )


def _plain(value: Any) -> Any:
    """A JSON value; None for what is not finite."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


# -------------------------------------------------------------------------------------------------------- all members


@dataclass(frozen=True)
class SweepResult:
    """What a call of `sweep` did: members of its shard, done in this call, skipped because they were there, failed
    among all of them, and whether it was interrupted; the table of every record in the folder."""

    members: int
    done: int
    skipped: int
    damaged: int
    failed: int
    interrupted: bool
    table: Path

    @property
    def exit_code(self) -> int:
        """130 interrupted, 3 where members failed, else 0."""
        return 130 if self.interrupted else 3 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """The object that `flowsim sweep --json` prints."""
        return {
            "members": self.members,
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "damaged": self.damaged,
            "interrupted": self.interrupted,
            "table": str(self.table),
        }


def sweep(
    spec: SweepSpec,
    out: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    shard: tuple[int, int] = (1, 1),
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Simulate every member of a specification that has no valid record in the folder `out`, and write out/table.nc.

    workers: processes of this machine; scheduler: the address of a Dask cluster that shares the folder, in their place;
    shard (i, n): members i, i + n, ... only, i from 1. note: called with sentences on the plan; progress(done, todo)
    after each member. Ctrl-C, kill -9, a dead worker or a full disk lose no finished member: call again to go on.

    Raises InputError for arguments out of range or a folder of another specification, StorageError when a record could
    not be written.
    """
    part, parts = shard
    if not 1 <= part <= parts:
        raise InputError(f"Argument `shard` must be i/n with 1 <= i <= n, but it is {part}/{parts}.")
    if workers < 1:
        raise InputError(f"Argument `workers` must be at least 1, but it is {workers}.")
    store = Store.open(out, json.loads(canonical(spec.model_dump())))
    mine = spec.members()[part - 1 :: parts]
    todo = [member for member in mine if store.read(member.key) is None]
    damaged = sum(store.path(member.key).exists() for member in todo)
    tell = note or (lambda text: None)
    tell(_plan(len(mine), len(todo), damaged))
    interrupted, done = False, 0
    try:
        for _ in _executed(store, todo, workers, scheduler, tell):
            done += 1
            if progress is not None:
                progress(done, len(todo))
    except KeyboardInterrupt:
        interrupted = True
    records = {member.key: store.read(member.key) for member in mine}
    failed = sum(r is not None and EXIT_CODES.get(r["scalars"]["status"], 3) != 0 for r in records.values())
    finished = sum(records[member.key] is not None for member in todo)
    table = _write_table(store, spec)
    return SweepResult(len(mine), finished, len(mine) - len(todo), damaged, failed, interrupted, table)


def _plan(members: int, todo: int, damaged: int) -> str:
    there = f", {members - todo} of them there already" if todo < members else ""
    mend = f"; {damaged} damaged records are computed again" if damaged else ""
    return f"{members} members{there}{mend}"


def _execute(folder: Path, member: Member) -> float:
    """Run one member and keep its record; its seconds."""
    record = run_member(member)
    Store(folder).write(member.key, record)
    return float(record["scalars"]["seconds"])


def _executed(
    store: Store, todo: list[Member], workers: int, scheduler: str | None, tell: Callable[[str], None]
) -> Iterator[float]:
    """Run the members; the first ones here, for an estimate of the time."""
    first, rest = todo[:2], todo[2:]
    for member in first:
        seconds = _execute(store.folder, member)
        yield seconds
    if not rest:
        return
    if workers == 1 and scheduler is None:
        tell(f"about {_duration(seconds * len(rest))} for the other {len(rest)}, one process")
        for member in rest:
            yield _execute(store.folder, member)
        return
    where = f"the cluster at {scheduler}" if scheduler else f"{workers} processes"
    tell(f"about {_duration(seconds * len(rest) / workers)} for the other {len(rest)} on {where}")
    yield from _in_parallel(store, rest, workers, scheduler, tell)


def _in_parallel(
    store: Store, todo: list[Member], workers: int, scheduler: str | None, tell: Callable[[str], None]
) -> Iterator[float]:
    """By joblib, again and again while workers die but something gets finished."""
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed

    fruitless = 0
    while todo:
        finished = 0
        try:
            with _backend(workers, scheduler):
                jobs = (delayed(_execute)(store.folder, member) for member in todo)
                for seconds in Parallel(return_as="generator_unordered")(jobs):
                    finished += 1
                    yield seconds
            return
        except BrokenProcessPool:
            left = [member for member in todo if store.read(member.key) is None]
            fruitless = 0 if len(left) < len(todo) else fruitless + 1
            if fruitless == RETRIES:
                raise StorageError(
                    f"Workers died {RETRIES} times without finishing a member (out of memory?); what was finished is"
                    f" kept. Lower `workers`, and run again: {len(left)} members are left."
                ) from None
            tell(f"a worker died; going on with the {len(left)} members that are left")
            for _ in range(len(todo) - len(left) - finished):
                yield 0.0
            todo = left


def _backend(workers: int, scheduler: str | None) -> Any:
    from joblib import parallel_config

    if scheduler is None:
        return parallel_config("loky", n_jobs=workers, inner_max_num_threads=1)
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("Argument `scheduler` needs Dask; pip install 'flowsim[dask]'.") from error
    try:
        Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise InputError(f"Argument `scheduler` must be the address of a Dask scheduler, but {error}.") from error
    return parallel_config("dask", n_jobs=-1)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _write_table(store: Store, spec: SweepSpec) -> Path:
    """table.nc from every record there is; again where another process added records meanwhile."""
    path, count = store.folder / "table.nc", -1
    while count != (now := sum(1 for _ in (store.folder / "records").glob("*/*.json"))):
        count = now
        dataset = table(store, spec)
        with write_atomically(path) as place:
            dataset.to_netcdf(place, engine="h5netcdf")
    return path


def table(store: Store, spec: SweepSpec) -> xarray.Dataset:
    """The records of all members that have one, in the specification's order: dimension member, a variable a scalar."""
    import xarray

    rows = [(k, record) for k, m in enumerate(spec.members()) if (record := store.read(m.key)) is not None]
    columns: dict[str, list[Any]] = {name: [] for name in (*SETTINGS, *SCALARS)}
    for _, record in rows:
        for name in SETTINGS:
            value = record["settings"][name]
            columns[name].append(",".join(map(str, value)) if name == "dims" else value)
        for name in SCALARS:
            columns[name].append(record["scalars"].get(name))
    variables: dict[str, Any] = {name: ("member", column(name, values)) for name, values in columns.items()}
    points = spec.sweep.curve_points
    if points:
        shape = len(rows), max(points, 2)
        for name in ("loss_curve", "loss_curve_time"):
            curve = np.full(shape, np.nan)
            for row, (_, record) in zip(curve, rows, strict=True):
                values = record["scalars"].get(name) or []
                row[: len(values)] = [np.nan if v is None else v for v in values]
            variables[name] = (("member", "point"), curve)
    coordinates = {"member": ("member", np.array([k for k, _ in rows], dtype=np.int64))}
    attributes = {"specification": canonical(spec.model_dump()), "versions": canonical(provenance())}
    dataset = xarray.Dataset(variables, coordinates, attributes)
    for name, words in (SETTINGS | SCALARS).items():
        dataset[name].attrs["long_name"] = words
    return dataset


SETTINGS = {
    "dims": "layer sizes h_0, ..., h_L",
    "scheme": "initialization",
    "scale": "factor on the initial weights",
    "method": "integrator",
    "step_size": "step of gradient descent",
    "rtol": "relative tolerance",
    "atol": "absolute tolerance",
    "seed": "k of SeedSequence(root_seed).spawn(...)[k]",
}
SCALARS = {
    "status": "how the simulation ended",
    "reason": "why it failed",
    "initial_loss": "L(0)",
    "final_loss": "L at the end",
    "final_excess": "L - f* at the end",
    "time_reached": "t at the end: where L - f* fell to stop_loss if status is converged",
    "rate_seen": "log((L(0) - f*) / (L - f*)) / t at the end",
    "drift": "greatest ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)",
    "energy_residual": "greatest |L(0) - L(t) - integral of ||grad L||^2| / (L(0) - f*)",
    "error_estimate": "estimated compression error of the weights at the end",
    "lambda_min_T": "least eigenvalue of T at t = 0",
    "theorem_2_alpha": "Delta* of Theorem 2",
    "best_certificate": "the certificate of the greatest rate",
    "best_alpha": "its alpha",
    "certified_rate": "its rate",
    "steps": "accepted steps",
    "rhs_evaluations": "right-hand sides",
    "core_width": "greatest width of the compressed network",
    "seconds": "wall time of the member, certificates included",
}
