"""diagnose: clean runs of every kind pass, sabotaged ones do not, and the command says so with its exit code."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import sabotage
from conftest import Huber, random_problem
from sabotage import sabotaged

import flowsim as fs
from flowsim import cli
from flowsim.runs.record import Checkpoints, Steps

METHODS = [
    *("rk23", "rk45", "dop853", "radau", "bdf", "lsoda", "tsit5", "kvaerno5"),
    *("gauss-legendre-1", "gauss-legendre-4", "projected-rk45", "gd"),
]


def clean(name, seed=0, dims=(3, 12, 9, 2), t1=1.0):
    problem = random_problem(np.random.default_rng(seed), dims, 0.8)
    return fs.simulate(problem, fs.method_named(name, step_size=2e-3 if name == "gd" else None), t1=t1)


def nudged(run, weight=7):
    """The same run with one weight nudged mid-way, from where the same method goes on."""
    return sabotaged(run, len(run.checkpoints.times) // 2, weight % run.checkpoints.states.shape[1])


@pytest.mark.parametrize("name", METHODS)
def test_a_clean_run_passes_and_a_nudge_is_found(name):
    run = clean(name)
    assert not fs.diagnose(run).broken
    found = fs.diagnose(nudged(run))
    assert found.exit_code == 3
    law = found["recurrence" if name == "gd" else "flow"]
    assert law.holds is False
    assert law.time == pytest.approx(run.time[len(run.time) // 2 + 1])


@pytest.mark.parametrize("seed", range(12))
def test_no_false_alarm_and_no_miss_at_default_tolerances(seed):
    dims = ((2, 9, 3), (1, 20, 30, 1), (3, 8, 9, 7, 2))[seed % 3]
    run = clean(("dop853", "rk45", "lsoda", "gd")[seed % 4], seed, dims, 2.0)
    assert not fs.diagnose(run).broken
    assert fs.diagnose(nudged(run, 13 * seed)).broken


@pytest.mark.parametrize("method", [fs.Scipy("RK45", step_size=0.05), fs.GaussLegendre(2, step_size=0.05)])
def test_fixed_steps_are_judged_by_what_they_show(method):
    """No tolerance excuses or accuses them."""
    run = fs.simulate(random_problem(np.random.default_rng(0), (3, 12, 9, 2), 0.8), method, t1=1.0)
    assert not fs.diagnose(run).broken
    assert fs.diagnose(sabotaged(run, 50, 7, 1e-2)).broken


@pytest.mark.parametrize("method", [fs.Scipy(), fs.GradientDescent(5e-6)], ids=["flow", "descent"])
def test_a_compressed_run(method):
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 100, 200, 1), seed=0))
    run = fs.simulate(problem, method, t1=2e-3)
    assert run.reduction.network is not None
    diagnosis = fs.diagnose(run)
    assert not diagnosis.broken
    assert diagnosis["compression"].holds
    assert fs.diagnose(nudged(run)).broken


@pytest.mark.parametrize("method", [fs.Scipy("DOP853", 1e-7, 1e-12), fs.Scipy("RK45", 1e-9, 1e-9)])
def test_the_compression_error_is_held_to_the_tolerance_itself(method):
    """rtol ||W(t) - W(0)||_F + atol: half of it holds, twice of it does not."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 100, 200, 1), seed=0))
    run = fs.simulate(problem, method, t1=2e-3, save_points=11)
    before, after = run.weights_at(0.0), run.weights_at(2e-3)
    moved = np.sqrt(sum(np.linalg.norm(W - V) ** 2 for W, V in zip(after, before, strict=True)))
    allowed = method.rtol * moved + method.atol
    law = fs.diagnose(run)["compression"]
    assert law.residual == run.error_estimate[-1]
    assert law.expected == pytest.approx(allowed, rel=1e-6)
    for share, holds in ((0.5, True), (2.0, False)):
        error = run.error_estimate * share * allowed / run.error_estimate[-1]
        forged = dataclasses.replace(run, reduction=dataclasses.replace(run.reduction, error=error))
        assert fs.diagnose(forged)["compression"].holds is holds


def test_a_nudged_state_in_the_file_alone(tmp_path, capsys):
    run = clean("dop853")
    states = run.checkpoints.states.copy()
    states[50:, 3] += 1e-6
    broken = dataclasses.replace(run, checkpoints=Checkpoints(run.checkpoints.times, states))
    broken.save(tmp_path / "broken.nc")
    run.save(tmp_path / "run.nc")
    assert cli.main(["diagnose", str(tmp_path / "run.nc"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True
    assert cli.main(["diagnose", str(tmp_path / "broken.nc"), "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert not result["holds"]
    assert {"record", "flow"} <= {law["name"] for law in result["laws"] if law["holds"] is False}
    assert cli.main(["diagnose", str(tmp_path / "broken.nc")]) == 3
    assert "BROKEN" in capsys.readouterr().out


def test_descent_that_raises_the_loss_is_not_monotone():
    problem = random_problem(np.random.default_rng(3), (3, 12, 9, 2), 1.5)
    values = np.linalg.eigvalsh(-problem.jacobian_product(problem.initial_state, np.eye(problem.initial_state.size)))
    run = fs.simulate(problem, fs.GradientDescent(4.0 / values[-1]), t1=20 / values[-1])
    diagnosis = fs.diagnose(run)
    assert diagnosis["monotone loss"].holds is False
    assert diagnosis["recurrence"].holds


def test_descent_that_fails_at_its_first_step_has_laws_that_say_so():
    problem = random_problem(np.random.default_rng(3), (3, 12, 9, 2))
    diagnosis = fs.diagnose(fs.simulate(problem, fs.GradientDescent(1e6), t1=1e8))
    assert not diagnosis.broken
    assert fs.certify(problem, method=fs.GradientDescent(1e6)).best is None
    assert [diagnosis[f"drift law D_{layer}"].reason for layer in (1, 2)] == ["no step was taken"] * 2


def test_a_rate_that_does_not_hold_is_found():
    """A run that is slower than its certificate allows: the losses of another target."""
    run = clean("dop853", 1, (1, 20, 30, 1), 0.5)
    slow = dataclasses.replace(
        run, steps=Steps(run.steps.time, np.full_like(run.steps.excess, run.excess[0]), run.steps.dissipated)
    )
    broken = {law.name for law in fs.diagnose(slow).broken}
    assert "rate theorem-2" in broken
    assert "energy" in broken


def test_a_run_without_its_loss(tmp_path):
    run = fs.simulate(fs.Problem(Huber(), fs.fan_in((2, 5, 4, 1), seed=0)), t1=1.0)
    assert not fs.diagnose(run).broken
    run.save(tmp_path / "run.nc")
    diagnosis = fs.diagnose(fs.load(tmp_path / "run.nc"))
    assert diagnosis["flow"].holds is None
    assert "loss" in diagnosis["flow"].reason
    assert not fs.diagnose(fs.load(tmp_path / "run.nc", loss=Huber())).broken


def test_a_tolerance_above_what_a_law_compares_leaves_it_open():
    """Curvature 2e9: an error of rtol ||W|| could make a loss far above L(0), so that the loss tells nothing."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.sample_compressed("fan_out", (5, 10**9, 1), seed=0))
    loose, tight = (fs.diagnose(fs.simulate(problem, method, t1=2e-9)) for method in (fs.Scipy(), fs.Scipy(rtol=1e-13)))
    assert loose["monotone loss"].holds is None
    assert loose["rate theorem-1-A1"].holds is None
    assert "lower rtol" in loose["rate theorem-1-A1"].reason
    assert tight["rate theorem-1-A1"].holds
    assert tight["rate theorem-1-A1"].residual < tight["rate theorem-1-A1"].expected


@pytest.mark.parametrize("seed", [3, 5])
@pytest.mark.parametrize("method", ["dop853", "rk45", "lsoda", "gauss-legendre-2", "projected-dop853", "gd"])
def test_a_run_that_was_gone_on_with_is_judged_by_one_that_was_too(method, seed, tmp_path):
    """Far beyond its fall, where errors depend on where the steps end; LSODA starts afresh."""
    rng = np.random.default_rng(seed)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((2, 1))), fs.fan_in((2, 33, 21, 1), seed=seed))
    chosen = fs.GradientDescent(1e-2) if method == "gd" else fs.method_named(method)
    first = fs.simulate(problem, chosen, t1=1.5, save_points=21)
    fs.resume(first, t1=8.0, save_points=41).save(tmp_path / "run.nc")
    run = fs.load(tmp_path / "run.nc")
    assert run.restarts == (pytest.approx(1.5),)
    assert fs.diagnose(run).verdict.startswith("every law that was checked holds")
    states = run.checkpoints.states.copy()
    states[-3:] *= 1 + 1e-6
    forged = dataclasses.replace(run, checkpoints=dataclasses.replace(run.checkpoints, states=states))
    assert "recurrence" in fs.diagnose(forged).verdict if method == "gd" else "flow" in fs.diagnose(forged).verdict


def test_ten_clean_runs_and_ten_sabotaged_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sabotage.py", "--small"])
    sabotage.main()
    printed = capsys.readouterr().out
    assert ": 0 false alarms" in printed
    assert ": 10 found" in printed
