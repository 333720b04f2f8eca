"""Where a run stops, and what it says when a limit stops it."""

import numpy as np
import pytest

import flowsim as fs

PROBLEM = fs.Problem(fs.SquaredLoss(np.full((3, 2), 0.7)), fs.fan_in((3, 6, 5, 2), seed=3))
RKC = fs.RKC(1e-5, 1e-7)
METHODS = [fs.Scipy(), fs.Scipy("Radau", 1e-6, 1e-8), RKC, fs.GaussLegendre(2, 1e-6), fs.Projected(RKC)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_flow_stops_where_the_gradient_crosses_the_level(method):
    run = fs.simulate(PROBLEM, method, t1=1e3, stop_gradient=0.1)
    assert run.status == "converged"
    assert run.gradient_norm[-1] <= 0.1
    assert run.gradient_norm[-1] == pytest.approx(0.1, rel=1e-9)
    assert run.step_time[-1] == run.time[-1]
    tight = fs.simulate(PROBLEM, fs.Scipy("DOP853", 1e-12, 1e-14), t1=1e3, stop_gradient=0.1)
    assert run.time[-1] == pytest.approx(tight.time[-1], rel=1e-2)


def test_descent_stops_at_the_end_of_the_step():
    method = fs.GradientDescent(0.05)
    run = fs.simulate(PROBLEM, method, t1=100.0, stop_gradient=0.1)
    assert run.status == "converged"
    whole = fs.simulate(PROBLEM, method, t1=run.time[-1], save_points=run.stats["steps"] + 1)
    assert whole.gradient_norm[-1] <= 0.1 < whole.gradient_norm[-2]


@pytest.mark.parametrize("method", [fs.Scipy(), fs.GradientDescent(0.05)], ids=lambda method: method.name)
def test_a_start_below_the_gradient_s_level_takes_no_step(method):
    first = float(fs.simulate(PROBLEM, t1=0.1, save_points=2).gradient_norm[0])
    for level, steps in ((1.01 * first, 0), (0.99 * first, 1)):
        run = fs.simulate(PROBLEM, method, t1=10.0, stop_gradient=level)
        assert run.status == "converged"
        assert (run.time[-1] > 0.0) == (steps > 0)
        assert run.stats["steps"] >= steps


def test_resume_looks_before_it_steps():
    run = fs.simulate(PROBLEM, t1=1e3, stop_gradient=0.1)
    for further in ({"stop_gradient": 0.2}, {"stop_loss": 0.99}):
        again = fs.resume(run, t1=2e3, **further)
        assert again.status == "converged"
        assert again.time[-1] == run.time[-1]
    assert fs.resume(run, t1=2e3, stop_gradient=0.05).gradient_norm[-1] == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_level_comes_before_the_step_limit_in_the_same_step(method):
    for stop in ({"stop_loss": 0.1}, {"stop_gradient": 0.1}):
        run = fs.simulate(PROBLEM, method, t1=1e3, **stop)
        steps = run.stats["steps"]
        again = fs.simulate(PROBLEM, method, t1=1e3, max_steps=steps, **stop)
        assert (again.status, again.time[-1]) == ("converged", run.time[-1])
        assert fs.simulate(PROBLEM, method, t1=1e3, max_steps=steps - 1, **stop).status == "step_limit"


def wide(k, width):
    loss = fs.LeastSquares(np.diag([1.0, k]), np.ones((2, 1)))
    return fs.Problem(loss, fs.fan_in((2, width, 1), seed=0))


@pytest.mark.parametrize(
    ("width", "first"),
    [(5, "krylov-bdf, radau, bdf"), (200, "krylov-bdf, rkc, or radau"), (1100, "krylov-bdf, rkc or gauss")],
)
def test_a_limit_on_a_stiff_run_names_what_is_made_for_it(width, first):
    limits = {"max_steps": 60, "reduce": "never", "t1": 1e3, "save_points": 2}
    run = fs.simulate(wide(30.0, width), fs.Scipy("RK45", 1e-4, 1e-6), **limits)
    assert run.status == "step_limit"
    assert f"made for that: {first}" in run.message
    for method in (fs.RKC(1e-4), fs.KrylovBDF(1e-4), fs.Auto(1e-4), fs.GradientDescent(1e-4)):
        assert "stiff" not in fs.simulate(wide(30.0, width), method, **limits).message


def test_a_limit_on_a_run_that_accuracy_bounds_names_nothing():
    run = fs.simulate(wide(1.0, 5), fs.Scipy("RK45", 1e-9, 1e-11), t1=3.0, max_steps=15)
    assert run.status == "step_limit"
    assert "stiff" not in run.message
