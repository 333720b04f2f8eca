"""Does it matter to a sweep that it is killed, or who runs it?

Killed: a sweep of 2,000 members on two worker processes is killed by SIGKILL at twenty random moments: the whole
process group, the parent alone (what its orphans do in the next 0.3 s counts; then they are killed too: left alone,
they finish the members they were handed and end after five idle minutes), or one worker, after which the parent goes on
by itself. The others are resumed. Who runs it: the same specification in this process, on two worker processes, on a
Dask cluster of two, and as four shards in an odd order. Each table is compared with that of an undisturbed run in this
process: the greatest relative difference of its numbers, wall times aside, and whether its words are the same. A record
is rewritten if it was there, valid, at a kill, and its file is another one at the end. Exit code 1 if anything differs.
Takes five to eight minutes. Needs Dask, and a system with process groups.

    python studies/resilience.py
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import distributed
import numpy as np
import xarray

import flowsim as fs
from flowsim.sweeps.store import Store

SPECIFICATION = """
[sweep]
dims = [[5, 300, 500, 1], [5, 30, 50, 1]]
scheme = ["fan_out", "xavier"]
seeds = {seeds}
draw = "sampled"
t1 = 1.0
stop_loss = 1e-8
certificates = "cheap"
curve_points = 20
"""
VICTIMS = ("group", "parent", "worker")
SHARDS = (3, 1, 4, 2)
BOUND = 1e-12


def opened(folder: Path) -> xarray.Dataset:
    """The table of a sweep."""
    with xarray.open_dataset(folder / "table.nc") as found:
        return found.load()


def difference(one: xarray.Dataset, other: xarray.Dataset) -> tuple[float, bool]:
    """(greatest relative difference of the numbers but the wall times, whether all words are the same)."""
    if one.sizes != other.sizes or set(one.variables) != set(other.variables):
        return np.inf, False
    greatest, words = 0.0, True
    for name in set(one.variables) - {"seconds"}:
        a, b = one[name].values, other[name].values
        if a.dtype.kind in "OUST":
            words &= bool((a == b).all())
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            with np.errstate(divide="ignore", invalid="ignore"):
                apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(b - a) / np.abs(a))
            greatest = max(greatest, float(np.where(np.isnan(apart), np.inf, apart).max()))
    return greatest, words


def stamps(folder: Path) -> dict[Path, int]:
    """When each record was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "records").glob("*/[!.]*.json")}


def workers(group: int) -> list[int]:
    """The worker processes in that process group."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == group and "LokyProcess" in row[-1]]


def start(file: Path, out: Path) -> subprocess.Popen:
    """The command, on two workers, in a process group of its own."""
    command = [sys.executable, "-m", "flowsim", "sweep", str(file), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)


def kill_group(started: subprocess.Popen) -> None:
    """SIGKILL to the parent and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def kill(started: subprocess.Popen, victim: str, rng: np.random.Generator) -> str:
    """SIGKILL to the whole group, to the parent and 0.3 s later to its orphans, or to a worker, once there is one; what
    was killed."""
    if victim == "worker":
        while started.poll() is None:
            with contextlib.suppress(ProcessLookupError, ValueError):  # no worker, or none any more
                os.kill(int(rng.choice(workers(started.pid))), signal.SIGKILL)
                return victim
        return "none: it had ended"
    if victim == "parent":
        started.kill()
        time.sleep(0.3)
    kill_group(started)
    return victim


def killed(file: Path, out: Path, members: int, kills: int) -> tuple[list[str], int]:
    """Run the command, killed again and again, to its end: (a table row for each kill, records rewritten)."""
    rng, store, kept, rows, started = np.random.default_rng(0), Store(out), {}, [], start(file, out)
    try:
        for moment in np.sort(rng.choice(members - 40, kills, replace=False)) + 1:
            victim = str(rng.choice(VICTIMS, p=(0.5, 0.25, 0.25)))
            while len(stamps(out)) < moment:
                if started.poll() is not None:
                    sys.exit(f"the sweep ended early, with exit code {started.returncode}")
                time.sleep(0.01)
            there = stamps(out)
            victim = kill(started, victim, rng)
            kept |= {path: stamp for path, stamp in there.items() if path not in kept and store.read(path.stem)}
            rows.append(f"| {len(rows) + 1} | {victim} | {len(there)} | {len(stamps(out))} |")
            note(f"kill {len(rows)} of {kills}")
            started = start(file, out) if victim in ("group", "parent") else started
        if code := started.wait():
            sys.exit(f"the sweep ended with exit code {code}")
    finally:
        kill_group(started)
    now = stamps(out)
    return rows, sum(now.get(path) != stamp for path, stamp in kept.items())


def on_dask(spec: fs.SweepSpec, out: Path) -> None:
    """On a cluster of two worker processes, reached by its address."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        fs.sweep(spec, out, scheduler=cluster.scheduler_address)


def in_shards(spec: fs.SweepSpec, out: Path) -> None:
    """One shard after the other."""
    for part in SHARDS:
        fs.sweep(spec, out, shard=(part, len(SHARDS)))


RUNNERS = {
    "this process": fs.sweep,
    "2 worker processes": lambda spec, out: fs.sweep(spec, out, workers=2),
    "2 Dask workers": on_dask,
    f"shards {', '.join(map(str, SHARDS))} of {len(SHARDS)}": in_shards,
}


def note(text: str) -> None:
    """Progress."""
    print(f"{text:40}", end="\r", file=sys.stderr)


def compared(folder: Path, kills: int, seeds: int) -> bool:
    """Print the tables; whether nothing differs."""
    file = folder / "specification.toml"
    file.write_text(SPECIFICATION.format(seeds=seeds))
    spec, tables, seconds = fs.SweepSpec.build(tomllib.loads(file.read_text())), {}, {}
    for index, (name, runner) in enumerate(RUNNERS.items()):
        begun, out = time.perf_counter(), folder / str(index)
        runner(spec, out)
        tables[name], seconds[name] = opened(out), time.perf_counter() - begun
        note(name)
    reference = tables.pop("this process")
    members = reference.sizes["member"]
    rows, rewritten = killed(file, folder / "killed", members, kills)
    tables[f"killed {kills} times"] = opened(folder / "killed")
    print(f"{members} members\n", "| kill | victim | records then | records after it |", "|---|---|---|---|", sep="\n")
    print(*rows, "", "| run | seconds | greatest relative difference | words |", "|---|---|---|---|", sep="\n")
    print(f"| this process, undisturbed | {seconds['this process']:.0f} | | |")
    found = {name: difference(reference, table) for name, table in tables.items()}
    for name, (greatest, words) in found.items():
        wall = f"{seconds[name]:.0f}" if name in seconds else ""
        print(f"| {name} | {wall} | {greatest:.1e} | {'identical' if words else 'different'} |")
    print(f"\nrecords rewritten: {rewritten}")
    return rewritten == 0 and all(greatest <= BOUND and words for greatest, words in found.values())


def main() -> None:
    """Compare, in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="60 members, 2 kills, half a minute")
    small = parser.parse_args().small
    with tempfile.TemporaryDirectory() as folder:
        same = compared(Path(folder), *((2, 15) if small else (20, 500)))
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
