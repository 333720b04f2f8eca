"""diagnose costs a few times the run whatever the problem's stiffness, and can be stopped."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

import flowsim as fs
from flowsim import cli
from flowsim.problem import Problem
from flowsim.runs.recorder import Recorder
from flowsim.runs.tight import Tight


def stiff(k, dims=(4, 6, 5, 2)):
    """Data of condition number k^2 in X^T X."""
    loss = fs.LeastSquares(np.diag(np.geomspace(1.0, k, dims[0])), np.ones((dims[0], dims[-1])))
    return fs.Problem(loss, fs.fan_in(dims, seed=0))


@pytest.fixture
def work(monkeypatch):
    """Counts right-hand sides; a product with the Jacobian is two."""
    done = [0]
    velocity, product = Problem.velocity, Problem.jacobian_product

    def counted_velocity(self, state):
        done[0] += state[..., 0].size
        return velocity(self, state)

    def counted_product(self, state, directions):
        done[0] += 2 * directions[..., 0].size
        return product(self, state, directions)

    monkeypatch.setattr(Problem, "velocity", counted_velocity)
    monkeypatch.setattr(Problem, "jacobian_product", counted_product)
    return done


@pytest.mark.parametrize(
    ("method", "k"),
    [
        (fs.Scipy(), 1),
        (fs.RKC(1e-4, 1e-6), 1),
        (fs.RKC(1e-4, 1e-6), 30),
        (fs.RKC(1e-4, 1e-6), 200),
        (fs.Projected(fs.RKC(1e-4, 1e-6)), 200),
        (fs.Scipy("Radau"), 200),
        (fs.Scipy("BDF"), 1000),
        (fs.GaussLegendre(4), 30),
    ],
    ids=lambda value: str(value),
)
def test_a_diagnosis_takes_a_few_times_the_right_hand_sides_of_the_run(method, k, work):
    run = fs.simulate(stiff(k), method, t1=1.0, save_points=51)
    of_run, work[0] = work[0], 0
    assert not fs.diagnose(run).broken
    assert work[0] <= 8 * of_run + 40 * len(run.time)


def test_many_weights_are_solved_for_again_without_a_dense_jacobian(work):
    """420 weights: RKC for RKC, Gauss-Legendre and krylov-bdf for themselves, Radau for what factored Jacobians."""
    problem = stiff(100, (4, 30, 8, 2))
    assert problem.initial_state.size > 300
    run = fs.simulate(problem, fs.RKC(1e-3, 1e-5), t1=0.2, save_points=11)
    of_run, work[0] = work[0], 0
    assert not fs.diagnose(run).broken
    assert work[0] <= 8 * of_run + 40 * len(run.time)
    methods = [run.method, fs.GaussLegendre(3), fs.KrylovBDF(), fs.Auto(), fs.Scipy("Radau")]
    for method, name in zip(methods, ["rkc", "gauss-legendre-4", "krylov-bdf", "krylov-bdf", "Radau"], strict=True):
        other = dataclasses.replace(run, method=method, stats={"steps": 9, "rhs_evaluations": 90})
        assert Tight(other).method.name == name


@pytest.mark.parametrize("method", [fs.RKC(1e-6, 1e-8), fs.Scipy("Radau"), fs.Scipy("BDF"), fs.KrylovBDF(1e-6, 1e-8)])
def test_a_nudge_of_a_stiff_run_is_found(method):
    run = fs.simulate(stiff(100), method, t1=1.0, save_points=21)
    states = run.checkpoints.states.copy()
    states[10:] *= 1 + 1e-5
    forged = dataclasses.replace(run, checkpoints=dataclasses.replace(run.checkpoints, states=states))
    law = fs.diagnose(forged)["flow"]
    assert law.holds is False
    assert law.time == pytest.approx(run.time[10])


PROMISES = [fs.GaussLegendre(2), fs.Projected(fs.Scipy("RK45")), fs.Scipy(), fs.GradientDescent(1e-5)]


@pytest.mark.parametrize("method", PROMISES, ids=lambda method: method.name)
def test_compression_is_judged_by_what_it_promised(method):
    """Of a method that keeps the invariants 1e-13 of the weights' change, whatever its rtol."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 60, 80, 1), seed=0))
    run = fs.simulate(problem, method, t1=5e-3, save_points=11, reduce="always")
    assert fs.diagnose(run)["compression"].holds
    rtol, atol = method.compression_tolerances
    promised = rtol * run.weights_change + atol
    error = run.error_estimate.copy()
    error[-1] = 1.5 * promised
    forged = dataclasses.replace(run, reduction=dataclasses.replace(run.reduction, error=error))
    law = fs.diagnose(forged)["compression"]
    assert law.holds is False
    assert law.expected == pytest.approx(promised)


def test_what_was_judged_is_kept_when_the_time_is_up(tmp_path, capsys):
    run = fs.simulate(stiff(1), t1=1.0)
    found = fs.diagnose(run, wall_limit=1e-9)
    assert (found.status, found.exit_code) == ("wall_limit", 3)
    assert found["record"].holds
    assert found["flow"].holds is None
    assert found["flow"].reason == "the wall limit was reached"
    assert "not checked: the wall limit was reached" in found.verdict
    run.save(tmp_path / "run.nc")
    assert cli.main(["diagnose", str(tmp_path / "run.nc"), "--wall-limit", "1e-9", "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["holds"]) == ("wall_limit", None)
    assert cli.main(["diagnose", str(tmp_path / "run.nc"), "--wall-limit", "0"]) == 2


@pytest.mark.parametrize("when", ["repeat", "flow"])
def test_what_was_judged_is_kept_after_ctrl_c(when, monkeypatch, tmp_path, capsys):
    run = fs.simulate(stiff(1), t1=1.0)
    run.save(tmp_path / "run.nc")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((Recorder, "_take") if when == "repeat" else (Tight, "end")), interrupt)
    found = fs.diagnose(run)
    assert (found.status, found.exit_code) == ("interrupted", 130)
    assert found["record"].holds
    assert found["flow"].reason == "interrupted"
    assert found["imbalance D_1"].holds is (None if when == "repeat" else True)
    assert cli.main(["diagnose", str(tmp_path / "run.nc")]) == 130
    assert "not checked: interrupted" in capsys.readouterr().out


def test_a_broken_law_is_told_of_even_when_the_time_is_up():
    run = fs.simulate(stiff(1), t1=1.0)
    forged = dataclasses.replace(run, excess=run.excess * np.linspace(1.0, 0.5, len(run.excess)))
    found = fs.diagnose(forged, wall_limit=1e-9)
    assert found.verdict.startswith("broken: record")
    assert found.to_json()["holds"] is False


@pytest.mark.parametrize("method", [fs.Scipy(), fs.GradientDescent(0.01)])
def test_progress_counts_the_intervals(method):
    run = fs.simulate(stiff(1), method, t1=1.0, save_points=11)
    told = []
    fs.diagnose(run, progress=lambda done, todo: told.append((done, todo)))
    assert told[-1] == (20, 20)
    assert all(before[0] <= after[0] for before, after in pairwise(told))
