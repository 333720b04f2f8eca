"""Running a sweep: one member, all members that have no record yet, in this process, in several, on a cluster."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.config import provenance
from flowsim.ensembles import certified, scalars_of
from flowsim.errors import FlowsimError, InputError, StorageError
from flowsim.problem import Problem
from flowsim.simulation import simulate
from flowsim.store import Store, canonical
from flowsim.sweeps.specification import Member, SweepSpec
from flowsim.sweeps.tables import write_table
from flowsim.trajectory import EXIT_CODES, Trajectory

RETRIES = 3
"""How often in a row workers may die without finishing anything."""


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

    >>> import tempfile
    >>> import flowsim as fs
    >>> spec = fs.SweepSpec.build({"sweep": {"dims": [[1, 9, 1]], "seeds": 3, "t1": 1.0}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, again = fs.sweep(spec, folder), fs.sweep(spec, folder)
    >>> first.done, again.done, again.skipped  # what has a record is not run again
    (3, 0, 3)
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
    table = write_table(store, spec)
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


@contextmanager
def _backend(workers: int, scheduler: str | None) -> Iterator[None]:
    """joblib on processes of this machine, or on a Dask cluster, whose client lives as long as the block."""
    from joblib import parallel_config

    if scheduler is None:
        with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("Argument `scheduler` needs Dask; pip install 'flowsim[dask]'.") from error
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"Argument `scheduler` must be the address of a Dask scheduler, but {error}.") from error
    with client, parallel_config("dask", n_jobs=-1, client=client):
        yield


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
