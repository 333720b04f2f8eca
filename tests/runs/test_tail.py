"""Tails: what is proved of the rest of a run."""

import json

import numpy as np
import pytest
from losses_of_ones_own import Ones

import flowsim as fs
from flowsim import cli


@pytest.mark.parametrize("method", ["dop853", "gauss-legendre", fs.GradientDescent(2e-3)], ids=str)
@pytest.mark.parametrize("dims", [(2, 9, 3), (3, 8, 7, 2), (2, 12, 9, 10, 1)])
def test_the_rest_of_a_run_obeys_its_tail(dims, method):
    rng = np.random.default_rng(sum(dims))
    network = fs.fan_in(dims, seed=rng)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), network)
    run = fs.simulate(problem, method, t1=40.0, save_points=81, max_steps=200_000)
    found = [run.certify_tail(t) for t in run.time[::16]]
    assert found[-1].share > 0.9
    assert found[-1].share >= found[0].share
    end = run.checkpoints.states[-1]
    for tail in found:
        if tail.rate:
            assert tail.share <= 1 + 1e-9
            later = run.step_time >= tail.time
            bound = tail.certificate.bound(run.step_time[later] - tail.time)
            floor = 1e-9 * bound[0] + 1e-13 * run.excess[0]
            assert (run.steps.excess[later] <= bound * (1 + 1e-6) + floor).all()
            here = run.checkpoints.states[np.searchsorted(run.checkpoints.times, tail.time)]
            if tail.radius is not None:
                assert np.linalg.norm(end - here) <= tail.radius * (1 + 1e-6) + 1e-6
    assert found[-1].radius < 0.1


def test_a_tail_speaks_where_nothing_was_certified_at_the_start():
    problem = fs.Problem(fs.SquaredLoss(2 * np.ones((3, 3))), fs.xavier((3, 10, 9, 3), seed=0))
    run = fs.simulate(problem, t1=100.0, stop_loss=1e-6)
    assert not run.certificates.best.rate
    assert run.certify_tail().share > 0.8
    assert run.certify_tail().words() in run.summary()


def test_the_command(tmp_path, capsys):
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 40, 30, 1), seed=0))
    run = fs.simulate(problem, t1=1.0, stop_loss=1e-6)
    run.save(tmp_path / "run.nc")
    assert cli.main(["certify", f"{tmp_path}/run.nc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["share"] == pytest.approx(run.certify_tail().share, rel=1e-6)
    assert cli.main(["certify", f"{tmp_path}/run.nc", "--at", "0.001"]) == 0
    assert "from t = 0.001 on proved to converge" in capsys.readouterr().out
    for words in (["--at", "99"], ["--step-size", "1e-3"], ["--max-step"]):
        assert cli.main(["certify", f"{tmp_path}/run.nc", *words]) == 2
    fs.save_weights(tmp_path / "w.npz", problem.network, np.ones((2, 1)))
    capsys.readouterr()
    assert cli.main(["certify", f"{tmp_path}/w.npz", "--step-size", "1e-3", "--max-step", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["greatest_step"] > 1e-3
    assert cli.main(["certify", f"{tmp_path}/w.npz", "--at", "1"]) == 2


def test_an_unknown_loss_has_no_tail(tmp_path):
    run = fs.simulate(fs.Problem(Ones(), fs.fan_in((2, 4, 1), seed=0)), t1=1.0)
    assert run.certify_tail().certificate is None
    run.save(tmp_path / "run.nc")
    with pytest.raises(fs.errors.InputError, match="own loss"):
        fs.load(tmp_path / "run.nc").certify_tail()
