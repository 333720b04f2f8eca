"""The estimated distance of a run from the exact flow, against closed forms and tight solves."""

import json

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.cli import main
from flowsim.errors import InputError


def exact(problem, times):
    """States by another code at 1e-13."""
    found = solve_ivp(
        lambda t, w: problem.velocity(w), (0, times[-1]), problem.initial_state, "DOP853", times, rtol=1e-13, atol=1e-15
    )
    return found.y.T


@pytest.mark.parametrize(
    "method", ["rk23", "rk45", "dop853", "radau", "lsoda", "rkc", "gauss-legendre-4", "krylov-bdf", "tsit5"]
)
@pytest.mark.parametrize("rtol", [1e-4, 1e-7])
def test_it_is_the_error(method, rtol):
    rng = np.random.default_rng(3)
    network = fs.LinearNetwork(tuple(0.5 * rng.standard_normal(shape) for shape in ((3, 5), (5, 4), (4, 2))))
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((3, 2))), network)
    chosen = fs.method_named(method, rtol=rtol, atol=rtol / 100)
    run = fs.simulate(problem, chosen, t1=6.0, save_points=7, reduce="never")
    error, true = run.global_error(), exact(problem, run.time)
    apart = np.linalg.norm(run.checkpoints.states - true, axis=1)
    assert error.status == "completed"
    assert error.time.tolist() == run.time.tolist()
    assert error.weights[1:] == pytest.approx(apart[1:], rel=0.05, abs=0.01 * apart.max() + 3e-12)
    own, other = (np.array([problem.excess(W) for W in problem.products(w)]) for w in (run.checkpoints.states, true))
    losses = np.abs(own - other)
    assert error.loss == pytest.approx(losses, rel=0.05, abs=0.01 * losses.max() + 3e-12)


def test_it_is_the_error_of_a_stiff_run_of_krylov_bdf():
    """420 weights: found by krylov-bdf itself."""
    data = np.diag(np.geomspace(1.0, 100.0, 4))
    problem = fs.Problem(fs.LeastSquares(data, np.ones((4, 2))), fs.fan_in((4, 30, 8, 2), seed=0))
    run = fs.simulate(problem, fs.KrylovBDF(1e-5, 1e-7), t1=0.02, save_points=4, reduce="never")
    tight = fs.simulate(problem, fs.Scipy("DOP853", 1e-10, 1e-12), t1=0.02, save_points=4, reduce="never")
    apart = np.linalg.norm(run.checkpoints.states - tight.checkpoints.states, axis=1)
    assert run.global_error().weights[1:] == pytest.approx(apart[1:], rel=0.1)


def test_what_the_compression_costs_counts():
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 60, 80, 1), seed=0))
    run = fs.simulate(problem, t1=0.02, save_points=5, reduce="always")
    error = run.global_error()
    assert (error.weights >= run.error_estimate).all()
    full = exact(problem, run.time)
    apart = [
        np.linalg.norm(np.concatenate([W.ravel() for W in run.weights_at(t)]) - w)
        for t, w in zip(run.time, full, strict=True)
    ]
    assert (error.weights[1:] >= 0.5 * np.array(apart[1:])).all()


def test_a_spoiled_run_shows_it():
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 5, 4, 2), seed=0))
    run = fs.simulate(problem, t1=5.0, save_points=6)
    states = run.checkpoints.states.copy()
    states[3:] += 1e-3
    from dataclasses import replace

    spoiled = replace(run, checkpoints=replace(run.checkpoints, states=states))
    assert spoiled.global_error().weights[3] == pytest.approx(1e-3 * states.shape[1] ** 0.5, rel=1e-3)


def test_it_can_be_limited_and_is_refused_where_it_means_nothing():
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 5, 4, 2), seed=0))
    run = fs.simulate(problem, t1=5.0, save_points=6)
    early = run.global_error(wall_limit=1e-9)
    assert early.status == "wall_limit"
    assert len(early.time) < 6
    assert "wall_limit" in early.words()
    with pytest.raises(InputError, match="wall_limit"):
        run.global_error(wall_limit=-1.0)
    with pytest.raises(InputError, match="recurrence"):
        fs.simulate(problem, fs.GradientDescent(0.01), t1=0.1).global_error()


def test_the_command_says_it(tmp_path, capsys):
    fs.save_weights(tmp_path / "w.npz", fs.fan_in((2, 5, 4, 2), seed=0))
    np.save(tmp_path / "y.npy", np.ones((2, 2)))
    asked = ["simulate", str(tmp_path / "w.npz"), "--target", str(tmp_path / "y.npy"), "--t1", "2", "--global-error"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["global_error"]
    assert told["status"] == "completed"
    assert len(told["weights"]) == 101
    assert main(asked) == 0
    assert "weights off by about" in capsys.readouterr().out
    assert main([*asked, "--wall-limit", "1e-9"]) == 3
    capsys.readouterr()
    assert main([*asked, "--method", "gd", "--step-size", "0.01"]) == 2
    assert "--global-error" in capsys.readouterr().err


def test_a_bad_method_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["simulate", str(tmp_path / "none.npz"), "--t1", "1", "--method", "nothing"]) == 2
    assert "method" in capsys.readouterr().err
