"""simulate: invariants, saving, stopping, failure and interruption, the same for every method."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import Huber, random_problem

import flowsim as fs
from flowsim.comparison import solve_reference
from flowsim.errors import InputError
from flowsim.methods import runge_kutta_steps

METHODS = [
    fs.Scipy("RK45"),
    fs.Scipy("DOP853"),
    fs.Scipy("Radau"),
    fs.Scipy("LSODA"),
    fs.Diffrax("Tsit5"),
    fs.Diffrax("Dopri5"),
    fs.Diffrax("Dopri8"),
    fs.Diffrax("Kvaerno5"),
    fs.Scipy("BDF"),
    fs.RKC(1e-7, 1e-9),
    fs.GaussLegendre(2),
    fs.GaussLegendre(4),
    fs.Projected(fs.Scipy("DOP853")),
    fs.Projected(fs.Diffrax("Bosh3")),
    fs.GradientDescent(1e-3),
    fs.GradientDescent(1e-3, "jax"),
]
ACCURACY = {"gd": 1e-2, "rkc": 2e-5}
"""What the error of a run may be, else 1e-6: RKC's grows like rtol^(2/3)."""
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'backend', '')}")


@pytest.fixture
def problem():
    return fs.Problem(fs.SquaredLoss(np.full((3, 2), 0.7)), fs.fan_in((3, 6, 5, 2), seed=3))


@every_method
def test_invariants_and_energy(problem, method):
    run = fs.simulate(problem, method, t1=1.0)
    accuracy = ACCURACY.get(method.name, 1e-6)
    assert run.status == "completed"
    assert run.exit_code == 0
    assert run.time == pytest.approx(np.linspace(0, 1, 101), abs=1e-12)
    assert (np.diff(run.step_loss) <= 1e-15).all()
    assert run.imbalance_drift.max() < accuracy
    assert np.abs(run.energy_residual).max() < accuracy
    assert run.steps.time[-1] == pytest.approx(1.0)
    assert run.stats["steps"] == len(run.step_time) - 1


@every_method
def test_it_stops_at_a_level_of_the_loss(problem, method):
    run = fs.simulate(problem, method, t1=100.0, stop_loss=0.1)
    assert run.status == "converged"
    assert run.time[-1] < 100.0
    ratio = run.excess[-1] / run.excess[0]
    assert ratio <= 0.1 * (1 + 1e-9)
    assert ratio > (0.099 if method.name == "gd" else 0.1 * (1 - 1e-6))


@every_method
def test_step_limit_keeps_what_there_is(problem, method):
    run = fs.simulate(problem, method, t1=5.0, max_steps=3)
    assert run.status == "step_limit"
    assert run.exit_code == 3
    assert run.stats["steps"] == 3
    assert "max_steps" in run.message
    assert run.time[-1] == run.step_time[-1] < 5.0


@every_method
def test_wall_limit(problem, method):
    run = fs.simulate(problem, method, t1=1e5, wall_limit=1e-9)
    assert run.status == "wall_limit"
    assert 0 < run.time[-1] < 1e5


@every_method
def test_restart_from_the_middle(problem, method):
    """t1 = 1 in one go equals 0.5 and then 0.5, within the tolerance."""
    whole = fs.simulate(problem, method, t1=1.0)
    half = fs.simulate(problem, method, t1=0.5)
    rest = fs.simulate(fs.Problem(problem.loss, half.network_at(0.5)), method, t1=0.5)
    assert rest.product_at(0.5) == pytest.approx(whole.product_at(1.0), abs=1e-7)


@every_method
def test_dense_output(problem, method):
    """Off the saved times the weights are as good as on them."""
    run = fs.simulate(problem, method, t1=1.0, save_points=5)
    tight = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=1.0)
    for t in (0.137, 0.5004, 0.861):
        assert np.abs(run.product_at(t) - tight.product_at(t)).max() < ACCURACY.get(method.name, 1e-6)


def test_gradient_norm_stops(problem):
    run = fs.simulate(problem, t1=1e4, stop_gradient=1e-4)
    assert run.status == "converged"
    assert run.gradient_norm[-1] <= 1e-4


def test_divergence_is_a_status_and_keeps_the_path(problem):
    run = fs.simulate(problem, fs.GradientDescent(5.0), t1=500.0)
    assert run.status == "diverged"
    assert run.exit_code == 3
    assert "step_size" in run.message
    assert np.isfinite(run.loss).all()
    assert np.isfinite(run.checkpoints.states).all()


class Upward:
    """Values of W and of its distance from 1, and a gradient of the wrong sign: W(t) = exp(2 t) from w_1 = w_2 = 1."""

    shape = (1, 1)

    def __init__(self, value):
        self.value = value

    def gradient(self, W):
        return -np.ones((1, 1))


@pytest.mark.parametrize("value", [lambda W: W[0, 0], lambda W: (W[0, 0] - 1) ** 2], ids=["of L(0)", "of f(0)"])
def test_a_loss_ten_thousand_times_as_large_has_diverged(value):
    """As L(0) = 1, or as f(0) = 1 where L(0) = 0."""
    problem = fs.Problem(Upward(value), fs.LinearNetwork(([[1.0]], [[1.0]])))
    greatest = 1e4 if value(np.eye(1)) else 101.0
    for share, status in ((0.9, "completed"), (1.1, "diverged")):
        run = fs.simulate(problem, fs.Scipy("RK45"), t1=float(0.5 * np.log(share * greatest)))
        assert run.status == status
        assert run.product_at(run.time[-1]).item() <= greatest


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        (fs.Diffrax("Bosh3", step_size=0.1), 1 + 10 * 3),
        (fs.Diffrax("Euler", step_size=0.1), 10),
        (fs.GradientDescent(0.1), 10),
        (fs.GradientDescent(0.1, "jax"), 10),
    ],
    ids=lambda x: str(x),
)
def test_work_is_counted_and_compiling_is_told_apart(method, evaluations):
    """Bosh3 has three stages a step, the last of which is the next step's first."""
    problem = fs.Problem(fs.SquaredLoss([[1.0]]), fs.fan_in((1, 7, 1), seed=0))
    first, again = (fs.simulate(problem, method, t1=1.0).stats for _ in range(2))
    assert (first["steps"], first["rejected_steps"], first["rhs_evaluations"]) == (10, 0, evaluations)
    assert (first["compile_seconds"] > 0) == (isinstance(method, fs.Diffrax) or method.backend == "jax")
    assert again["compile_seconds"] == 0


def test_a_convergent_start_stops_at_once(problem):
    solved = fs.Problem(fs.SquaredLoss(problem.network.product), problem.network)
    run = fs.simulate(solved, t1=1.0, stop_loss=1e-3)
    assert run.status == "converged"
    assert run.stats["steps"] == 0


@pytest.mark.parametrize("method", [fs.Scipy(), fs.GradientDescent(1e-3)], ids=["flow", "descent"])
def test_ctrl_c_returns_what_there_is(problem, method):
    def interrupt(t, excess, initial):
        if t > 0.2:
            raise KeyboardInterrupt

    run = fs.simulate(problem, method, t1=50.0, progress=interrupt)
    assert run.status == "interrupted"
    assert run.exit_code == 130
    assert 0.2 < run.time[-1] < 50.0
    assert len(run.steps.time) == run.stats["steps"] + 1


def test_numpy_and_jax_descent_agree(rng):
    problem = random_problem(rng, (3, 7, 6, 5, 2), 0.8)
    runs = [fs.simulate(problem, fs.GradientDescent(1e-3, backend), t1=1.5) for backend in ("numpy", "jax")]
    assert runs[0].time == pytest.approx(runs[1].time, abs=0)
    assert runs[0].step_loss == pytest.approx(runs[1].step_loss, rel=1e-12)
    assert runs[0].checkpoints.states == pytest.approx(runs[1].checkpoints.states, rel=1e-11, abs=1e-13)


def test_descent_reports_the_time_it_reached(problem):
    run = fs.simulate(problem, fs.GradientDescent(0.3), t1=1.0, save_points=[0.1, 0.5, 1.0])
    assert run.time == pytest.approx([0.0, 0.6, 0.9])


@pytest.mark.parametrize("method", [fs.Scipy(), fs.Diffrax("Dopri8"), fs.GradientDescent(1e-2)], ids=lambda m: m.name)
def test_a_users_own_loss(method):
    problem = fs.Problem(Huber(), fs.fan_in((2, 6, 5, 1), seed=0))
    run = fs.simulate(problem, method, t1=30.0)
    assert run.status == "completed"
    assert run.loss[-1] < 1e-6
    with pytest.raises(InputError, match="minimum"):
        fs.simulate(problem, t1=1.0, stop_loss=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"t1": 0.0}, "`t1` must be greater than 0"),
        ({"t1": float("inf")}, "finite"),
        ({"t1": "soon"}, "number"),
        ({"t1": 1.0, "save_points": 1}, "at least 2"),
        ({"t1": 1.0, "save_points": [0.5, 0.4]}, "ascend"),
        ({"t1": 1.0, "save_points": [0.5, 0.5]}, "ascend"),
        ({"t1": 1.0, "save_points": [0.5, 2.0]}, "within"),
        ({"t1": 1.0, "stop_loss": -1.0}, "`stop_loss`"),
        ({"t1": 1.0, "max_steps": 0}, "`max_steps`"),
        ({"t1": 1.0, "max_steps": True}, "`max_steps`"),
        ({"t1": 1.0, "wall_limit": 0}, "`wall_limit`"),
    ],
)
def test_bad_arguments_are_refused(problem, arguments, words):
    with pytest.raises(InputError, match=words):
        fs.simulate(problem, **arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.Scipy("RK54"), "did you mean RK45"),
        (lambda: fs.Diffrax("Sil3"), "one of Euler"),
        (lambda: fs.Diffrax("Euler"), "`step_size` must be given"),
        (lambda: fs.GaussLegendre(5), "`stages` must be at most 4"),
        (lambda: fs.GaussLegendre(0), "`stages`"),
        (lambda: fs.RKC(rtol=2.0), "`rtol`"),
        (lambda: fs.Projected(fs.Scipy("Radau")), "explicit"),
        (lambda: fs.Projected(fs.GaussLegendre(2)), "explicit"),
        (lambda: fs.Scipy("BDF", step_size=0.1), "BDF"),
        (lambda: fs.Scipy(rtol=-1e-8), "`rtol`"),
        (lambda: fs.Scipy(rtol=0.0), "`rtol`"),
        (lambda: fs.Scipy(atol=-1.0), "`atol`"),
        (lambda: fs.Scipy("LSODA", step_size=0.1), "LSODA"),
        (lambda: fs.GradientDescent(0.0), "`step_size`"),
        (lambda: fs.GradientDescent(1e-3, "torch"), "`backend`"),
        (lambda: fs.method_named("gd"), "`step_size` must be given"),
        (lambda: fs.method_named("dop583"), "did you mean dop853"),
        (lambda: fs.method_named("rk45", backend="jax"), "`backend`"),
    ],
)
def test_bad_methods_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_the_default_path_does_not_import_jax_and_x64_stays_as_it_was():
    code = """
import sys, numpy as np, flowsim as fs
p = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 5, 6, 1), seed=0))
fs.simulate(p, t1=0.1); fs.simulate(p, fs.GradientDescent(1e-3), t1=0.1); fs.certify(p)
assert not {"jax", "diffrax", "matplotlib"} & set(sys.modules), "a lazy import is none"
import jax, jax.numpy as jnp
run = fs.simulate(p, fs.Diffrax("Tsit5"), t1=0.1)
assert run.weights_at(0.05)[0].dtype == np.float64
assert jnp.ones(2).dtype == np.float32 and not jax.config.jax_enable_x64
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_saved_weights_are_as_accurate_as_steps_where_stability_limits_these(monkeypatch):
    """DOP853's interpolant is not: with it (never a shorter step) the error is a hundred times as great."""
    problem = fs.Problem(fs.SquaredLoss(np.diag(10.0 / 2.0 ** np.arange(6))), fs.fan_in((6, 12, 6), seed=0, scale=1e-2))
    reference = solve_reference(problem, np.linspace(0.0, 20.0, 8))
    points = np.linspace(0.0, 20.0, 7 * 40 + 1)  # several in a step

    def error():
        run = fs.simulate(problem, fs.Scipy("DOP853", 1e-10, 1e-12), t1=20.0, save_points=points, reduce="never")
        return reference.errors(run.weights_at).max()

    shorter = error()
    monkeypatch.setattr(runge_kutta_steps, "MOST_DEFECT", np.inf)
    assert shorter < 1e-9
    assert error() > 1e-8


@pytest.mark.parametrize("method", [fs.GaussLegendre(s, step_size=0.05) for s in (2, 4)], ids=lambda m: m.name)
def test_saved_times_that_are_ends_of_steps_up_to_round_off(problem, method):
    """0.05 added eleven times falls short of 0.55."""
    fine = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=1.0, save_points=21)
    run = fs.simulate(problem, method, t1=1.0, save_points=21)
    assert np.abs(run.checkpoints.states - fine.checkpoints.states).max() < 1e-2


def test_fixed_steps_are_all_as_long_as_asked_for_but_the_last(problem):
    for method in (fs.Diffrax("Euler", step_size=0.013), fs.RKC(step_size=0.013), fs.GaussLegendre(1, step_size=0.013)):
        steps = np.diff(fs.simulate(problem, method, t1=0.3).step_time)
        assert steps[:-1] == pytest.approx(0.013, rel=1e-12)
        assert steps[-1] == pytest.approx(0.3 - 23 * 0.013, rel=1e-9)


def test_a_progress_bar_by_request(capsys):
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_in((2, 6, 1), seed=0))
    fs.simulate(problem, t1=0.2, progress=True)
    assert "log10(L-f*)=" in capsys.readouterr().err
    fs.simulate(problem, t1=0.2, progress=False)
    assert capsys.readouterr().err == ""
