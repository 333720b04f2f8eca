"""Explicit Runge-Kutta steps: scipy's own steps as the oracle; thin stages against full ones."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.dynamics import Motion
from flowsim.methods import runge_kutta_steps
from flowsim.methods.runge_kutta_steps import MIDDLE, RungeKuttaSteps, tableau
from flowsim.methods.stages import FullStages, ThinStages, is_thin
from flowsim.methods.steps import Counts, IntegrationFailure
from flowsim.network import imbalance, unflatten
from flowsim.network.moved import Moved, probed_drift

SHAPES = [(5, 40, 30, 2), (2, 30, 40, 5), (1, 20, 20, 20, 1), (3, 50, 3), (4, 5, 20, 6)]


def on_data(dims, seed=0):
    """Least squares on ill-conditioned data."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, dims[0])) * np.linspace(1, 0.1, dims[0])
    return fs.Problem(fs.LeastSquares(X / 8, rng.standard_normal((60, dims[-1])) / 8), fs.fan_in(dims, seed=seed))


@pytest.mark.parametrize("name", ["RK23", "RK45", "DOP853"])
@pytest.mark.parametrize("dims", [(3, 20, 20, 2), (3, 200, 200, 2)])
def test_the_steps_are_those_of_scipy(dims, name):
    problem, rtol = on_data(dims), 1e-4 if name == "RK23" else 1e-8
    settings = {"method": name, "rtol": rtol, "atol": rtol / 100}
    theirs = solve_ivp(lambda t, y: problem.velocity(y), (0, 1), problem.initial_state, **settings)
    run = fs.simulate(problem, fs.Scipy(name, rtol, rtol / 100), t1=1.0, save_points=theirs.t, reduce="never")
    assert run.step_time == pytest.approx(theirs.t, rel=1e-6)
    assert run.products == pytest.approx(problem.products(theirs.y.T), abs=1e-9)


@pytest.mark.parametrize("dims", SHAPES)
def test_thin_stages_are_full_ones(dims):
    """Velocities, combinations, powers and layers."""
    motion, rng = Motion(on_data(dims)), np.random.default_rng(1)
    y = motion.initial_state
    full, thin = FullStages(motion, 5, y.size, Counts()), ThinStages(motion, 5, Counts())
    products = [stages.begin(0.0, y) for stages in (full, thin)]
    for i in range(1, 5):
        weights = 0.1 * rng.standard_normal(i)
        products += [stages.add(i, 0.0, weights) for stages in (full, thin)]
    for a, b in zip(products[::2], products[1::2], strict=True):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-13)
    weights = rng.standard_normal((3, 5)) * [1, 1, 0, 1, 1]
    size = np.abs(full.K).max()
    assert thin.combined(weights) == pytest.approx(full.combined(weights), abs=1e-13 * size)
    assert thin.powers(np.zeros(5)) == pytest.approx(full.powers(np.zeros(5)), rel=1e-12)
    states = y + full.combined(weights)
    for moved, layers in zip(thin.layers(weights), unflatten(states, dims), strict=True):
        identity = np.eye(layers.shape[-1])
        assert moved @ identity == pytest.approx(layers, abs=1e-12)
    assert thin.layers(np.zeros((2, 5)))[1] @ np.eye(dims[2]) == pytest.approx(np.stack(2 * [unflatten(y, dims)[1]]))
    end = y + 0.1 * full.K[2]
    for stages in (full, thin):
        stages.shift(2, end)
        stages.add(1, 0.0, np.array([0.3]))
    assert thin.combined(np.eye(2)) == pytest.approx(full.combined(np.eye(2)), abs=1e-12 * size)


@pytest.mark.parametrize("name", ["RK23", "RK45", "DOP853"])
@pytest.mark.parametrize("loss", ["squared", "data", "logistic"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_run_of_thin_stages_is_one_of_full_ones(name, loss, turned, monkeypatch):
    """Curves, energy, drift and weights, of a network that is thin."""
    dims = (2, 150, 160, 1)[:: -1 if turned else 1]
    rng = np.random.default_rng(0)
    if loss == "logistic":
        dims = (2, 150, 160, 1)
        losses = fs.LogisticLoss(rng.standard_normal((9, 2)), rng.choice([-1, 1], 9))
    elif loss == "data":
        losses = fs.LeastSquares(rng.standard_normal((9, dims[0])), rng.standard_normal((9, dims[-1])))
    else:
        losses = fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1])))
    problem = fs.Problem(losses, fs.fan_in(dims, seed=1, scale=0.9))
    assert is_thin(dims, tableau(name).count)
    method = fs.Scipy(name, 1e-5, 1e-7)
    thin = fs.simulate(problem, method, t1=0.5, save_points=9, reduce="never")
    make = lambda motion, count, size, counts: FullStages(motion, count, size, counts)  # noqa: E731
    monkeypatch.setattr(runge_kutta_steps, "stages_for", make)
    full = fs.simulate(problem, method, t1=0.5, save_points=9, reduce="never")
    assert thin.step_time == pytest.approx(full.step_time, rel=1e-7)
    assert thin.excess == pytest.approx(full.excess, rel=1e-8)
    assert thin.gradient_norm == pytest.approx(full.gradient_norm, abs=1e-8 * full.gradient_norm[0])
    assert thin.imbalance_change == pytest.approx(full.imbalance_change, rel=1e-6, abs=1e-13)
    assert thin.steps.dissipated == pytest.approx(full.steps.dissipated, rel=1e-9)
    for ours, theirs in zip(thin.weights_at(0.5), full.weights_at(0.5), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-11)


def test_drift_of_layers_that_are_not_formed_is_estimated_as_of_formed_ones(monkeypatch):
    """And lies beside the exact one by no more than its stated error allows."""
    problem = on_data((20, 300, 300, 4))
    method = fs.Scipy("RK45", 1e-5, 1e-7)
    thin = fs.simulate(problem, method, t1=0.5, save_points=9, reduce="never")
    assert thin.drift_is_estimated
    make = lambda motion, count, size, counts: FullStages(motion, count, size, counts)  # noqa: E731
    monkeypatch.setattr(runge_kutta_steps, "stages_for", make)
    full = fs.simulate(problem, method, t1=0.5, save_points=9, reduce="never")
    assert thin.imbalance_change == pytest.approx(full.imbalance_change, rel=1e-6, abs=1e-13)
    assert thin.gradient_norm == pytest.approx(full.gradient_norm, rel=1e-9)
    assert thin.excess == pytest.approx(full.excess, rel=1e-9)
    start, end = problem.network.weights, full.weights_at(0.5)
    for layer, estimate in enumerate(thin.imbalance_change[-1], start=1):
        exact = np.linalg.norm(imbalance(end, layer) - imbalance(start, layer))
        assert estimate == pytest.approx(exact, rel=5 * 32**-0.5)


def test_a_moved_matrix_is_the_formed_one():
    rng = np.random.default_rng(0)
    base, left, right, c = (rng.standard_normal(shape) for shape in ((5, 7), (4, 5), (4, 7), (3, 4)))
    moved, formed = Moved(base, left, right, c), base + (c[:, None, :] * left.T) @ right
    assert moved.shape == formed.shape
    for X in (rng.standard_normal((2, 5)), rng.standard_normal((3, 2, 5))):
        assert X @ moved == pytest.approx(X @ formed, abs=1e-13)
        assert moved.mT @ X.mT == pytest.approx(formed.mT @ X.mT, abs=1e-13)
    Z = rng.standard_normal((7, 2))
    assert moved.square_change(Z) == pytest.approx((formed.mT @ formed - base.T @ base) @ Z, abs=1e-12)
    start = rng.standard_normal((5, 7))
    drift = probed_drift([start, start.T], [moved, formed.mT + 1.0], [np.eye(7)])
    exact = formed.mT @ formed - (formed.mT + 1.0) @ (formed + 1.0)
    assert drift[:, 0] ** 2 * 7 == pytest.approx((exact**2).sum((1, 2)), rel=1e-12)


@pytest.mark.parametrize("dims", [(10, 12, 10), (2, 120, 200, 2)])
def test_values_within_steps_that_stability_limits(dims):
    """Saved between the ends of steps as accurately as at them, at the cost of a few stages more."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, dims[0])) * np.geomspace(1, 0.03, dims[0]) / 4
    problem = fs.Problem(fs.LeastSquares(X, rng.standard_normal((40, dims[-1]))), fs.fan_in(dims, seed=0, scale=1.5))
    times = np.linspace(0, 1.5, 300)
    run = fs.simulate(problem, fs.Scipy(), t1=1.5, save_points=times, reduce="never")
    bare = fs.simulate(problem, fs.Scipy(), t1=1.5, save_points=2, reduce="never")
    tight = fs.simulate(problem, fs.Scipy(rtol=1e-13, atol=1e-14), t1=1.5, save_points=times, reduce="never")
    norm = np.linalg.norm(tight.products - tight.products[0], axis=(1, 2))[1:]
    assert (np.linalg.norm(run.products - tight.products, axis=(1, 2))[1:] / norm).max() < 1e-6
    assert run.stats["rhs_evaluations"] < 1.35 * bare.stats["rhs_evaluations"]


@pytest.mark.parametrize("name", ["RK23", "RK45", "DOP853"])
def test_the_damping_polynomial_is_that_of_the_flow(name):
    """Its error in the middle and a quarter in falls at the order that MIDDLE tells, and its multiple of a stiff
    component is nowhere far from that of the flow, where the own interpolant's may be."""
    table, (order, reach) = tableau(name), MIDDLE[name]
    own, damping = table.interpolants
    theta = np.array([0.25, 0.5])

    def states(interpolant, F, y, h):
        K = [F(y)]
        for i in range(1, table.stages):
            K.append(F(y + h * table.a[i, :i] @ K[:i]))
        K.append(F(y + h * table.b @ K))
        for a, _ in interpolant.extra:
            K.append(F(y + h * a @ K[: len(a)]))
        w = interpolant.weights(theta)
        return y + h * w @ K[: w.shape[1]]

    def error(h):  # y' = 1 + y^2
        return np.abs(states(damping, lambda y: 1 + y**2, 0.3, h) - np.tan(np.arctan(0.3) + theta * h)).max()

    assert np.log2(error(0.3) / error(0.15)) > order + 0.5

    def misses(interpolant):
        z = -np.linspace(0.01, reach, 50)
        return max(np.abs(states(interpolant, lambda y, v=v: v * y, 1.0, 1.0) - np.exp(v * theta)).max() for v in z)

    assert misses(damping) < 0.5 * misses(own)


def test_dense_output_of_a_step_that_is_over_is_refused():
    problem = on_data((3, 20, 2))
    steps = RungeKuttaSteps(Motion(problem), fs.Scipy(), 0.0, problem.initial_state, 1.0)
    first = steps.advance()
    middle = np.array([0.5 * first.times[-1]])
    first.evaluate(middle)
    steps.advance()
    with pytest.raises(IntegrationFailure, match="after the next"):
        first.evaluate(middle)
    assert first.evaluate(first.times)[1] == pytest.approx(first.evaluate(first.times)[1])
