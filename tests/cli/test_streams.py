"""The command where its streams are closed, broken, full or of another encoding, and where outputs are links."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowsim as fs
from flowsim import cli, files
from flowsim.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with weights, a target and a run, from which the command is called."""
    monkeypatch.chdir(tmp_path)
    network, Y = fs.fan_in((2, 4, 1), seed=0), np.ones((2, 1))
    files.save_weights("w.npz", network, Y)
    fs.simulate(fs.Problem(fs.SquaredLoss(Y), network), t1=0.1, save_points=3).save("run.nc")
    return tmp_path


def in_shell(words, **environment):
    """(exit code, standard output, standard error) of a shell's line in which FLOWSIM is the command."""
    root = str(Path(fs.__file__).parents[1])
    settings = {**os.environ, "PYTHONPATH": root, "FLOWSIM": f"{sys.executable} -m flowsim", **environment}
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=settings, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "<&- 1>&- 2>&-"])
def test_a_closed_stream_stops_no_run(closed, folder):
    code, out, err = in_shell(f"$FLOWSIM simulate w.npz --t1 0.1 --out new.nc {closed}")
    assert (code, err) == (0, "")
    assert bool(out) == ("1>&-" not in closed)
    assert fs.load("new.nc").status == "completed"


def test_an_error_has_its_code_though_nobody_reads_it(folder):
    assert in_shell("$FLOWSIM simulate none.npz --t1 0.1 2>&-")[0] == 2
    assert in_shell("($FLOWSIM simulate none.npz --t1 0.1; echo $? >code) 2>&1 >out | true")[0] == 0
    assert Path("code").read_text() == "2\n"


def test_a_reader_that_has_gone_is_no_error(folder):
    line = "$FLOWSIM simulate w.npz --t1 0.1 --save-points 9999 --json | head -c 9; exit ${PIPESTATUS[0]}"
    assert in_shell(line) == (0, '{"status"', "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_output_that_is_full_is_told():
    assert in_shell("$FLOWSIM methods > /dev/full") == (2, "", "Error: the output: No space left on device.\n")


def test_what_cannot_be_encoded_is_escaped(folder):
    code, out, err = in_shell("$FLOWSIM plot run.nc --kind loss --out größe.png", PYTHONIOENCODING="ascii")
    assert (code, out, err) == (0, "Wrote gr\\xf6\\xdfe.png\n", "")
    assert Path("größe.png").stat().st_size > 1000


WRITERS = {
    "run": (lambda: cli.main(["simulate", "w.npz", "--t1", "0.1", "--out", "out"]), "run.nc"),
    "figure": (lambda: cli.main(["plot", "run.nc", "--kind", "loss", "--out", "out.png"]), None),
    "page": (lambda: cli.main(["report", "run.nc", "--out", "out.html"]), None),
    "weights": (lambda: cli.main(["initialize", "--dims", "2,3,1", "--out", "out"]), "w.npz"),
}


@pytest.mark.parametrize("what", sorted(WRITERS))
def test_a_link_is_written_through_and_the_mode_kept(what, folder, capsys):
    write, there = WRITERS[what]
    name = {"figure": "out.png", "page": "out.html"}.get(what, "out")
    target = folder / "elsewhere" / name
    target.parent.mkdir()
    target.write_bytes(Path(there).read_bytes() if there else b"")
    target.chmod(0o600)
    before = target.stat().st_ino
    Path(name).symlink_to(target)
    assert write() == 0
    assert Path(name).is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.stat().st_ino != before, "renamed into place, not written over"
    assert os.listdir(target.parent) == [name]


def test_a_link_to_nothing_makes_its_target(folder, capsys):
    Path("link.nc").symlink_to("target.nc")
    assert cli.main(["simulate", "w.npz", "--t1", "0.1", "--out", "link.nc"]) == 0
    assert Path("link.nc").is_symlink()
    assert fs.load("target.nc").status == "completed"


def test_links_in_a_circle_are_refused(folder):
    Path("a.nc").symlink_to("b.nc")
    Path("b.nc").symlink_to("a.nc")
    with pytest.raises(InputError, match="cannot be written"):
        fs.load("run.nc").save("a.nc")
    with pytest.raises(InputError, match="cannot be read"):
        fs.load("a.nc")


def test_a_new_file_has_the_usual_mode(folder, capsys):
    mask = os.umask(0o027)
    try:
        assert cli.main(["cite", "run.nc"]) == 0
        fs.load("run.nc").save("new.nc")
    finally:
        os.umask(mask)
    assert Path("new.nc").stat().st_mode & 0o777 == 0o640


def test_names_of_any_kind(folder):
    for name in ("new\nline.nc", "-flag.nc", "x" * 250 + ".nc", " ", "ü.nc"):
        fs.load("run.nc").save(Path(name))
        assert fs.load(Path(name)).status == "completed"
    with pytest.raises(InputError, match="name too long"):
        fs.load("run.nc").save("x" * 300)
    assert not [name for name in os.listdir() if name.startswith(".flowsim")]


def test_records_of_a_sweep_are_written_through_links(tmp_path):
    spec = fs.SweepSpec.build({"sweep": {"dims": [[1, 3, 1]], "seeds": 1, "t1": 0.1}})
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    assert fs.sweep(spec, tmp_path / "out").done == 1
    place = tmp_path / "real" / "specification.json"
    place.chmod(0o600)
    more = fs.SweepSpec.build({"sweep": {"dims": [[1, 3, 1]], "seeds": 2, "t1": 0.1}})
    assert fs.sweep(more, tmp_path / "out").done == 1
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_damaged_run_gone_on_with_in_its_own_place_is_kept(folder, capsys):
    content = Path("run.nc").read_bytes()[:-100]
    Path("run.nc").write_bytes(content)
    assert cli.main(["simulate", "--resume", "run.nc", "--t1", "1", "--out", "run.nc"]) == 2
    assert Path("run.nc").read_bytes() == content


# When to save


@pytest.fixture
def problem():
    return fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))


def test_no_times_to_save_are_the_ends(problem):
    assert fs.simulate(problem, t1=0.3, save_points=[]).time.tolist() == [0.0, 0.3]
    run = fs.simulate(problem, t1=0.3, save_points=[])
    assert fs.resume(run, t1=0.4, save_points=[]).time.tolist() == [0.0, 0.3, 0.4]


@pytest.mark.parametrize("t1", [0.3, 1e-300, 7e22])
def test_a_time_beyond_the_end_by_rounding_is_the_end(problem, t1):
    from flowsim.runs.stopping import save_times

    beyond = float(np.nextafter(t1, np.inf))
    assert save_times(fs.Scipy(), t1, [t1 / 2, beyond]).tolist() == [0.0, t1 / 2, t1]
    assert save_times(fs.Scipy(), t1, [t1, beyond]).tolist() == [0.0, t1]
    with pytest.raises(InputError, match="ascend strictly"):
        save_times(fs.Scipy(), t1, [t1 / 2, t1 * (1 + 1e-14)])


def test_the_least_time_there_is(problem):
    run = fs.simulate(problem, t1=5e-324)
    assert run.time.tolist() == [0.0, 5e-324]
    assert fs.diagnose(run).exit_code == 0


def test_a_gradient_whose_square_underflows_is_no_stationary_point():
    weights = [[0.0]], [[1e-10]]
    run = fs.simulate(fs.Problem(fs.SquaredLoss([[2e-150]]), fs.LinearNetwork(weights)), t1=1.0, save_points=2)
    assert run.gradient_norm[0] == pytest.approx(2e-160, rel=1e-15)
    assert "stationary" not in run.detail
    lower = fs.simulate(fs.Problem(fs.SquaredLoss([[2e-170]]), fs.LinearNetwork(weights)), t1=1.0, save_points=2)
    assert "underflows" in lower.detail
    still = fs.LinearNetwork(([[0.0]], [[0.0]]))
    stationary = fs.simulate(fs.Problem(fs.SquaredLoss([[2e-150]]), still), t1=1.0, save_points=2)
    assert "stationary" in stationary.detail
