"""Running a sweep: one member, all members that have no record yet, in this process, in several, on a cluster."""

from __future__ import annotations

import json
import logging
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.errors import InputError, StorageError
from flowsim.methods.guard import MEMBER_FAILURES
from flowsim.problem import Problem
from flowsim.progress import Count, counting
from flowsim.runs.derived import scalars as scalars_of
from flowsim.runs.members import certified
from flowsim.runs.provenance import versions
from flowsim.runs.record import exit_code_of
from flowsim.runs.simulation import simulate
from flowsim.runs.trajectory import Trajectory
from flowsim.sweeps.specification import Member, SweepSpec
from flowsim.sweeps.store import Store, canonical
from flowsim.sweeps.tables import record_of, write_table
from flowsim.values import Json

RETRIES = 3
"""How often in a row workers may die without finishing anything."""
PATIENCE = 60.0
"""Seconds after which a Dask cluster without a worker is given up."""


def run_member(member: Member) -> Json:
    """The record of one member: its settings, scalars, and the loss at curve_points times if asked. Never raises for
    what goes wrong numerically: then the status and the reason say so."""
    from threadpoolctl import threadpool_limits

    begun = clock.perf_counter()
    member.entries.install()
    with threadpool_limits(1):
        try:
            problem = member.problem()
            scalars = certified(problem, member.settings["certificates"])
            run = _simulated(member, problem)
            scalars |= scalars_of(run)
            if member.settings["curve_points"]:
                scalars |= {"loss_curve": run.excess.tolist(), "loss_curve_time": run.time.tolist()}
        except MEMBER_FAILURES as error:
            scalars = {"status": "failed", "reason": str(error) or type(error).__name__}
    scalars["seconds"] = clock.perf_counter() - begun
    return {
        "settings": member.settings,
        "scalars": {k: _plain(v) for k, v in scalars.items()},
        "versions": versions(),
    }


def _simulated(member: Member, problem: Problem) -> Trajectory:
    s = member.settings
    run = simulate(
        problem,
        member.method(),
        t1=s["t1"],
        save_points=max(2, s["curve_points"]),
        stop_loss=s["stop_loss"],
        max_steps=s["max_steps"],
        wall_limit=s["wall_limit"],
        reduce=s["reduce"],
        dynamics=s.get("dynamics"),
    )
    if run.status == "interrupted":  # a member is finished or it has no record
        raise KeyboardInterrupt
    return run


def _plain(value: object) -> object:
    """A JSON value; None for what is not finite."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


@dataclass(frozen=True)
class SweepResult:
    """What a call of `sweep` did: members of its shard, done in this call, skipped because they were there, failed
    among all of them, and whether it was interrupted; the table of every record in the folder.
    damaged: records that were there but could not be read, and were made anew.

    >>> import tempfile
    >>> import flowsim as fs
    >>> spec = fs.SweepSpec.build({"sweep": {"dims": [[2, 5, 1]], "seeds": 3, "t1": 0.1}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = fs.sweep(spec, folder), fs.sweep(spec, folder)
    >>> first.done, second.done, second.skipped, second.exit_code
    (3, 0, 3, 0)
    """

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

    def to_json(self) -> Json:
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
    spec: SweepSpec | str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    shard: tuple[int, int] = (1, 1),
    note: Callable[[str], None] | None = None,
    progress: Count | bool | None = None,
) -> SweepResult:
    """Simulate every member of a specification that has no valid record in the folder `out`, and write out/table.nc.

    spec: a SweepSpec, or the TOML file of one; the tables and keys of both are SweepSpec's.
    workers: processes of this machine; scheduler: the address of a Dask cluster that shares the folder, in their place;
    shard (i, n): members i, i + n, ... only, i from 1. note: called with sentences on the plan; progress(done, todo)
    after each member (True: a bar). Ctrl-C, kill -9, a dead worker, a full disk lose no finished member: call again to
    go on. A specification that differs from the folder's by more seeds alone runs those.

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
    if isinstance(spec, (str, Path)):
        spec = SweepSpec.read(spec)
    if not isinstance(spec, SweepSpec):
        raise InputError(
            f"Argument `spec` must be a SweepSpec or a TOML file of one, but it is of type {type(spec).__name__};"
            " SweepSpec.build makes one of tables."
        )
    part, parts = shard
    if not 1 <= part <= parts:
        raise InputError(f"Argument `shard` must be i/n with 1 <= i <= n, but it is {part}/{parts}.")
    if workers < 1:
        raise InputError(f"Argument `workers` must be at least 1, but it is {workers}.")
    store = Store.open(out, json.loads(canonical(spec.model_dump())), growing=("sweep.seeds",))
    mine = spec.members()[part - 1 :: parts]
    todo = [member for member in mine if record_of(store, member) is None]
    damaged = sum(store.path(member.key).exists() for member in todo)
    tell = note or (lambda text: None)
    tell(_plan(len(mine), len(todo), damaged))
    interrupted, done = False, 0
    try:
        with counting(progress) as count:
            for _ in _executed(store, todo, workers, scheduler, tell):
                done += 1
                if count is not None:
                    count(done, len(todo))
    except KeyboardInterrupt:
        interrupted = True
    records = {member.key: record_of(store, member) for member in mine}
    failed = sum(r is not None and exit_code_of(r["scalars"]["status"]) != 0 for r in records.values())
    finished = sum(records[member.key] is not None for member in todo)
    table = write_table(store, spec)
    return SweepResult(len(mine), finished, len(mine) - len(todo), damaged, failed, interrupted, table)


def _plan(members: int, todo: int, damaged: int) -> str:
    there = f", {members - todo} of them there already" if todo < members else ""
    mend = f"; {damaged} damaged records are computed again" if damaged else ""
    return f"{members} members{there}{mend}"


def _execute(folder: Path, member: Member) -> float:
    """Run one member and keep its record, unless another process has kept it meanwhile; its seconds."""
    store = Store(folder)
    record = record_of(store, member)
    if record is None:
        record = run_member(member)
        store.write(member.key, record)
    return float(record["scalars"]["seconds"])


def _executed(
    store: Store, todo: list[Member], workers: int, scheduler: str | None, tell: Callable[[str], None]
) -> Iterator[None]:
    """Run the members, with a yield after each; the first ones here, for an estimate of the time."""
    first, rest = todo[:2], todo[2:]
    for member in first:
        seconds = _execute(store.folder, member)
        yield
    if not rest:
        return
    if workers == 1 and scheduler is None:
        tell(f"about {_duration(seconds * len(rest))} for the other {len(rest)}, one process")
        for member in rest:
            _execute(store.folder, member)
            yield
        return
    where = f"the cluster at {scheduler}" if scheduler else f"{workers} processes"
    tell(f"about {_duration(seconds * len(rest) / workers)} for the other {len(rest)} on {where}")
    yield from _in_parallel(store, rest, workers, scheduler, tell)


class _WorkersDied(Exception):
    """Members are left because the workers that ran them died."""


def _in_parallel(
    store: Store, todo: list[Member], workers: int, scheduler: str | None, tell: Callable[[str], None]
) -> Iterator[None]:
    """Again and again while workers die but something gets finished.

    After a round that finished nothing each member runs alone, so that one that kills its worker takes no other along.
    """
    fruitless = 0
    while todo:
        finished, deaths = 0, 0
        for group in [[member] for member in todo] if fruitless else [todo]:
            try:
                for _ in _on_cluster(store, group, scheduler) if scheduler else _on_processes(store, group, workers):
                    finished, deaths = finished + 1, 0
                    yield
            except _WorkersDied:
                deaths += 1
            if deaths == RETRIES:
                break
        left = _left(store, todo)
        if not left:
            return
        fruitless = 0 if len(left) < len(todo) else fruitless + 1
        if fruitless == RETRIES:
            raise StorageError(
                f"Workers died {RETRIES} times without finishing a member (out of memory?); what was finished is"
                f" kept. {'Give the workers more memory' if scheduler else 'Lower `workers`'}, and run again:"
                f" {len(left)} members are left."
            )
        tell(f"a worker died; going on with the {len(left)} members that are left")
        for _ in range(len(todo) - len(left) - finished):
            yield
        todo = left


def _left(store: Store, todo: list[Member]) -> list[Member]:
    return [member for member in todo if record_of(store, member) is None]


def _on_processes(store: Store, todo: list[Member], workers: int) -> Iterator[None]:
    """By joblib, on processes of this machine. Raises _WorkersDied when one died."""
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed, parallel_config

    try:
        with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
            jobs = (delayed(_execute)(store.folder, member) for member in todo)
            for _ in Parallel(return_as="generator_unordered")(jobs):
                yield
    except BrokenProcessPool:
        raise _WorkersDied from None


def _on_cluster(store: Store, todo: list[Member], scheduler: str) -> Iterator[None]:
    """On a Dask cluster, which itself repeats a member some times if its worker dies. Raises _WorkersDied, when all
    others are done, if it gave members up; StorageError when the scheduler is lost, or shows no worker for PATIENCE."""
    with _client(scheduler) as client:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        seen, died, folders = clock.monotonic(), False, [store.folder.absolute()] * len(todo)
        waiting = as_completed(client.map(_execute, folders, todo, pure=False), loop=client.loop)
        while waiting.count():
            ready = waiting.next_batch(block=False)
            for future in ready:
                error = future.exception() if future.status == "error" else None
                if future.status == "cancelled":
                    raise _cluster_lost(scheduler, "was lost", store, todo)
                if isinstance(error, KilledWorker):
                    died = True
                elif error is not None:
                    raise error
                else:
                    yield
            seen = clock.monotonic() if ready else _wait_a_moment(client, seen)
            if clock.monotonic() - seen > PATIENCE:
                raise _cluster_lost(scheduler, f"has shown no worker for {PATIENCE:.0f} s", store, todo)
    if died:
        raise _WorkersDied


def _wait_a_moment(client: Any, seen: float) -> float:
    """When a worker was last seen: once a second, the scheduler is asked. A lost one cancels what is waited for."""
    clock.sleep(0.05)
    if clock.monotonic() - seen > 1:
        with suppress(OSError):
            return clock.monotonic() if client.nthreads(callback_timeout=10) else seen
    return seen


def _cluster_lost(scheduler: str, how: str, store: Store, todo: list[Member]) -> StorageError:
    return StorageError(
        f"The Dask cluster at {scheduler} {how}; what was finished is kept. Start it again, and run the same command:"
        f" {len(_left(store, todo))} members are left."
    )


@contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    """A client of a Dask cluster, which lives as long as the block, without Dask's own messages."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("Argument `scheduler` needs Dask; pip install 'flowsim[dask]'.") from error
    with _silenced("distributed", "distributed.client"):
        try:
            client = Client(scheduler, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"Argument `scheduler` must be the address of a Dask scheduler, but {error}.") from error
        with client:
            yield client


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
