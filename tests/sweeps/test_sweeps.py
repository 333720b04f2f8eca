"""Sweeps: specifications, and every kind of bad weather; nothing finished is lost, nothing is counted twice."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray

import flowsim as fs
from flowsim import cli
from flowsim.errors import InputError, StorageError
from flowsim.sweeps import SweepSpec, run_member, running, sweep, table
from flowsim.sweeps.store import Store, canonical, digest

SPEC = """
[sweep]
dims = [[2, 12, 9, 1], [1, 8, 1]]
scheme = ["fan_out", "xavier"]
method = ["dop853", "gd"]
step_size = 1e-2
seeds = 4
root_seed = 7
t1 = 1.0
stop_loss = 1e-3
certificates = "cheap"
curve_points = 5
[target]
kind = "normal"
seed = 3
"""
TIMING = ["seconds"]


@pytest.fixture
def spec_file(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path / "spec.toml"


def spec(**changes):
    tables = {"dims": [[2, 12, 9, 1]], "seeds": 6, "t1": 1.0, "stop_loss": 1e-3, "certificates": "cheap", **changes}
    return SweepSpec.build({"sweep": tables})


def same(one, other):
    xarray.testing.assert_allclose(one.drop_vars(TIMING), other.drop_vars(TIMING), rtol=1e-12, atol=0)
    for name in ("status", "reason", "best_certificate"):
        assert (one[name] == other[name]).all()


def opened(folder):
    with xarray.open_dataset(Path(folder) / "table.nc") as found:
        return found.load()


def test_members_and_table(tmp_path):
    plan = SweepSpec.build(tomllib.loads(SPEC.replace('"cheap"', '"all"')))
    members = plan.members()
    assert len(members) == 2 * 2 * 2 * 4 == len({member.key for member in members})
    result = sweep(plan, tmp_path / "out")
    assert (result.members, result.done, result.skipped, result.exit_code) == (32, 32, 0, 0)
    dataset = opened(tmp_path / "out")
    assert dict(dataset.sizes) == {"member": 32, "point": 5}
    assert set(dataset.status.values) <= {"converged", "completed"}
    assert (dataset.loss_curve[:, 0] > 0).all()
    assert (dataset.final_loss <= dataset.initial_loss).all()
    alpha = dataset.theorem_2_alpha.values.reshape(2, 2, 2, 4)
    assert np.isfinite(alpha[0]).all()
    assert np.isnan(alpha[1]).all()  # two layers
    assert (alpha[0, :, 0] == alpha[0, :, 1]).all()  # the same weights for both methods
    again = sweep(plan, tmp_path / "out")
    assert (again.done, again.skipped) == (0, 32)
    same(dataset, opened(tmp_path / "out"))


def test_a_member_is_what_simulate_gives():
    member = spec().members()[3]
    record = run_member(member)
    run = running.simulate(member.problem(), member.method(), t1=1.0, save_points=2, stop_loss=1e-3)
    assert record["scalars"]["final_loss"] == pytest.approx(float(run.loss[-1]), rel=1e-12)
    assert record["scalars"]["time_reached"] == pytest.approx(float(run.time[-1]), rel=1e-12)


def test_every_pair_of_root_seed_and_seed_is_a_draw_of_its_own():
    members = [member for root in (0, 1, 2) for member in spec(root_seed=root, seeds=3).members()]
    draws = [member.problem().network.weights[1] for member in members]
    assert len({W.tobytes() for W in draws}) == len(members) == 9
    expected = fs.fan_out((2, 12, 9, 1), seed=np.random.SeedSequence(1, spawn_key=(2,)))
    assert (draws[5] == expected.weights[1]).all()
    assert len({member.key for member in members}) == 9


DESCENT = {"method": ["gd", "rk45"], "step_size": 0.01, "momentum": 0.5, "label_noise": 0.1, "batch_size": 1}


@pytest.mark.parametrize(
    ("settings", "method", "decay", "dynamics"),
    [
        ({"weight_decay": 0.5}, fs.Auto(), 0.5, None),
        ({"dynamics": "heavy-ball:0.5"}, fs.Auto(), 0.0, fs.HeavyBall(0.5)),
        (DESCENT, fs.GradientDescent(0.01, momentum=0.5, label_noise=0.1, batch_size=1, seed=0), 0.0, None),
        (DESCENT | {"schedule": "step-decay:40:0.5", "momentum": 0.0}, None, 0.0, None),
    ],
)
def test_a_member_has_the_decay_the_dynamics_and_the_descent_that_are_asked_for(settings, method, decay, dynamics):
    plan = spec(dims=[[1, 6, 1]], scheme="fan_in", seeds=2, t1=0.5, **settings)
    member = plan.members()[0]
    method = method or fs.GradientDescent(0.01, schedule=fs.StepDecay(40, 0.5), label_noise=0.1, batch_size=1, seed=0)
    assert member.method() == method
    problem = member.problem()
    assert problem.weight_decay == decay
    run = fs.simulate(problem, method, t1=0.5, dynamics=dynamics, save_points=2, stop_loss=1e-3)
    assert run_member(member)["scalars"]["final_loss"] == pytest.approx(run.loss[-1], rel=1e-12)


def test_new_settings_at_their_defaults_leave_keys_and_specifications_alone():
    """A folder of an older flowsim goes on."""
    plan = spec()
    for name in ("momentum", "nesterov", "schedule", "batch_size", "label_noise", "weight_decay", "dynamics"):
        assert name not in plan.model_dump()["sweep"]
        assert name not in plan.members()[0].settings
    assert spec(weight_decay=0.0).members()[0].key == plan.members()[0].key != spec(weight_decay=0.1).members()[0].key


def test_the_plan_says_how_long_it_takes(tmp_path):
    told = []
    sweep(spec(seeds=5), tmp_path / "out", note=told.append)
    assert told[0] == "5 members"
    assert re.fullmatch(r"about \d+ s for the other 3, one process", told[1])
    durations = [running._duration(seconds) for seconds in (0.2, 89.4, 90.0, 5399.0, 5400.0, 86400.0)]
    assert durations == ["1 s", "89 s", "2 min", "90 min", "1.5 h", "24.0 h"]


def test_workers_and_shards_give_the_same_table(spec_file, tmp_path):
    plan = SweepSpec.read(spec_file)
    sweep(plan, tmp_path / "one")
    sweep(plan, tmp_path / "two", workers=2)
    for part in (3, 1, 4, 2):
        result = sweep(plan, tmp_path / "shards", shard=(part, 4))
        assert result.done == 8
    for folder in ("two", "shards"):
        same(opened(tmp_path / "one"), opened(tmp_path / folder))


def records(folder):
    """When each record was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "records").glob("*/[0-9a-f]*.json")}


def test_kill_minus_9_at_random_moments(tmp_path):
    """The parent with its workers, again and again: the table of an undisturbed run, and no record is rewritten."""
    text = SPEC.replace("seeds = 4", "seeds = 20")
    (tmp_path / "spec.toml").write_text(text)
    plan, chance, out, kept = SweepSpec.build(tomllib.loads(text)), random.Random(0), tmp_path / "out", {}
    command = [sys.executable, "-m", "flowsim", "sweep", str(tmp_path / "spec.toml"), "--out", str(out)]
    for kill in range(3):
        started = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL, start_new_session=True)
        wanted = len(kept) + chance.randint(1, 30)
        while started.poll() is None and len(records(out)) < wanted:
            time.sleep(0.03)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        now = records(out)
        assert len(now) > len(kept) or len(kept) == len(plan.members()), kill
        assert all(now[path] == stamp for path, stamp in kept.items())
        kept = now
    result = sweep(plan, out)
    assert result.skipped == len(kept)
    assert result.members == 160
    sweep(plan, tmp_path / "undisturbed")
    same(opened(tmp_path / "undisturbed"), opened(out))


execute = running._execute


def test_a_dead_worker_is_replaced(tmp_path, monkeypatch):
    plan, told = spec(seeds=8), []
    here = os.getpid()

    def dying(folder, member):
        flag = Path(folder) / "died"
        if os.getpid() != here and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(folder, member)

    monkeypatch.setattr(running, "_execute", dying)
    result = sweep(plan, tmp_path / "out", workers=2, note=told.append)
    assert (result.done, result.failed) == (8, 0)
    assert any("a worker died" in text for text in told)


def test_workers_that_always_die_end_with_a_sentence(tmp_path, monkeypatch):
    here = os.getpid()

    def dying(folder, member):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(folder, member)

    monkeypatch.setattr(running, "_execute", dying)
    with pytest.raises(StorageError, match="Workers died"):
        sweep(spec(seeds=5), tmp_path / "out", workers=2)


@contextlib.contextmanager
def dask_cluster(workers=2, **settings):
    """A Dask cluster of worker processes on this machine, at its settings."""
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    with (
        dask.config.set({f"distributed.scheduler.{name}": value for name, value in settings.items()}),
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster


def test_a_dask_cluster_gives_the_same_table_and_a_dead_worker_is_replaced(spec_file, tmp_path):
    distributed = pytest.importorskip("distributed")
    plan, whole, out, kept = spec(seeds=30), SweepSpec.read(spec_file), tmp_path / "out", {}

    def kill(done, todo):
        if done == 8:
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
            kept.update(records(out))

    with dask_cluster() as cluster:
        sweep(whole, tmp_path / "dask", scheduler=cluster.scheduler_address)
        with pytest.raises(ValueError, match="No global client"):
            distributed.get_client()
        result = sweep(plan, out, scheduler=cluster.scheduler_address, progress=kill)
    sweep(whole, tmp_path / "one")
    same(opened(tmp_path / "one"), opened(tmp_path / "dask"))
    assert (result.done, result.failed) == (30, 0)
    now = records(out)
    assert len(kept) >= 8
    assert all(now[path] == stamp for path, stamp in kept.items())
    sweep(plan, tmp_path / "undisturbed")
    same(opened(tmp_path / "undisturbed"), opened(out))


def test_a_member_that_kills_dask_workers(tmp_path, monkeypatch):
    """Dask gives it up; all others are done, and it is tried again: first it then succeeds, then it never does."""
    plan, told, here = spec(seeds=10), [], os.getpid()

    def dying(folder, member, always):
        flag = Path(folder) / "died"
        if os.getpid() != here and member.settings["seed"] == 5 and (always or not flag.exists()):
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(folder, member)

    with dask_cluster(**{"allowed-failures": 0}) as cluster:
        monkeypatch.setattr(running, "_execute", lambda folder, member: dying(folder, member, False))
        result = sweep(plan, tmp_path / "once", scheduler=cluster.scheduler_address, note=told.append)
        assert (result.done, result.failed) == (10, 0)
        assert any("a worker died" in text for text in told)
        monkeypatch.setattr(running, "_execute", lambda folder, member: dying(folder, member, True))
        with pytest.raises(StorageError, match=r"Workers died 3 times.*more memory.*1 members are left"):
            sweep(plan, tmp_path / "always", scheduler=cluster.scheduler_address)
    monkeypatch.undo()
    result = sweep(plan, tmp_path / "always")
    assert (result.skipped, result.done) == (9, 1)
    same(opened(tmp_path / "once"), opened(tmp_path / "always"))


CLUSTER = """
import distributed

with distributed.LocalCluster(
    n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
) as cluster:
    print(cluster.scheduler_address, flush=True)
    input()
"""


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_dask_scheduler_that_goes_away(how, tmp_path):
    pytest.importorskip("distributed")
    text, out = SPEC.replace("seeds = 4", "seeds = 10"), tmp_path / "out"
    (tmp_path / "spec.toml").write_text(text)
    command = [sys.executable, "-m", "flowsim", "sweep", str(tmp_path / "spec.toml"), "--out", str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as cluster:
        address = cluster.stdout.readline().strip()
        started = subprocess.Popen([*command, "--scheduler", address], stderr=subprocess.PIPE, text=True)
        while started.poll() is None and len(records(out)) < 30:
            time.sleep(0.01)
        if how == "killed":
            cluster.kill()
        else:
            cluster.communicate("\n")
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 3, errors
    *_, error = lines = errors.splitlines()
    assert len(lines) == 3, errors  # the plan, the estimate, and this one
    assert error.startswith(f"Error: The Dask cluster at {address} was lost; what was finished is kept. Start it again")
    kept = records(out)
    result = sweep(SweepSpec.build(tomllib.loads(text)), out)
    assert result.skipped == len(kept)
    assert result.done == 80 - len(kept)
    now = records(out)
    assert all(now[path] == stamp for path, stamp in kept.items())


def test_a_dask_cluster_without_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 1.5)
    with dask_cluster(0) as cluster, pytest.raises(StorageError, match=r"no worker for 2 s.*4 members are left"):
        sweep(spec(), tmp_path / "out", scheduler=cluster.scheduler_address)
    assert len(records(tmp_path / "out")) == 2


def test_a_member_that_kills_its_worker_takes_no_other_along(tmp_path, monkeypatch):
    here = os.getpid()

    def dying(folder, member):
        if os.getpid() != here:
            time.sleep(0.05)  # so that a neighbour is under way, and lost with it
            if member.settings["seed"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.2)
        return execute(folder, member)

    monkeypatch.setattr(running, "_execute", dying)
    with pytest.raises(StorageError, match=r"Workers died 3 times.*Lower `workers`.*: 1 members are left"):
        sweep(spec(seeds=6), tmp_path / "out", workers=2)
    assert len(records(tmp_path / "out")) == 5


def test_damaged_records_are_computed_again(tmp_path):
    plan = spec()
    sweep(plan, tmp_path / "out")
    before = opened(tmp_path / "out")
    records = sorted((tmp_path / "out" / "records").glob("*/*.json"))
    records[0].write_text(records[0].read_text()[:100])
    records[1].write_text(records[1].read_text().replace('"final_loss":', '"final_loss":1'))
    records[2].write_bytes(b"")
    told = []
    result = sweep(plan, tmp_path / "out", note=told.append)
    assert (result.done, result.damaged) == (3, 3)
    assert "damaged" in told[0]
    same(before, opened(tmp_path / "out"))


def test_two_writers_on_one_folder(spec_file, tmp_path):
    command = [sys.executable, "-m", "flowsim", "sweep", str(spec_file), "--out", str(tmp_path / "out"), "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        assert json.loads(printed)["members"] == 32
    sweep(SweepSpec.read(spec_file), tmp_path / "alone")
    same(opened(tmp_path / "alone"), opened(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob(".*"))


def test_another_specification_is_refused(tmp_path, capsys):
    sweep(spec(), tmp_path / "out")
    for other in (spec(seeds=2), spec(t1=0.5, seeds=9)):
        with pytest.raises(InputError, match=r"another specification \(it differs in sweep.seeds"):
            sweep(other, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match="other files"):
        sweep(spec(), tmp_path / "full")


@pytest.mark.parametrize("kept", ["[1]", "null", '{"schema": 1, "sweep": {"seeds": "x"}}', '{"sweep": 3}', "{}"])
def test_a_damaged_specification_is_no_reason_to_write_over_it(kept, tmp_path):
    sweep(spec(), tmp_path / "out")
    place = tmp_path / "out" / "specification.json"
    place.write_text(kept)
    with pytest.raises(InputError, match=r"is damaged|another specification"):
        sweep(spec(), tmp_path / "out")
    assert place.read_text() == kept


def test_more_seeds_go_on_in_the_same_folder(tmp_path):
    few, more = spec(seeds=3), spec(seeds=5)
    sweep(few, tmp_path / "out")
    result = sweep(more, tmp_path / "out")
    assert (result.done, result.skipped) == (2 * len(few.members()) // 3, len(few.members()))
    sweep(more, tmp_path / "fresh")
    same(opened(tmp_path / "out"), opened(tmp_path / "fresh"))
    with pytest.raises(InputError, match=r"differs in sweep\.seeds"):
        sweep(few, tmp_path / "out")


def test_a_full_disk(tmp_path, monkeypatch, capsys, spec_file):
    """As the file system says it: an error while a record is written; what was there before stays, and it goes on."""
    written, write = [], Store._write

    def full(self, place, text):
        if place.suffix == ".json" and place.parent.parent.name == "records":
            written.append(place)
            if len(written) == 6:
                raise StorageError(f"File {place} could not be written: No space left on device.")
        write(self, place, text)

    monkeypatch.setattr(Store, "_write", full)
    assert cli.main(["sweep", str(spec_file), "--out", str(tmp_path / "out")]) == 3
    assert "No space left" in capsys.readouterr().err
    monkeypatch.setattr(Store, "_write", write)
    assert cli.main(["sweep", str(spec_file), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 5


def test_a_really_full_disk(disk, spec_file, capsys):
    place, remount = disk
    remount("size=64k")
    assert cli.main(["sweep", str(spec_file), "--out", str(place / "out")]) == 3
    assert "make room" in capsys.readouterr().err
    assert cli.main(["sweep", str(spec_file), "--out", str(place / "out")]) == 3
    kept = len(list((place / "out" / "records").glob("*/*.json")))
    assert kept > 0
    remount("size=32m")
    assert cli.main(["sweep", str(spec_file), "--out", str(place / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] >= kept


def test_a_disk_too_full_for_the_table(disk, spec_file, capsys):
    """In a process of its own: HDF5 may break down when the process ends."""
    place, remount = disk
    remount("size=2m")
    command = [sys.executable, "-m", "flowsim", "sweep", str(spec_file), "--out", str(place / "out")]
    subprocess.run(command, check=True, capture_output=True)
    kept, table = records(place / "out"), place / "out" / "table.nc"
    size = table.stat().st_size
    table.unlink()
    with contextlib.suppress(OSError), open(place / "ballast", "wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096):
            pass
    os.truncate(place / "ballast", (place / "ballast").stat().st_size - size // 2)
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[1:] == [
        f"Error: File {table} could not be written: No space left on device. The records are kept; mend that, and run"
        " the same command again."
    ]
    assert records(place / "out") == kept
    assert {path.name for path in (place / "out").iterdir()} == {"specification.json", "records"}
    (place / "ballast").unlink()
    assert cli.main(["sweep", str(spec_file), "--out", str(place / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 32


def test_a_read_only_file_system(disk, spec_file, capsys):
    place, remount = disk
    remount("size=2m")
    assert cli.main(["sweep", str(spec_file), "--out", str(place / "finished")]) == 0
    (place / "empty").mkdir()
    remount("ro")
    before = sorted((path, path.lstat().st_mtime_ns) for path in place.rglob("*"))
    capsys.readouterr()
    refusals = {
        "new": "cannot be made: Read-only file system; choose another.",
        "empty": "cannot be written: Read-only file system; mend that, or choose another.",
        "finished": "cannot be written: Read-only file system; mend that, or choose another.",
    }
    for name, words in refusals.items():
        assert cli.main(["sweep", str(spec_file), "--out", str(place / name)]) == 2
        assert capsys.readouterr().err == f"Error: Folder {place / name} {words}\n"
    assert sorted((path, path.lstat().st_mtime_ns) for path in place.rglob("*")) == before


def test_a_file_system_that_becomes_read_only(disk, tmp_path):
    """While the sweep runs, as after an error of the disk."""
    place, remount = disk
    remount("size=2m")

    def freeze(done, todo):
        if done == 4:
            remount("ro")

    with pytest.raises(StorageError, match=r"records.*could not be written: Read-only file system.*run the same"):
        sweep(spec(), place / "out", progress=freeze)
    remount("rw")
    result = sweep(spec(), place / "out")
    assert (result.skipped, result.done) == (4, 2)
    sweep(spec(), tmp_path / "undisturbed")
    same(opened(tmp_path / "undisturbed"), opened(place / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, spec_file, capsys):
    assert cli.main(["sweep", str(spec_file), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out").chmod(0o555)
    capsys.readouterr()
    assert cli.main(["sweep", str(spec_file), "--out", str(tmp_path / "out")]) == 2
    assert "cannot be written: Permission denied; mend that" in capsys.readouterr().err
    (tmp_path / "out").chmod(0o755)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    def interrupt(done, todo):
        if done == 4:
            raise KeyboardInterrupt

    result = sweep(spec(), tmp_path / "out", progress=interrupt)
    assert (result.interrupted, result.done, result.exit_code) == (True, 4, 130)
    assert sweep(spec(), tmp_path / "out").done == 2


HEARING = """
import signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may be deaf to it
from flowsim.cli import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_within_a_member_leaves_no_record_of_it(workers, tmp_path):
    """SIGINT to the command while members run that take long: none is recorded as finished."""
    path, out = tmp_path / "spec.toml", tmp_path / "out"
    path.write_text(
        "[sweep]\ndims = [[2, 60, 50, 1]]\nseeds = 6\nt1 = 1e4\nmethod = 'gd'\nstep_size = 1e-3\nreduce = 'never'\n"
    )
    command = [sys.executable, "-c", HEARING, "sweep", str(path), "--out", str(out), "--workers", str(workers)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as started:
        try:
            while not (out / "records").exists() and started.poll() is None:
                time.sleep(0.05)
            time.sleep(1.0 if workers == 1 else 2.5)  # worker processes have to start
            os.killpg(started.pid, signal.SIGINT)
            _, told = started.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 130, told
    assert b"run the same command again" in told
    assert b"Traceback" not in told
    assert not records(out)


def test_failures_are_rows(tmp_path):
    plan = spec(method=["gd"], step_size=[1e-2, 5.0], t1=50.0, stop_loss=None, seeds=2)
    result = sweep(plan, tmp_path / "out")
    dataset = opened(tmp_path / "out")
    assert list(dataset.status.values) == ["completed", "completed", "diverged", "diverged"]
    assert "step_size" in dataset.reason.values[2]
    assert result.exit_code == 3
    limited = spec(t1=1e6, stop_loss=None, wall_limit=1e-6, seeds=1)
    assert sweep(limited, tmp_path / "limited").failed == 1
    assert opened(tmp_path / "limited").status.values[0] == "wall_limit"


def test_all_mistakes_at_once(tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text("""
[sweep]
dims = [[5, 3], [4, 2, 4], [5, 0, 1]]
scheme = ["fan_out", "fanin"]
scale = -1.0
method = ["dop853", "gd", "dop583"]
rtol = [1e-8, 2.0]
atol = -1e-9
seeds = 0
t1 = "soon"
stop_loss = 0.0
colour = "blue"
[target]
kind = "twos"
""")
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    for word in ("dims", "scheme", "scale", "method", "rtol[1]", "atol", "seeds", "t1", "stop_loss", "colour", "kind"):
        assert word in printed, word
    assert "mistakes" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "gd"}, "step_size must be given"),
        ({"dynamics": "heavy-ball"}, "dynamics.*friction"),
        ({"method": "gd", "step_size": 0.1, "schedule": "cosine"}, "schedule.*cosine:steps"),
        ({"method": "gd", "step_size": 0.1, "nesterov": True}, "nesterov.*without momentum"),
        ({"draw": "sampled", "scheme": ["balanced"]}, "draw must be full"),
        ({"draw": "sampled", "scheme": ["orthogonal"]}, "need one hidden width"),
        ({"dims": [[5, 10**6, 10**6, 1]]}, "sampled"),
    ],
)
def test_settings_that_do_not_go_together(changes, words):
    with pytest.raises(InputError, match=words):
        spec(**changes)


@pytest.mark.parametrize(
    ("name", "least", "greatest"),
    [("seeds", 1, None), ("root_seed", 0, None), ("max_steps", 1, None), ("curve_points", 0, 10_000)],
)
def test_the_ends_of_what_is_allowed(name, least, greatest):
    assert getattr(spec(**{name: least}).sweep, name) == least
    with pytest.raises(InputError, match=name):
        spec(**{name: least - 1})
    if greatest is not None:
        assert getattr(spec(**{name: greatest}).sweep, name) == greatest
        with pytest.raises(InputError, match=name):
            spec(**{name: greatest + 1})


@pytest.mark.parametrize("steps", [[], [1e-2], [1e-2, 1e-3, 1e-4]])
def test_the_count_is_that_of_the_members(steps):
    plan = spec(scheme=["fan_out", "ntk"], method=["dop853", "rk45"], rtol=[1e-6, 1e-8, 1e-9], step_size=steps, seeds=3)
    assert plan.sweep.count == len(plan.members()) == 36 * max(len(steps), 1)


def test_a_scheduler_that_is_not_there(spec_file, tmp_path, capsys):
    pytest.importorskip("distributed")
    arguments = ["sweep", str(spec_file), "--out", str(tmp_path / "out"), "--scheduler", "nowhere"]
    assert cli.main(arguments) == 2
    assert "`scheduler`" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[sweep", "", "\xff"])
def test_files_that_are_no_specification(text, tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    assert cli.main(["sweep", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    ("flag", "value"), [("--shard", "5/4"), ("--shard", "0/4"), ("--shard", "half"), ("--workers", "0")]
)
def test_bad_flags(flag, value, spec_file, tmp_path):
    assert cli.main(["sweep", str(spec_file), "--out", str(tmp_path / "out"), flag, value]) == 2


def test_networks_too_wide_to_store(tmp_path):
    plan = spec(dims=[[5, 10**9, 10**9, 1]], draw="sampled", seeds=2, certificates="cheap", stop_loss=1e-6)
    result = sweep(plan, tmp_path / "out")
    assert result.exit_code == 0
    assert (opened(tmp_path / "out").core_width < 100).all()
    assert table(Store(tmp_path / "out"), plan).sizes["member"] == 2


FORGED = {
    "a list": lambda record: [],
    "nothing in it": lambda record: {},
    "scalars of text": lambda record: {**record, "scalars": "abc"},
    "no status": lambda record: {**record, "scalars": {"seconds": 1.0}},
    "status of a number": lambda record: {**record, "scalars": {**record["scalars"], "status": 5}},
    "drift of text": lambda record: {**record, "scalars": {**record["scalars"], "drift": "x"}},
    "drift of truth": lambda record: {**record, "scalars": {**record["scalars"], "drift": True}},
    "curve of text": lambda record: {**record, "scalars": {**record["scalars"], "loss_curve": ["x"]}},
    "curve too long": lambda record: {**record, "scalars": {**record["scalars"], "loss_curve": [1.0] * 4}},
    "no seconds": lambda record: {**record, "scalars": {**record["scalars"], "seconds": None}},
    "of another member": lambda record: {**record, "settings": {**record["settings"], "seed": 7}},
}


@pytest.fixture(scope="module")
def of_one_member(tmp_path_factory):
    """(specification, folder) of a finished sweep."""
    folder = tmp_path_factory.mktemp("finished")
    spec = SweepSpec.build({"sweep": {"dims": [[1, 3, 1]], "seeds": 1, "t1": 0.1, "curve_points": 3}})
    assert sweep(spec, folder).done == 1
    return spec, folder


@pytest.mark.parametrize("how", sorted(FORGED))
def test_a_record_that_cannot_be_the_members_is_computed_again(how, of_one_member, tmp_path):
    spec, finished = of_one_member
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    place = next(tmp_path.glob("records/*/*.json"))
    before = json.loads(place.read_text())["record"]
    forged = FORGED[how](before)
    place.write_text(canonical({"checksum": digest(forged), "record": forged}))
    again = sweep(spec, tmp_path)
    assert (again.done, again.damaged) == (1, 1)
    assert json.loads(place.read_text())["record"]["settings"] == before["settings"]


@pytest.mark.parametrize("text", ["[]", "3", '{"schema": true}', '{"schema": "x"}', "[" * 30_000])
def test_a_specification_of_another_kind_is_told(text, tmp_path):
    spec = SweepSpec.build({"sweep": {"dims": [[1, 3, 1]], "seeds": 1, "t1": 0.1}})
    (tmp_path / "specification.json").write_text(text)
    with pytest.raises(InputError):
        sweep(spec, tmp_path)
    assert (tmp_path / "specification.json").read_text() == text


def test_targets_are_those_of_the_specification():
    table = {"dims": [[2, 5, 3]], "seeds": 1, "t1": 1.0}
    ones, normal = (
        fs.SweepSpec.build({"sweep": table, "target": {"kind": kind, "scale": 2.0}}).members()[0].target()
        for kind in ("ones", "normal")
    )
    assert (ones == np.full((2, 3), 2.0)).all()
    assert (normal == 2 * np.random.default_rng(0).standard_normal((2, 3))).all()
