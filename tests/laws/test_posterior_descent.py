"""The a-posteriori bound of gradient descent holds step by step, up to the stability limit and beyond it."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError
from flowsim.laws.observed import descent
from flowsim.laws.observed.descent import SHARE, Steps
from flowsim.losses import constants_of
from flowsim.runs.tight import Deadline

SLACK = 1 + 1e-9


def problem_of(kind, seed=0):
    rng = np.random.default_rng(seed)
    network = fs.fan_in((3, 12, 10, 2), seed=seed)
    near = network.product + 0.5 * rng.standard_normal((3, 2))
    if kind == "masked":
        return fs.Problem(fs.MaskedSquaredLoss(near, rng.uniform(0.5, 1.5, (3, 2))), network)
    if kind == "least squares":
        X = rng.standard_normal((6, 3))
        return fs.Problem(fs.LeastSquares(X, X @ near), network)
    return fs.Problem(fs.SquaredLoss(near), network)


def edge(problem):
    """2 / |lambda|_max of the Hessian, about."""
    top = np.linalg.eigvalsh(problem.network.dense_T())[-1]
    return 2 / float(top * constants_of(problem.loss).K)


@pytest.mark.parametrize("kind", ["squared", "masked", "least squares"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.2])
@pytest.mark.parametrize("reduce", ["never", "always"])
def test_the_loss_stays_below(kind, share, reduce):
    for seed in range(2):
        problem = problem_of(kind, seed)
        eta = share * edge(problem)
        run = fs.simulate(problem, fs.GradientDescent(eta), t1=200 * eta, save_points=201, reduce=reduce)
        if run.exit_code:
            continue
        found = fs.a_posteriori(run)
        assert found.status == "completed"
        assert (run.excess <= found.bound * SLACK + 1e-13 * run.excess[0]).all()
        least = min(run.core_at(t).lambda_min_T for t in run.checkpoints.times)
        assert found.least <= least * SLACK
        if share < 0.5:
            assert found.least >= 0.99 * least


def test_of_small_steps_it_is_the_flow_s():
    problem = problem_of("squared")
    t1 = 2.0
    flow = fs.a_posteriori(fs.simulate(problem, t1=t1, save_points=5))
    descent = fs.a_posteriori(fs.simulate(problem, fs.GradientDescent(1e-4), t1=t1, save_points=5))
    assert descent.integral == pytest.approx(flow.integral, rel=5e-3)
    assert descent.law == "exponential"


def test_one_weight_a_layer_loses_next_to_nothing():
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    run = fs.simulate(problem, fs.GradientDescent(1e-4), t1=1.0, save_points=5)
    found = fs.a_posteriori(run)
    assert (found.bound >= run.excess / SLACK).all()
    fallen, proved = (np.log(run.excess[0] / values) for values in (run.excess, found.bound))
    assert (proved >= (1 - 2 * SHARE - 1e-3) * fallen).all()


def test_a_step_that_raises_the_loss_raises_the_bound():
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    run = fs.simulate(problem, fs.GradientDescent(1.9), t1=1.9 * 3, save_points=4)
    found = fs.a_posteriori(run)
    assert run.excess.max() > run.excess[0]
    assert (found.bound >= run.excess / SLACK).all()


def test_places_are_few_and_cover_the_steps(monkeypatch):
    """lambda_min(T) is computed where it may have changed, not at every step."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 60, 80, 1), seed=0))
    run = fs.simulate(problem, fs.GradientDescent(1e-5), t1=0.02)
    steps = Steps(run, constants_of(problem.loss), Deadline(None))
    made = []
    monkeypatch.setattr(descent, "_Place", lambda *given, make=descent._Place: made.append(make(*given)) or made[-1])
    values = [least for least, _, _ in steps]
    assert len(values) == len(run.step_time)
    assert 1 < len(made) - 1 < len(values) / 4
    for place in (0, 700, 1500):
        true = run.core_at(run.step_time[place]).lambda_min_T
        assert 0.99 * true <= values[place] <= true * SLACK


def test_what_is_refused_and_what_ends_it():
    problem = problem_of("squared")
    run = fs.simulate(problem, fs.GradientDescent(1e-3), t1=1.0)
    early = fs.a_posteriori(run, wall_limit=1e-9)
    assert early.status == "wall_limit"
    assert early.least == 0
    assert early.bound.tolist() == [np.inf] * len(run.time)
    X, labels = np.eye(3), np.ones((3, 1))
    network = fs.fan_in((3, 5, 1), seed=0)
    descent = fs.simulate(fs.Problem(fs.ExponentialLoss(X, labels), network), fs.GradientDescent(1e-3), t1=0.1)
    with pytest.raises(InputError, match="smoothness"):
        fs.a_posteriori(descent)


def test_what_the_compression_may_be_off_by_is_taken_off(monkeypatch):
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 60, 80, 1), seed=0))
    run = fs.simulate(problem, fs.GradientDescent(1e-5), t1=0.005, save_points=6, reduce="always")
    from dataclasses import replace

    off = replace(run, reduction=replace(run.reduction, error=np.linspace(0, 1e-3, 6)))
    exact, unsure = fs.a_posteriori(run), fs.a_posteriori(off)
    assert unsure.integral == pytest.approx(exact.integral, rel=1e-12)
    assert (unsure.error[1:] > 1e3 * exact.error[1:]).all()
    assert (unsure.bound[1:] > exact.bound[1:]).all()


def test_a_run_that_leaves_float64_is_followed_to_its_end():
    problem = problem_of("squared")
    run = fs.simulate(problem, fs.GradientDescent(50.0), t1=500.0, save_points=11)
    assert run.status == "diverged"
    if run.time[-1] > 0:
        assert (fs.a_posteriori(run).bound >= run.excess / SLACK).all()
