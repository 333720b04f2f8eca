"""The examples of CONTRIBUTING.md, a file each, from outside the package: what is in the tables works everywhere."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

import flowsim as fs
from flowsim import cli, initialization, losses, methods, rates

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, flags=re.DOTALL))
TABLES = methods.METHODS, methods.Method.FAMILIES, losses.LOSSES, losses.STORED, rates.THEOREMS, initialization.SCHEMES


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The modules by their names; the tables are as before afterwards."""
    before = [dict(table) for table in TABLES]
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield {name: importlib.import_module(name) for name in FILES}
    for table, content in zip(TABLES, before, strict=True):
        table.clear()
        table.update(content)
    for name in FILES:
        del sys.modules[name]


@pytest.fixture
def problem(examples):
    network = fs.initialize("signs", (1, 6, 1), seed=0, scale=0.5)
    return fs.Problem(examples["huber"].PseudoHuber([[2.0]]), network)


def test_all_four_are_there(examples):
    assert set(FILES) == {"kutta", "huber", "trace", "signs"}
    assert {"kutta"} < set(methods.METHODS)
    assert {"trace"} < set(rates.THEOREMS)


def test_simulate_certify_and_the_order_of_the_method(problem, examples):
    true = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=1.0).product_at(1.0)
    errors = [
        abs(fs.simulate(problem, fs.method_named("kutta", step_size=1 / steps), t1=1.0).product_at(1.0) - true).item()
        for steps in (20, 40)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.2)
    certified = fs.certify(problem)["trace"]
    assert 0 <= certified.alpha <= fs.certify(problem).lambda_min_T
    assert certified.alpha == pytest.approx(fs.certify(problem)["theorem-2-product"].alpha or certified.alpha)


def test_projected_compared_and_in_an_ensemble(problem, examples):
    rows = fs.compare(problem, ["kutta", "dop853"], t1=1.0, rtols=(1e-6,), step_sizes=(0.02,), repeats=1).rows
    assert [(row.method, row.status, row.step_size) for row in rows] == [
        ("kutta", "completed", 0.02),
        ("dop853", "completed", None),
    ]
    assert rows[0].error_worst < 1e-5
    many = fs.ensemble(lambda seed: problem, 3, t1=1.0, method=examples["kutta"].Kutta(0.02))
    assert (many.scalars["status"] == "completed").all()


def test_diagnose_report_save_and_load(problem, examples, tmp_path):
    run = fs.simulate(problem, examples["kutta"].Kutta(0.02), t1=1.0)
    assert fs.diagnose(run).exit_code == 0
    run.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert back.method == run.method
    assert type(back.problem.loss) is examples["huber"].PseudoHuber
    assert back.weights_at(0.505)[0] == pytest.approx(run.weights_at(0.505)[0], abs=1e-15)
    assert fs.resume(back, t1=2.0).status == "completed"
    fs.report(back, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Kutta" in page
    assert "trace" in page


@pytest.mark.parametrize(("workers", "loss"), [(1, "pseudo-huber"), (2, "pseudo-huber"), (2, "squared")])
def test_sweep_and_its_processes(examples, tmp_path, workers, loss):
    table = {"dims": [[1, 6, 1]], "scheme": "signs", "method": ["kutta", "rk45"], "step_size": 0.005}
    sizes = {"seeds": 3, "t1": 1.0}
    spec = fs.SweepSpec.build({"sweep": table | sizes, "target": {"loss": loss, "scale": 2.0}})
    done = fs.sweep(spec, tmp_path / "sweep", workers=workers)
    assert (done.failed, done.done) == (0, 6)
    table = xarray.load_dataset(done.table)
    applies = loss == "squared"  # of the other no constants are known, and so no rate
    assert table.trace_alpha.values == pytest.approx([5.0 if applies else np.nan] * 6, nan_ok=True)
    kutta, other = (table.final_excess.values[table.method.values == name] for name in ("kutta", "rk45"))
    assert kutta == pytest.approx(other, rel=1e-4)


def test_the_command_by_name(examples, tmp_path, capsys):
    fs.save_weights(tmp_path / "w.npz", fs.initialize("signs", (1, 6, 1), seed=0))
    np.save(tmp_path / "y.npy", [[2.0]])
    words = ["simulate", f"{tmp_path}/w.npz", "--target", f"{tmp_path}/y.npy", "--loss", "pseudo-huber", "--t1", "1"]
    assert cli.main([*words, "--method", "kutta", "--step-size", "0.02", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["method"]) == ("completed", "kutta")


def test_a_class_must_not_take_the_name_of_one_of_flowsims():
    with pytest.raises(fs.errors.InputError, match="must not be called Scipy"):
        type("Scipy", (methods.Method,), {})
