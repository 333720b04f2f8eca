"""Sweeps: specifications, and every kind of bad weather; nothing finished is lost, nothing is counted twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray

from flowsim import cli
from flowsim.errors import InputError, StorageError
from flowsim.store import Store
from flowsim.sweeps import SweepSpec, run_member, running, sweep, table

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
    tables = {"dims": [[2, 12, 9, 1]], "seeds": 6, "t1": 1.0, "stop_loss": 1e-3, **changes}
    return SweepSpec.build({"sweep": tables})


def same(one, other):
    xarray.testing.assert_allclose(one.drop_vars(TIMING), other.drop_vars(TIMING), rtol=1e-12, atol=0)
    for name in ("status", "reason", "best_certificate"):
        assert (one[name] == other[name]).all()


def opened(folder):
    with xarray.open_dataset(Path(folder) / "table.nc") as found:
        return found.load()


def test_members_and_table(spec_file, tmp_path):
    plan = SweepSpec.read(spec_file)
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


def test_workers_and_shards_give_the_same_table(spec_file, tmp_path):
    plan = SweepSpec.read(spec_file)
    sweep(plan, tmp_path / "one")
    sweep(plan, tmp_path / "two", workers=2)
    for part in (3, 1, 4, 2):
        result = sweep(plan, tmp_path / "shards", shard=(part, 4))
        assert result.done == 8
    for folder in ("two", "shards"):
        same(opened(tmp_path / "one"), opened(tmp_path / folder))


def test_a_dask_cluster_gives_the_same_table(spec_file, tmp_path):
    distributed = pytest.importorskip("distributed")
    plan = SweepSpec.read(spec_file)
    sweep(plan, tmp_path / "one")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        sweep(plan, tmp_path / "dask", scheduler=cluster.scheduler_address)
        with pytest.raises(ValueError, match="No global client"):
            distributed.get_client()
    same(opened(tmp_path / "one"), opened(tmp_path / "dask"))


def records(folder):
    """When each record was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "records").glob("*/[0-9a-f]*.json")}


def test_kill_minus_9_at_random_moments(tmp_path):
    """The parent with its workers, again and again: the table of an undisturbed run, and no record is rewritten."""
    text = SPEC.replace("seeds = 4", "seeds = 40")
    (tmp_path / "spec.toml").write_text(text)
    plan, chance, out, kept = SweepSpec.build(tomllib.loads(text)), random.Random(0), tmp_path / "out", {}
    command = [sys.executable, "-m", "flowsim", "sweep", str(tmp_path / "spec.toml"), "--out", str(out)]
    for kill in range(4):
        started = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL, start_new_session=True)
        wanted = len(kept) + chance.randint(1, 60)
        while started.poll() is None and len(records(out)) < wanted:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        now = records(out)
        assert len(now) > len(kept) or len(kept) == len(plan.members()), kill
        assert all(now[path] == stamp for path, stamp in kept.items())
        kept = now
    result = sweep(plan, out)
    assert result.skipped == len(kept)
    assert result.members == 320
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
    with pytest.raises(InputError, match="another specification"):
        sweep(spec(seeds=7), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match="other files"):
        sweep(spec(), tmp_path / "full")


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_really_full_disk(tmp_path, spec_file, capsys):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert cli.main(["sweep", str(spec_file), "--out", str(place / "out")]) == 3
        assert "make room" in capsys.readouterr().err
        assert cli.main(["sweep", str(spec_file), "--out", str(place / "out")]) == 3
        kept = len(list((place / "out" / "records").glob("*/*.json")))
        assert kept > 0
        subprocess.run(["mount", "-o", "remount,size=32m", str(place)], check=True)
        assert cli.main(["sweep", str(spec_file), "--out", str(place / "out"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["skipped"] >= kept
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    def interrupt(done, todo):
        if done == 4:
            raise KeyboardInterrupt

    result = sweep(spec(), tmp_path / "out", progress=interrupt)
    assert (result.interrupted, result.done, result.exit_code) == (True, 4, 130)
    assert sweep(spec(), tmp_path / "out").done == 2


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
        ({"draw": "sampled", "scheme": ["orthogonal"]}, "draw must be full"),
        ({"dims": [[5, 10**6, 10**6, 1]]}, "sampled"),
    ],
)
def test_settings_that_do_not_go_together(changes, words):
    with pytest.raises(InputError, match=words):
        spec(**changes)


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
