"""The examples of CONTRIBUTING.md, a file each, from outside the package: what is in the tables works everywhere."""

import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray

import flowsim as fs
from flowsim import cli, dynamics, initialization, losses, methods, rates

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, flags=re.DOTALL))
TABLES = (
    methods.METHODS,
    methods.Method.FAMILIES,
    dynamics.DYNAMICS,
    dynamics.Dynamics.FAMILIES,
    losses.LOSSES,
    losses.STORED,
    rates.THEOREMS,
    initialization.SCHEMES,
)


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


def test_all_are_there(examples):
    assert set(FILES) == {"kutta", "cooling", "huber", "trace", "signs"}
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


RATE = 0.5
EVERY_KIND = ["dop853", "lsoda", "radau", "kutta", "tsit5", "kvaerno5", "projected-rk45"]


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_dynamics_of_ones_own_by_every_kind_of_method(problem, examples, name):
    """Its clock is log(1 + rate t) / rate: the same path as that of gradient flow."""
    step = 0.01 if name == "kutta" else None
    cooling = examples["cooling"].Cooling(RATE)
    method = fs.method_named(name, step_size=step)
    run = fs.simulate(problem, method, t1=2.0, dynamics=cooling, save_points=11)
    flow = fs.simulate(problem, fs.Scipy(rtol=1e-12, atol=1e-14), t1=np.log1p(2.0 * RATE) / RATE)
    assert run.products[-1] == pytest.approx(flow.products[-1], rel=1e-5)
    assert run.imbalance_drift.max() < 1e-5
    assert abs(run.energy_residual).max() < 1e-3
    if name != "kvaerno5":  # diagnosed by many compilations
        assert fs.diagnose(run).exit_code == 0


@pytest.mark.parametrize("name", ["rkc", "gauss-legendre", "leapfrog", "gd"])
def test_methods_for_other_structures_refuse_it(problem, examples, name):
    step = 0.1 if name in ("leapfrog", "gd") else None
    with pytest.raises(fs.errors.InputError, match="Cooling"):
        fs.simulate(problem, fs.method_named(name, step_size=step), t1=1.0, dynamics=examples["cooling"].Cooling(RATE))


def test_a_dynamics_of_ones_own_compressed_saved_resumed_and_by_name(problem, examples, tmp_path, capsys):
    cooling = examples["cooling"].Cooling(RATE)
    wide = fs.Problem(fs.SquaredLoss([[1.0, 0.5]]), fs.fan_out((1, 60, 80, 2), seed=0))
    full, small = (fs.simulate(wide, t1=0.2, dynamics=cooling, reduce=reduce) for reduce in ("never", "always"))
    assert small.reduction.network is not None
    apart = np.linalg.norm(
        np.concatenate([(a - b).ravel() for a, b in zip(small.weights_at(0.2), full.weights_at(0.2), strict=True)])
    )
    assert apart < 1e-7
    small.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert back.dynamics == cooling
    assert fs.resume(back, t1=0.3).products[-1] == pytest.approx(
        fs.simulate(wide, t1=0.3, dynamics=cooling, reduce="always").products[-1], rel=1e-6
    )
    fs.save_weights(tmp_path / "w.npz", wide.network)
    np.save(tmp_path / "y.npy", wide.loss.Y)
    words = ["simulate", f"{tmp_path}/w.npz", "--target", f"{tmp_path}/y.npy", "--t1", "0.2", "--json"]
    assert cli.main([*words, "--dynamics", f"cooling:{RATE}"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"][-1] == pytest.approx(small.loss[-1], rel=1e-6)
    rows = fs.compare(wide, ["rk45", "rkc"], t1=0.2, rtols=(1e-6,), repeats=1, dynamics=cooling).rows
    assert [row.status for row in rows] == ["completed", "failed"]
    assert rows[0].error_worst < 1e-4


def test_a_dynamics_that_is_not_defined_is_told_when_a_file_is_read(problem, examples, tmp_path):
    fs.simulate(problem, t1=0.1, dynamics=examples["cooling"].Cooling(RATE)).save(tmp_path / "run.nc")
    del dynamics.Dynamics.FAMILIES["Cooling"]
    with pytest.raises(fs.errors.InputError, match=r"dynamics\.family.*Cooling"):
        fs.load(tmp_path / "run.nc")


def test_a_class_must_not_take_the_name_of_one_of_flowsims():
    with pytest.raises(fs.errors.InputError, match="must not be called Scipy"):
        type("Scipy", (methods.Method,), {})


def of_ones_own(velocity, **declared):
    """A dynamics with that velocity."""
    kind = type("OnesOwn", (dynamics.Dynamics,), {"velocity": velocity, "__annotations__": {}, **declared})
    return dataclass(frozen=True)(kind)()


def descending(problem, state):
    return [-G for G in problem.gradients(state)[1]]


WRONG = {
    "shapes": lambda self, p, t, state: [V.T for V in descending(p, state)],
    "numbers": lambda self, p, t, state: [1.0] * len(state),
    "one vector": lambda self, p, t, state: np.concatenate([V.ravel() for V in descending(p, state)]),
    "none": lambda self, p, t, state: None,
    "too few": lambda self, p, t, state: descending(p, state)[1:],
    "complex": lambda self, p, t, state: [V * 1j for V in descending(p, state)],
    "not a number": lambda self, p, t, state: [V * np.nan for V in descending(p, state)],
    "an error": lambda self, p, t, state: 1 / 0,
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", ["dop853", "radau", "tsit5"])
def test_a_velocity_that_is_none_is_refused_before_the_first_step(examples, how, name):
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    with pytest.raises(fs.errors.InputError, match="dynamics"):
        fs.simulate(problem, name, t1=1.0, dynamics=of_ones_own(WRONG[how]))


def test_a_dynamics_of_ones_own_with_weight_decay(examples):
    """Nothing is taken for granted of it, and it runs; one that says it can be compressed has to tell what is left."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0), weight_decay=0.2)
    plain = of_ones_own(lambda self, p, t, state: descending(p, state))
    run, flow = (fs.simulate(problem, t1=1.0, dynamics=d) for d in (plain, fs.GradientFlow()))
    assert run.products[-1] == pytest.approx(flow.products[-1], rel=1e-6)
    promised = of_ones_own(lambda self, p, t, state: descending(p, state), compressible=True)
    with pytest.raises(fs.errors.InputError, match="remaining"):
        fs.simulate(problem, t1=1.0, dynamics=promised)


def test_a_loss_that_rises_under_a_dynamics_of_ones_own_is_no_error(examples):
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[2.0]])))
    rising = of_ones_own(lambda self, p, t, state: [np.ones_like(W) for W in state])
    assert fs.simulate(problem, t1=1.0, dynamics=rising).detail == ""


@pytest.mark.parametrize("dims", [(3, 300, 2), (3, 70, 80, 2)])
def test_a_dynamics_that_hidden_bases_do_not_commute_with_is_never_compressed(examples, dims):
    """Signs of gradients are of a basis; two layers, whose bases are complete, are no exception."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in(dims, seed=0))
    signs = of_ones_own(lambda self, p, t, state: [np.tanh(50 * V) for V in descending(p, state)])
    auto, full = (fs.simulate(problem, t1=0.01, dynamics=signs, reduce=reduce) for reduce in ("auto", "never"))
    assert auto.reduction.network is None
    assert (auto.products == full.products).all()
    with pytest.raises(fs.errors.InputError, match="bases of networks"):
        fs.simulate(problem, t1=0.01, dynamics=signs, reduce="always")
    drawn = fs.Problem(problem.loss, fs.sample_compressed("fan_in", dims, seed=0))
    with pytest.raises(fs.errors.InputError, match="bases of networks"):
        fs.simulate(drawn, t1=0.01, dynamics=signs)
    cooling = examples["cooling"].Cooling(0.5)
    run, flow = fs.simulate(drawn, t1=0.01, dynamics=cooling), fs.simulate(drawn, t1=np.log1p(0.005) / 0.5)
    assert run.products[-1] == pytest.approx(flow.products[-1], rel=1e-6)


def test_the_modified_flow_of_two_layers_is_compressed_exactly():
    for x in (0.0, 0.3):
        problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 300, 2), seed=0), weight_decay=x)
        small, full = (fs.simulate(problem, t1=0.3, dynamics="modified-flow:0.01", reduce=r) for r in ("auto", "never"))
        assert small.reduction.network.exact
        for V, W in zip(small.weights_at(0.3), full.weights_at(0.3), strict=True):
            assert pytest.approx(W, abs=1e-7) == V


def failing_later(how):
    """dW = -G until t = 0.5."""

    def velocity(self, p, t, state):
        if t <= 0.5:
            return descending(p, state)
        return {
            "nan": lambda: [V * np.nan for V in state],
            "shape": lambda: [V.T for V in state],
            "error": lambda: {}["x"],
        }[how]()

    return of_ones_own(velocity)


@pytest.mark.parametrize("how", ["nan", "shape", "error"])
@pytest.mark.parametrize("name", ["dop853", "rk45", "radau", "bdf", "lsoda"])
def test_what_fails_on_the_way_ends_the_run_with_what_there_is(examples, how, name):
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    run = fs.simulate(problem, name, t1=1.0, dynamics=failing_later(how), wall_limit=20)
    assert run.status == "diverged"
    assert 0.3 < run.time[-1] <= 0.5 + 1e-9
    assert how == "nan" or "OnesOwn" in run.detail


def test_a_velocity_that_jax_cannot_trace_is_refused_by_compiled_methods(examples):
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    with pytest.raises(fs.errors.InputError, match=r"cannot trace.*dop853"):
        fs.simulate(problem, "tsit5", t1=1.0, dynamics=failing_later("nan"))


def test_without_power_there_is_no_energy_and_every_kind_of_setting_is_told(examples, tmp_path):
    """A text as a setting; NaN as the residual, in plots and on pages too."""
    of_words = of_ones_own(lambda self, p, t, state: descending(p, state), __annotations__={"kind": str}, kind="plain")
    run = fs.simulate(fs.Problem(fs.SquaredLoss([[1.0]]), fs.fan_in((1, 3, 1), seed=0)), t1=1.0, dynamics=of_words)
    assert np.isnan(run.energy_residual).all()
    assert "kind plain" in run.summary()
    assert "energy" not in {law.name for law in fs.diagnose(run)}
    run.save(tmp_path / "run.nc")
    fs.report(fs.load(tmp_path / "run.nc"), tmp_path / "run.html")
