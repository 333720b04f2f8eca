"""DOP853 that hands over to krylov-bdf while a problem is stiff, and back."""

import numpy as np
import pytest
from test_stiff import TIMES, stiff, truth

import flowsim as fs
from flowsim.dynamics import Motion
from flowsim.errors import InputError
from flowsim.methods import auto_steps
from flowsim.methods.auto_steps import AutoSteps
from flowsim.methods.krylov_bdf_steps import KrylovBDFSteps
from flowsim.methods.runge_kutta_steps import RungeKuttaSteps
from flowsim.methods.scipy import Scipy
from flowsim.methods.steps import spectral_radius


def by(problem, rtol=1e-6, t1=20.0, **options):
    return fs.simulate(problem, fs.Auto(rtol, rtol / 100), t1=t1, **options)


def plain():
    rng = np.random.default_rng(0)
    return fs.Problem(fs.SquaredLoss(rng.standard_normal((4, 3))), fs.fan_in((4, 8, 7, 3), seed=1))


def radius(problem, state):
    motion = Motion(problem)
    return motion.radius(0.0, state, lambda product, size: spectral_radius(product, np.ones(size))[0])


@pytest.mark.parametrize("dims", [(2, 9, 2), (2, 160, 200, 2)])  # full stages and thin ones
@pytest.mark.parametrize("name", ["RK45", "DOP853"])
def test_the_stability_number_is_h_times_the_greatest_eigenvalue(name, dims):
    """Where stability bounds the steps, what is stiff leads; and it is never more than the truth."""
    X = np.diag([1.0, 6.0])
    problem = fs.Problem(fs.LeastSquares(X, X @ np.ones((2, 2))), fs.fan_in(dims, seed=0))
    method, seen, full = Scipy(name, 1e-6, 1e-8), [], []
    steps = RungeKuttaSteps(Motion(problem), method, 0.0, problem.initial_state, 9.0)
    assert steps.stability_number() == 0
    for _ in range(40):
        with np.errstate(all="ignore"):  # a trial may be far too long
            segment = steps.advance()
        seen.append(steps.stability_number())
        full.append(float(np.diff(segment.times)[0]) * radius(problem, steps.reached))
    seen, full = np.array(seen), np.array(full)
    assert (seen < 1.1 * full).all()
    assert np.median(seen[-20:] / full[-20:]) > 0.7


def test_where_nothing_is_stiff_it_is_dop853(monkeypatch):
    monkeypatch.setattr(auto_steps, "WORTHWHILE", 0)
    run = by(plain(), 1e-10, 5.0, save_points=9)
    same = fs.simulate(plain(), fs.Scipy(rtol=1e-10, atol=1e-12), t1=5.0, save_points=9)
    assert (run.checkpoints.states == same.checkpoints.states).all()
    assert (run.step_time == same.step_time).all()
    assert len(run.step_time) > auto_steps.EVERY * auto_steps.STREAK
    assert run.detail == same.detail
    assert run.stats["rhs_evaluations"] == same.stats["rhs_evaluations"]


def test_a_stiff_problem_is_handed_over():
    problem = stiff(30.0)
    run = by(problem, t1=4.0, save_points=7)
    explicit = fs.simulate(problem, fs.Scipy(rtol=1e-6, atol=1e-8), t1=4.0, save_points=7)
    assert run.status == "completed"
    assert "Stiff: krylov-bdf took over from t = " in run.detail
    assert run.detail.split(" on.")[0].count("from") == 1
    assert 8 * run.stats["rhs_evaluations"] < explicit.stats["rhs_evaluations"]
    assert run.stats["jacobians"] > 0
    assert run.products == pytest.approx(explicit.products, abs=1e-5)
    assert np.abs(run.energy_residual).max() < 1e-5
    begun = float(run.detail.split("from t = ")[1].split(" on")[0])
    assert 10 * explicit.step_time[20] > begun > 0


@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_what_it_saves_of_a_stiff_problem_is_right(rtol):
    problem = stiff(300.0)
    run, true = by(problem, rtol, 3.0, save_points=TIMES), truth(problem, TIMES)
    assert run.loss[:6] == pytest.approx(true[:6], rel=0.05, abs=rtol)


def test_it_stops_at_a_loss_within_a_step_of_either():
    problem = stiff(30.0)
    whole = by(problem)
    begun = float(whole.detail.split("from t = ")[1].split(" on")[0])
    shares = whole.steps.excess / whole.excess[0]
    for share in (0.5, float(shares[whole.step_time > begun][30])):
        run = by(problem, stop_loss=share)
        assert run.status == "converged"
        assert run.excess[-1] == pytest.approx(share * run.excess[0], rel=1e-9)
        assert ("Stiff" in run.detail) == (run.time[-1] > begun)


def test_little_time_left_is_not_worth_a_change():
    problem = stiff(30.0)
    assert "Stiff" not in by(problem, t1=0.05).detail
    assert "Stiff" in by(problem, t1=2.0).detail


def test_it_hands_back_where_dop853_is_cheaper(monkeypatch):
    """Here by a bound at which hardly any problem is not taken for stiff; each change back makes the next one later."""
    monkeypatch.setattr(auto_steps, "BOUND", 0.1)
    monkeypatch.setattr(auto_steps, "WORTHWHILE", 0)
    monkeypatch.setattr(auto_steps, "TRIAL", 10)
    problem = plain()
    steps = AutoSteps(Motion(problem), fs.Auto(1e-9, 1e-11), 0.0, problem.initial_state, 10.0)
    kinds, patience = [], []
    while steps.t < steps.t1:
        last = steps.advance()
        kinds.append(type(steps.inner))
        patience.append(steps.patience)
    turns = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind is not before]
    assert turns[:3] == [RungeKuttaSteps, KrylovBDFSteps, RungeKuttaSteps]
    assert patience[-1] == 4 ** (1 + turns[1:].count(RungeKuttaSteps))
    a, b = steps.changes[:2]
    assert steps.remark.startswith(f"Stiff: krylov-bdf took over from t = {a:.4g} to {b:.4g}")
    assert steps.counts.rhs_evaluations > 12 * kinds.count(RungeKuttaSteps)
    tight = fs.simulate(problem, fs.Scipy(rtol=1e-12, atol=1e-13), t1=10.0)
    assert last.products[-1] == pytest.approx(tight.products[-1], abs=1e-7)


def test_it_stays_where_krylov_bdf_is_cheaper(monkeypatch):
    monkeypatch.setattr(auto_steps, "TRIAL", 10)
    run = by(stiff(30.0))
    assert run.detail.count("from") == 1
    assert " on." in run.detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], ""),
        ([1.0], "Stiff: krylov-bdf took over from t = 1 on."),
        ([1.0, 2.0], "Stiff: krylov-bdf took over from t = 1 to 2."),
        ([1.0, 2.0, 3.0], "Stiff: krylov-bdf took over from t = 1 to 2, from t = 3 on."),
    ],
)
def test_it_says_when(changes, words):
    steps = AutoSteps(Motion(plain()), fs.Auto(), 0.0, plain().initial_state, 1.0)
    steps.changes = changes
    assert steps.remark == words


def test_dynamics_that_krylov_bdf_is_not_made_for_are_dop853s(monkeypatch):
    monkeypatch.setattr(auto_steps, "BOUND", 0.0)
    monkeypatch.setattr(auto_steps, "WORTHWHILE", 0)
    options = {"t1": 5.0, "dynamics": fs.HeavyBall(1.0), "save_points": 5}
    run, same = by(plain(), **options), fs.simulate(plain(), fs.Scipy(rtol=1e-6, atol=1e-8), **options)
    assert run.status == "completed"
    assert (run.checkpoints.states == same.checkpoints.states).all()
    assert "Stiff" not in run.detail


@pytest.mark.parametrize(("reduce", "decay"), [("always", 0.0), ("never", 0.0), ("never", 0.01)])
def test_wide_and_decaying_networks_are_handed_over(reduce, decay):
    X = np.diag([1.0, 20.0])
    problem = fs.Problem(fs.LeastSquares(X, X @ np.ones((2, 2))), fs.fan_in((2, 40, 2), seed=0), weight_decay=decay)
    run = by(problem, 1e-5, 15.0, reduce=reduce)
    tight = fs.simulate(problem, "radau", t1=15.0)
    assert run.status == "completed"
    assert "Stiff" in run.detail
    assert run.products[-1] == pytest.approx(tight.products[-1], abs=1e-4)


def test_a_run_goes_on_and_is_kept(tmp_path):
    half = by(stiff(30.0), t1=5.0, save_points=5)
    half.save(tmp_path / "run.npz")
    kept = fs.load(tmp_path / "run.npz")
    assert kept.method == fs.Auto(1e-6, 1e-8)
    assert kept.detail == half.detail
    assert (kept.loss == half.loss).all()
    both, whole = fs.resume(kept, t1=20.0), by(stiff(30.0))
    assert both.status == "completed"
    assert both.products[-1] == pytest.approx(whole.products[-1], abs=1e-5)


def test_it_has_no_step_size():
    with pytest.raises(InputError, match="varies its step and order"):
        fs.Auto(step_size=0.1)


def test_where_krylov_bdf_fails_dop853_goes_on_to_the_end(monkeypatch):
    true = by(stiff(30.0), t1=3.0, save_points=TIMES)
    assert true.detail.startswith("Stiff")
    solve, calls = KrylovBDFSteps._solve, []

    def fail_later(self):
        calls.append(1)
        return solve(self) if len(calls) < 20 else None

    monkeypatch.setattr(KrylovBDFSteps, "_solve", fail_later)
    run = by(stiff(30.0), t1=3.0, save_points=TIMES)
    assert run.status == "completed"
    assert run.detail.count(" to ") == 1
    assert " on." not in run.detail
    assert run.loss == pytest.approx(true.loss, abs=1e-5)
