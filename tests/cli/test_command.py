"""The command: its JSON and its exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest

import flowsim as fs
from flowsim import cli, files


@pytest.fixture
def weights(tmp_path):
    network = fs.fan_out((3, 12, 9, 2), seed=0)
    files.save_weights(tmp_path / "w.npz", network, np.ones((3, 2)))
    np.save(tmp_path / "y.npy", np.full((3, 2), 0.5))
    return tmp_path / "w.npz"


def call(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


def test_simulate_keeps_the_contract(weights, capsys, tmp_path):
    out = tmp_path / "run.nc"
    code, printed, _ = call(capsys, "simulate", weights, "--t1", 0.5, "--json", "--out", out)
    result = strict(printed)
    assert code == 0
    assert len(result["time"]) == len(result["loss"]) == len(result["imbalance_drift"]) == 101
    assert result["status"] == "completed"
    assert result["method"] == "auto"
    assert result["rhs_evaluations"] > 10
    assert 0 < result["seconds"] < 60
    assert set(result["reduction"]) >= {"used", "widths", "reduced_widths", "error_estimate"}
    assert fs.load(out).provenance["configuration"]["t1"] == 0.5
    assert fs.load(out).loss == pytest.approx(result["loss"], rel=0)


@pytest.mark.parametrize("method", ["rk45", "radau", "lsoda", "tsit5", "dopri8", "kvaerno5", "gd"])
def test_simulate_with_every_method(weights, capsys, method):
    step = ("--step-size", 1e-3) if method == "gd" else ()
    code, printed, _ = call(capsys, "simulate", weights, "--t1", 0.1, "--method", method, "--json", *step)
    assert code == 0
    assert strict(printed)["method"] == method


def test_another_target_and_data(weights, capsys, tmp_path):
    one = call(capsys, "simulate", weights, "--t1", 0.1, "--json", "--target", tmp_path / "y.npy")
    np.savez(tmp_path / "data.npz", X=np.eye(3), Y=np.full((3, 2), 0.5))
    two = call(capsys, "simulate", weights, "--t1", 0.1, "--json", "--data", tmp_path / "data.npz")
    assert strict(one[1])["loss"] == pytest.approx(strict(two[1])["loss"], rel=1e-9)


def test_limits_and_divergence_exit_with_three(weights, capsys, tmp_path):
    code, printed, err = call(capsys, "simulate", weights, "--t1", 5, "--max-steps", 2, "--json")
    assert (code, strict(printed)["status"]) == (3, "step_limit")
    assert "max_steps" in err
    out = tmp_path / "bad.nc"
    arguments = ("--method", "gd", "--step-size", 9, "--out", out, "--json")
    code, printed, err = call(capsys, "simulate", weights, "--t1", 900, *arguments)
    assert (code, strict(printed)["status"]) == (3, "diverged")
    assert fs.load(out).status == "diverged"


def test_a_saved_run_is_gone_on_with(weights, capsys, tmp_path):
    half, both = tmp_path / "half.nc", tmp_path / "both.nc"
    assert call(capsys, "simulate", weights, "--t1", 0.25, "--method", "rk45", "--out", half, "--json")[0] == 0
    code, printed, _ = call(
        capsys, "simulate", "--resume", half, "--t1", 0.5, "--save-points", 3, "--out", both, "--json"
    )
    result, run = strict(printed), fs.load(both)
    assert (code, result["method"], len(result["time"])) == (0, "rk45", 103)
    whole = strict(call(capsys, "simulate", weights, "--t1", 0.5, "--method", "rk45", "--json")[1])
    assert result["loss"][-1] == pytest.approx(whole["loss"][-1], rel=1e-5)
    assert run.provenance["configuration"]["t1"] == 0.5
    assert run.provenance["configuration"]["weights"] == str(weights)
    for given in (("--method", "dop853", "--rtol", 1e-5), ("--reduce", "never"), ("--target", tmp_path / "y.npy")):
        code, _, err = call(capsys, "simulate", "--resume", half, "--t1", 0.5, *given)
        assert code == 2
        assert "must not be given with --resume" in err
    other = call(capsys, "simulate", "--resume", half, "--t1", 0.5, "--method", "auto", "--json")
    assert (other[0], json.loads(other[1])["method"]) == (0, "auto")  # the default by name is no silence
    assert "--resume" in call(capsys, "simulate", "--t1", 0.5)[2]


def test_options_from_a_file_flags_win(weights, capsys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(f'[simulate]\nweights = "{weights}"\nt1 = 0.5\nmethod = "rk45"\nsave_points = 3\njson = true\n')
    code, printed, _ = call(capsys, "simulate", "--config", path, "--t1", 0.25)
    assert code == 0
    assert strict(printed)["time"] == [0.0, 0.125, 0.25]
    assert strict(printed)["method"] == "rk45"
    complete = call(capsys, "simulate", f"--config={path}", "--print-config", "--rtol", 1e-5)[1]
    assert "rtol = 1e-05" in complete
    assert "# step_size is not set" in complete
    path.write_text(complete)
    again = call(capsys, "simulate", "--config", path)[1]
    assert strict(again)["time"] == [0.0, 0.25, 0.5]
    assert call(capsys, "simulate", weights, "--t1", 0.5, "--print-config")[1].count("=") >= 8
    assert "[compare]" in call(capsys, "compare", "staircase", "--print-config")[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[simulat]\nt1 = 1", "did you mean simulate"),
        ("[simulate\n", "must be TOML"),
        ("t1 = 1\n", "a table a command"),
        ("[simulate]\nt2 = 1\nt1 = 1\n", "t2"),
        ('[simulate]\nt1 = "soon"\n', "soon"),
    ],
)
def test_bad_configurations(text, words, weights, capsys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    code, printed, err = call(capsys, "simulate", weights, "--config", path)
    assert (code, printed) == (2, "")
    assert words in err
    assert call(capsys, "simulate", weights, "--config", tmp_path / "none.toml")[0] == 2
    assert "given once" in call(capsys, "simulate", weights, "--config")[2]


def test_cite(weights, capsys, tmp_path):
    assert "Mallada" in call(capsys, "cite")[1]
    call(capsys, "simulate", weights, "--t1", 0.1, "--out", tmp_path / "run.nc")
    assert "virtanen2020scipy" in strict(call(capsys, "cite", tmp_path / "run.nc", "--json")[1])["bibtex"]


def test_certify_keeps_the_contract(weights, capsys):
    code, printed, _ = call(capsys, "certify", weights, "--json")
    result = strict(printed)
    assert code == 0
    assert result["dims"] == [3, 12, 9, 2]
    entry = {c["name"]: c for c in result["certificates"]}["theorem-2"]
    assert set(entry) >= {"name", "applies", "alpha", "scope", "law", "rate", "reason"}
    assert entry["rate"] == pytest.approx(2 * entry["alpha"])
    assert entry["alpha"] <= result["lambda_min_T"]
    assert "theorem-2" in call(capsys, "certify", weights)[1]
    cheap = strict(call(capsys, "certify", weights, "--cheap", "--json")[1])
    lower = {c["name"]: c for c in cheap["certificates"]}["theorem-2"]["alpha"]
    assert lower <= entry["alpha"] * (1 + 1e-9)


def certified(capsys, path, *arguments):
    code, printed, _ = call(capsys, "certify", path, *arguments, "--json")
    assert code == 0
    assert "best:" in call(capsys, "certify", path, *arguments)[1]
    result = strict(printed)
    return result["best"], {c["name"]: c for c in result["certificates"]}


def test_certify_two_layers_of_unequal_ends(capsys, tmp_path):
    network = fs.fan_in((4, 9, 2), seed=1)
    path = tmp_path / "w.npz"
    files.save_weights(path, network, network.product + 0.01)
    best, found = certified(capsys, path)
    assert best["name"] in ("ball", "path", "combined")
    assert found["lemma-3"] == {**found["lemma-3"], "applies": True, "scope": "instant", "rate": None}
    assert found["theorem-1-A1"]["rate"] == pytest.approx(2 * found["theorem-1-A1"]["alpha"])
    assert found["theorem-3-homogeneous"]["reason"].startswith("it holds for n = m only")
    alone, without = certified(capsys, write(tmp_path / "alone.npz", W1=network.weights[0], W2=network.weights[1]))
    assert alone["rate"] is None
    assert "needs a loss (a target or data)" in without["theorem-1-A2"]["reason"]


def test_certify_five_unimodal_layers(capsys, tmp_path):
    path = tmp_path / "w.npz"
    arguments = ("--scheme", "unimodal", "--imbalance", "0.5,1,0.7,0.2", "--peak", 3, "--out", path)
    assert call(capsys, "initialize", "--dims", "3,4,5,5,4,2", *arguments)[0] == 0
    np.save(tmp_path / "y.npy", np.ones((3, 2)))
    best, found = certified(capsys, path, "--target", tmp_path / "y.npy")
    assert best["alpha"] == pytest.approx(found["theorem-3-unimodal"]["alpha"])
    assert best["alpha"] == pytest.approx(1.5 * 1.0 * 0.7 * 0.9)
    assert found["theorem-2"]["reason"] == "it is for three layers, the network has 5"


def test_certify_and_simulate_classification(capsys, tmp_path, rng):
    X = rng.standard_normal((20, 3))
    data = write(tmp_path / "d.npz", X=X, Y=np.sign(X[:, :1]))
    path = tmp_path / "w.npz"
    files.save_weights(path, fs.fan_out((3, 20, 30, 1), seed=0))
    best, found = certified(capsys, path, "--data", data, "--loss", "exponential")
    assert best["name"] == "theorem-4"
    assert best["law"] == "hyperbolic"
    assert best["rate"] > 0
    assert not found["theorem-2"]["applies"]
    assert certified(capsys, path, "--data", data, "--loss", "logistic")[0] is None
    code, printed, _ = call(capsys, "simulate", path, "--data", data, "--loss", "exponential", "--t1", 0.1, "--json")
    assert code == 0
    assert strict(printed)["loss"][-1] < strict(printed)["loss"][0]


def test_a_masked_target(weights, capsys, tmp_path):
    mask = np.ones((3, 2))
    mask[0, 0] = 0
    np.save(tmp_path / "mask.npy", mask)
    best, found = certified(capsys, weights, "--mask", tmp_path / "mask.npy")
    assert best["alpha"] == pytest.approx(found["theorem-2"]["alpha"])
    assert "A2" in found["theorem-2-product"]["reason"]


def test_initialize_writes_what_it_says(capsys, tmp_path):
    out = tmp_path / "w.npz"
    code, _, _ = call(capsys, "initialize", "--dims", "5,30,50,1", "--scheme", "ntk", "--seed", 4, "--out", out)
    network = files.read_weights(out)
    assert code == 0
    assert network.scale == fs.ntk((5, 30, 50, 1), seed=4).scale
    assert (network.weights[1] == fs.ntk((5, 30, 50, 1), seed=4).weights[1]).all()
    assert network.origin["seed"] == 4


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


GOOD = {"W1": np.ones((3, 4)), "W2": np.ones((4, 5)), "W3": np.ones((5, 2)), "Y": np.ones((3, 2))}


def changed(path, **arrays):
    return write(path, **{key: value for key, value in {**GOOD, **arrays}.items() if value is not None})


def test_integers_are_converted_with_a_notice(capsys, tmp_path):
    path = changed(tmp_path / "w.npz", W1=np.ones((3, 4), dtype=int), W2=np.ones((4, 5), np.float32))
    code, _, err = call(capsys, "simulate", path, "--t1", 0.1, "--json")
    assert code == 0
    assert "converted from int64" in err
    assert "converted from float32" in err


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "kept.npz"
    target.write_bytes(b"old")

    def fail_half_way():
        with files.write_atomically(target) as place:
            place.write_bytes(b"half")
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_help_is_light():
    code = (
        "import sys; from flowsim.cli import main; main(['--help']); main(['simulate', '--help']);"
        "bad = {'numpy', 'scipy', 'jax', 'matplotlib', 'xarray'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--stop-loss" in done.stdout


def test_debug_shows_the_traceback(weights):
    with pytest.raises(fs.errors.InputError):
        cli.main(["simulate", str(weights), "--t1", "-1", "--debug"])


def test_a_long_run_tells_of_itself_in_a_log(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("flowsim.cli.output.EVERY", 0.0)
    network = fs.fan_in((2, 30, 40, 2), seed=0)
    files.save_weights(tmp_path / "w.npz", network, np.ones((2, 2)))
    assert cli.main(["simulate", str(tmp_path / "w.npz"), "--t1", "1", "--json"]) == 0
    printed, said = capsys.readouterr()
    json.loads(printed)
    lines = said.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("t = ") and "of 1, log10(L - f*) = " in line for line in lines), said
    assert lines[-1].endswith("about 0 s left")
