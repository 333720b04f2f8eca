"""Stiff problems and extreme numbers: right inside steps as at their ends, or a status and a sentence."""

from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.errors import InputError
from flowsim.methods import METHODS, gauss_legendre_steps, rkc_steps, stages
from flowsim.methods.steps import spectral_radius
from flowsim.network import gradient_factors
from flowsim.runs import side_by_side
from flowsim.runs.remarks import EXPLAINED, drift, path, remarks, rise, tolerance

TIMES = np.array([0.0, 0.003, 0.1, 0.5, 0.9, 1.7, 3.0])


def stiff(k: float, seed: int = 0, scale: float = 1.0, gain: float = 1.0) -> fs.Problem:
    """Least squares on X = diag(1, k): |lambda|_max grows with k^2, the solution varies in times of order 1."""
    network = fs.fan_out((2, 4, 1), seed=seed)
    weights = tuple(gain * W for W in network.weights)
    return fs.Problem(fs.LeastSquares(np.diag([1.0, k]), [[1.0], [2.0 * k]]), fs.LinearNetwork(weights, scale))


def truth(problem: fs.Problem, times: np.ndarray) -> np.ndarray:
    """The losses by scipy's Radau on a right-hand side of its own."""
    k = float(problem.loss.factor[1, 1] or problem.loss.factor[0, 1])
    W1, W2 = problem.network.weights
    c, split = problem.network.scale, W1.size
    gram, best = np.diag([1.0, k * k]), np.array([[1.0], [2.0]])

    def velocity(t, w):
        A, b = w[:split].reshape(W1.shape), w[split:].reshape(W2.shape)
        E = c * gram @ (c * A @ b - best)
        return -np.concatenate([(E @ b.T).ravel(), (A.T @ E).ravel()])

    start = np.concatenate([W1.ravel(), W2.ravel()])
    found = solve_ivp(velocity, (0, times[-1]), start, "Radau", times, rtol=1e-10, atol=1e-12).y.T
    misses = np.array([c * w[:split].reshape(W1.shape) @ w[split:].reshape(W2.shape) - best for w in found])
    return 0.5 * ((np.diag([1.0, k]) @ misses) ** 2).sum((1, 2))


KVAERNO = fs.Diffrax("Kvaerno5", 1e-4, 1e-6)
IMPLICIT = [
    KVAERNO,
    fs.Scipy("Radau", 1e-4, 1e-6),
    fs.Scipy("BDF", 1e-5, 1e-7),
    fs.Scipy("LSODA", 1e-5, 1e-7),
    fs.GaussLegendre(2, 1e-4, 1e-6),
    fs.GaussLegendre(4, 1e-4, 1e-6),
]


@pytest.mark.parametrize("method", IMPLICIT, ids=lambda method: method.name)
def test_losses_saved_inside_long_steps_are_right(method):
    """To 5 per cent while they are above what 100 tolerances can make of them."""
    problem = stiff(1000.0)
    run, true = fs.simulate(problem, method, t1=3.0, save_points=TIMES), truth(problem, TIMES)
    assert run.status == "completed"
    assert run.stats["steps"] < 250
    assert run.loss[:6] == pytest.approx(true[:6], rel=0.05, abs=1e-4)


@pytest.mark.parametrize(("k", "scale", "gain"), [(300.0, 1.0, 1.0), (100.0, 1e3, 0.05), (30.0, 1.0, 5.0)])
def test_kvaerno_starts_and_ends_on_stiff_problems_of_any_scale(k, scale, gain):
    problem = stiff(k, scale=scale, gain=gain)
    times = TIMES / (scale * gain) ** 2
    run = fs.simulate(problem, KVAERNO, t1=times[-1], save_points=times)
    assert run.status == "completed"
    assert "Do not trust" not in run.detail
    true = truth(problem, times)
    assert run.loss == pytest.approx(true, rel=0.05, abs=1e-5 * true[0])


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_gauss_legendre_ends_where_only_round_off_is_left(stages):
    scalar = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    for problem, t1 in ((stiff(30.0), 10.0), (stiff(300.0), 3.0), (scalar, 1000.0)):
        run = fs.simulate(problem, fs.GaussLegendre(stages, 1e-5, 1e-7), t1=t1)
        assert run.status == "completed"
        assert run.imbalance_drift.max() < 1e-12


def test_gauss_legendre_falls_back_to_shorter_steps_and_to_its_own_polynomial(monkeypatch):
    problem = stiff(3.0)
    whole = fs.simulate(problem, fs.GaussLegendre(4, 1e-6, 1e-8), t1=1.0, save_points=7)
    kept = gauss_legendre_steps._Dense._solve

    def long_fail(self, t, y, h, guess):
        solved = kept(self, t, y, h, guess)
        return gauss_legendre_steps.Solved(solved.Z, solved.F, bool(h.max() < 0.02), 1.0)

    def all_fail(self, t, y, h, guess):
        return gauss_legendre_steps.Solved(guess, guess, False, 1.0)

    for solve, most in ((long_fail, 1e-6), (all_fail, 1e-3)):
        monkeypatch.setattr(gauss_legendre_steps._Dense, "_solve", solve)
        again = fs.simulate(problem, fs.GaussLegendre(4, 1e-6, 1e-8), t1=1.0, save_points=7)
        assert again.status == "completed"
        assert np.abs(again.checkpoints.states - whole.checkpoints.states).max() < most


def test_rkc_has_no_spikes_between_its_steps():
    """A stiff component of 1e-5 in the weights would add 0.4 to the gradient's norm."""
    problem = stiff(200.0)
    run = fs.simulate(problem, fs.RKC(1e-3, 1e-5), t1=2.0, save_points=200)
    tight = fs.simulate(problem, fs.Scipy("Radau", 1e-9, 1e-11), t1=2.0, save_points=200)
    late = run.time > 0.1
    assert run.gradient_norm[late] == pytest.approx(tight.gradient_norm[late], rel=0.05, abs=0.06)
    assert np.abs(run.energy_residual).max() < 5e-3


def test_rkc_energy_is_of_order_two(monkeypatch):
    monkeypatch.setattr(rkc_steps, "stages_for", lambda z: 4)
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=3))
    worst = [np.abs(fs.simulate(problem, fs.RKC(step_size=h), t1=1.0).energy_residual).max() for h in (0.02, 0.01)]
    assert worst[0] / worst[1] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_rkc_stands_at_zero_weights(depth):
    dims = (2, *[3] * (depth - 1), 1)
    weights = tuple(np.zeros(shape) for shape in pairwise(dims))
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.LinearNetwork(weights)), fs.RKC(1e-4), t1=1.0)
    assert run.status == "completed"
    assert "stationary" in run.detail
    assert run.weights_change == 0


def test_spectral_radius(rng):
    for size in (2, 3, 4, 30):
        A = rng.standard_normal((size, size))
        A += A.T
        true = np.abs(np.linalg.eigvalsh(A)).max()
        found, _ = spectral_radius(lambda V, A=A: V @ A, np.ones(size))
        assert 0.9 * true < found < true * (1 + 1e-9)
    assert spectral_radius(lambda V: 0 * V, np.ones(7))[0] == 0
    eigenvector = np.diag([3.0, 1.0, 1.0, 1.0, 0.0])
    assert spectral_radius(lambda V: V @ eigenvector, np.eye(5)[4])[0] == pytest.approx(3)


UNCOMPILED = [n for n in METHODS if not n.startswith("projected-") and "euler" not in n and n != "gd"]
UNCOMPILED = [n for n in UNCOMPILED if not METHODS[n].kind.inertial]
UNCOMPILED = [n for n in UNCOMPILED if not n.startswith(("kvaerno", "tsit", "dopri", "bosh", "heun", "mid", "ralston"))]
SMALL = fs.fan_in((2, 4, 1), seed=0)


@pytest.mark.parametrize("name", [*UNCOMPILED, "projected-rk45"])
@pytest.mark.parametrize("t1", [5e-324, 1e-200])
def test_tiny_spans_end(name, t1):
    run = fs.simulate(fs.Problem(fs.SquaredLoss([[1.0], [2.0]]), SMALL), name, t1=t1, save_points=3)
    assert run.status in ("completed", "diverged")
    assert run.status == "completed" or t1 == 5e-324
    assert run.excess[-1] == pytest.approx(run.excess[0], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "t1"), [("rk45", 1e300), ("radau", 1e30), ("bdf", 1e300), ("lsoda", 1e30), ("gauss-legendre-2", 1e30)]
)
def test_huge_spans_end(name, t1):
    run = fs.simulate(fs.Problem(fs.SquaredLoss([[1.0], [2.0]]), SMALL), fs.method_named(name, rtol=1e-4), t1=t1)
    assert run.status in ("completed", "diverged", "step_limit")
    assert run.status == "completed" or run.detail
    assert run.excess[-1] < 1e-6 * run.excess[0]


@pytest.mark.parametrize("name", [*UNCOMPILED, "tsit5", "projected-rk45", "projected-rkc"])
@pytest.mark.parametrize("target", [2e150])
def test_overflow_is_a_status(name, target):
    problem = fs.Problem(fs.SquaredLoss(np.full((2, 1), target)), SMALL)
    run = fs.simulate(problem, name, t1=1e-140, max_steps=50)
    assert run.status in ("diverged", "step_limit")
    assert run.detail or run.status == "step_limit"
    assert np.isfinite(run.excess).all()


def test_a_trial_step_of_diffrax_that_overflows_is_rejected():
    """The exponential loss of weights on the wrong side: a first step may go far beyond what exp holds."""
    loss = fs.ExponentialLoss([[60.0, 5.0], [-30.0, 1.0]], [1, 1])
    problem = fs.Problem(loss, fs.LinearNetwork((np.array([[-2.0], [0.5]]), np.array([[0.4]]))))
    runs = [fs.simulate(problem, method, t1=1e-3) for method in (fs.Diffrax("Tsit5"), fs.Scipy("DOP853"))]
    assert [run.status for run in runs] == ["completed"] * 2
    assert runs[0].excess[-1] == pytest.approx(runs[1].excess[-1], rel=1e-5)


def test_a_start_that_is_not_finite_is_refused():
    problem = fs.Problem(fs.SquaredLoss(np.full((2, 1), 1e200)), SMALL)
    with pytest.raises(InputError, match="finite loss and gradient"):
        fs.simulate(problem, t1=1.0)


@pytest.mark.parametrize(
    "error", [np.linalg.LinAlgError("SVD"), ValueError("infs"), FloatingPointError("x"), RuntimeError("ARPACK")]
)
def test_what_a_library_raises_ends_the_run_with_its_partial_result(error, monkeypatch):
    calls = count()

    def breaking(*arguments):
        if next(calls) > 40:
            raise error
        return gradient_factors(*arguments)

    monkeypatch.setattr(stages, "gradient_factors", breaking)
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), SMALL), "rk45", t1=50.0)
    assert run.status == "diverged"
    assert str(error) in run.detail
    assert run.exit_code == 3
    assert run.excess[-1] < run.excess[0]


def test_one_failing_member_leaves_the_others_alone():
    def draw(seed):
        bad = seed.spawn_key == (1,)
        return fs.Problem(fs.SquaredLoss(np.full((2, 1), 1e200 if bad else 1.0)), fs.fan_in((2, 4, 1), seed=seed))

    runs = fs.ensemble(draw, 3, t1=0.5, method="radau", save_points=3)
    assert runs.scalars["status"].tolist() == ["completed", "failed", "completed"]
    assert "finite" in runs.scalars["reason"][1]


def test_a_batch_that_breaks_is_simulated_one_by_one(monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    def draw(seed):
        return fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_in((2, 4, 1), seed=seed))

    monkeypatch.setattr(side_by_side, "descent", broken)
    runs = fs.ensemble(draw, 2, t1=0.5, method=fs.GradientDescent(0.01, "jax"), save_points=3)
    assert (runs.scalars["status"] == "completed").all()


def test_lost_invariants_are_said():
    """A run whose weights were led astray, as a solver that fails would: the imbalance gives it away."""
    run = fs.simulate(stiff(3.0), fs.Scipy("RK45", 1e-6, 1e-8), t1=1.0, save_points=5)
    assert remarks(run) == ""
    size = np.linalg.norm(run.checkpoints.states, axis=1).max()
    least = 8**0.5 * size * EXPLAINED * tolerance(run)
    for factor, said in ((0.9, False), (1.1, True)):
        assert ("wrong by" in drift(replace(run, imbalance_change=np.full((5, 1), factor * least)))) is said
    reach = (run.excess[0] - run.excess[-1]) ** 0.5
    for factor, said in ((1.5, False), (3.0, True)):
        states = run.checkpoints.states.copy()
        states[-1] = states[0]
        states[-1, 0] += factor * reach
        checkpoints = replace(run.checkpoints, states=states)
        assert ("can have moved" in path(replace(run, checkpoints=checkpoints))) is said


def test_a_loss_that_rises_in_the_middle_is_said():
    run = fs.simulate(stiff(3.0), fs.Scipy("RK45", 1e-6, 1e-8), t1=1.0, save_points=5)
    excess = run.steps.excess.copy()
    assert rise(run) == ""
    excess[5] = excess[4] + 2e-3 * excess[0]
    assert "against the flow" in rise(replace(run, steps=replace(run.steps, excess=excess)))
