"""The ball that neither the flow nor gradient descent leaves, and the step sizes that it certifies."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.rates.ball import Ball, ball
from flowsim.rates.descent import DESCENTS, descent_ball, descent_path, greatest_step
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.path import Moving, path
from flowsim.rates.theorem_1 import theorem_1_A2
from flowsim.rates.xu_2023 import xu_2023

SLACK = 1 + 1e-9
KINDS = ("squared", "masked", "least squares")


def random_problem(seed, depth, size=0.3, kind="squared"):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 4, 2)
    dims = (int(n), *(int(h) for h in rng.integers(max(n, m), 25, depth - 1)), int(m))
    weights = tuple(rng.standard_normal(pair) / pair[0] ** 0.5 for pair in pairwise(dims))
    network = fs.LinearNetwork(weights, scale=float(rng.uniform(0.5, 1.5)))
    near = network.product + size * rng.standard_normal((n, m))
    if kind == "masked":
        return fs.Problem(fs.MaskedSquaredLoss(near, rng.uniform(0.3, 2, (n, m))), network)
    if kind == "least squares":
        X = rng.standard_normal((int(n) + 2, int(n)))
        return fs.Problem(fs.LeastSquares(X, X @ near), network)
    return fs.Problem(fs.SquaredLoss(near), network)


def jacobian(weights, scale):
    """J of W with respect to all weights, by its definition, nm x size."""
    network = fs.LinearNetwork(tuple(weights), scale)
    blocks = [np.kron(A, B.T) for A, B in zip(network.prefixes, network.suffixes, strict=True)]
    return scale * np.hstack(blocks)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_the_jacobian_changes_no_more_than_is_said(depth):
    rng = np.random.default_rng(depth)
    problem = random_problem(depth, depth)
    network, around = problem.network, Ball.around(problem.network)
    J = jacobian(network.weights, network.scale)
    assert around.least <= np.linalg.svd(J, compute_uv=False)[-1] * SLACK
    assert around.greatest * SLACK >= np.linalg.norm(J, 2)
    closest = 0.0
    for _ in range(200):
        r = float(10 ** rng.uniform(-3, 0.5))
        direction = [rng.standard_normal(W.shape) for W in network.weights]
        if rng.random() < 0.5:  # of rank 1: all of the norm counts
            ends = [(rng.standard_normal(len(W)), rng.standard_normal(W.shape[1])) for W in network.weights]
            direction = [np.outer(u, v) for u, v in ends]
        length = np.sqrt(sum(np.sum(D**2) for D in direction))
        moved = [W + r / length * D for W, D in zip(network.weights, direction, strict=True)]
        change = np.linalg.norm(jacobian(moved, network.scale) - J, 2)
        assert change <= around.change(r) * SLACK
        closest = max(closest, change / around.change(r))
    assert closest > 0.05
    for r, R in pairwise((0.0, 0.1, 0.2, 0.5)):
        assert around.change(R) - around.change(r) <= (R - r) * around.lipschitz(R) * np.sqrt(depth) * SLACK + 1e-12


def test_two_layers_are_exact_to_first_order():
    """J = (I (x) W_2^T, W_1 (x) I): it is linear in the weights, |J(theta) - J(theta_0)| <= c r."""
    problem = random_problem(1, 2)
    around = Ball.around(problem.network)
    assert around.change(0.7) == pytest.approx(0.7 * problem.network.scale, rel=1e-9)
    assert around.lipschitz(0.7) == pytest.approx(problem.network.scale, rel=1e-9)


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_no_flow_leaves_the_ball(depth, seed):
    problem = random_problem(seed, depth)
    certificate = ball(problem.network, problem.loss)
    if not certificate.rate:
        return
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-11, 1e-14), t1=8 / certificate.rate, max_steps=20_000)
    assert (flow.steps.excess <= certificate.bound(flow.step_time) * SLACK + 1e-12 * flow.excess[0]).all()
    assert flow.weights_change <= certificate.radius * SLACK
    assert min(flow.core_at(t).lambda_min_T for t in flow.checkpoints.times[::20]) >= certificate.alpha / SLACK


@settings(max_examples=12)
@given(st.integers(2, 5), st.integers(0, 10**6), st.floats(0.05, 1.0), st.sampled_from(KINDS))
def test_no_descent_with_a_certified_step_is_above_its_bound(depth, seed, share, kind):
    problem = random_problem(seed, depth, kind=kind)
    greatest = greatest_step(problem.network, problem.loss)
    if greatest is None:
        return
    eta = share * greatest
    found = [theorem(problem.network, problem.loss, eta) for theorem in DESCENTS]
    assert any(certificate.applies for certificate in found) or share > 0.99
    for certificate in found:
        if certificate.applies:
            steps = int(min(max(8 / (certificate.rate * eta), 10), 3000))
            descent = fs.simulate(problem, fs.GradientDescent(eta), t1=steps * eta, save_points=2)
            assert descent.status == "completed"
            bound = certificate.bound(descent.step_time) * SLACK + 1e-13 * descent.excess[0]
            assert (descent.steps.excess <= bound).all()
            assert certificate.radius is None or descent.weights_change <= certificate.radius * SLACK


def test_step_sizes_are_certified_up_to_the_greatest():
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
    greatest = greatest_step(problem.network, problem.loss)
    top = float(np.linalg.eigvalsh(problem.network.dense_T())[-1])
    assert 0.1 < greatest * top / 2 < 1
    assert any(theorem(problem.network, problem.loss, greatest).applies for theorem in DESCENTS)
    for theorem in (descent_ball, descent_path):
        refused = theorem(problem.network, problem.loss, greatest + 3e-2 / top)
        assert not refused.applies
        assert "not certified" in refused.reason


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.02, 0.5), st.sampled_from(KINDS))
def test_two_layers_far_from_balance_are_certified_by_their_imbalance(seed, share, kind):
    """Narrow networks and large losses, where neither ball nor path says anything."""
    rng = np.random.default_rng(seed)
    n, m = (int(k) for k in rng.integers(1, 4, 2))
    h = int(rng.integers(max(n, m), 7))
    weights = [rng.standard_normal((n, h)), rng.standard_normal((h, m))]
    weights[int(rng.integers(2))] *= 4
    loss = {"squared": fs.SquaredLoss(2 * rng.standard_normal((n, m)))}.get(kind) or fs.MaskedSquaredLoss(
        2 * rng.standard_normal((n, m)), rng.uniform(0.5, 1.5, (n, m))
    )
    problem = fs.Problem(loss, fs.LinearNetwork(tuple(weights), scale=float(rng.uniform(0.5, 1.5))))
    eta = share / float(np.linalg.eigvalsh(problem.network.dense_T())[-1])
    certificate = xu_2023(problem.network, problem.loss, eta)
    if certificate.applies:
        descent = fs.simulate(problem, fs.GradientDescent(eta), t1=400 * eta, save_points=5)
        bound = certificate.bound(descent.step_time) * SLACK + 1e-13 * descent.excess[0]
        assert (descent.steps.excess <= bound).all()


def test_the_theorem_of_two_layers_meets_that_of_the_flow_at_vanishing_steps():
    weights = ([[3.0]], [[1.0]])
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(weights))
    flow = theorem_1_A2(problem.network, problem.loss)
    assert xu_2023(problem.network, problem.loss, 1e-9).rate == pytest.approx(flow.rate, rel=1e-6)
    small, large = (xu_2023(problem.network, problem.loss, eta) for eta in (0.001, 0.02))
    assert flow.alpha > small.alpha > large.alpha > 0
    assert "not certified" in xu_2023(problem.network, problem.loss, 0.3).reason
    deep = fs.fan_in((2, 5, 5, 2), seed=0)
    assert "two layers" in xu_2023(deep, fs.SquaredLoss(np.eye(2)), 0.1).reason


@pytest.mark.parametrize("dims", [(3, 40, 1), (3, 50, 40, 1), (2, 60, 50, 60, 1)])
def test_a_vanishing_step_is_certified_as_the_flow_is(dims):
    problem = fs.Problem(fs.SquaredLoss(np.full((dims[0], 1), 0.3)), fs.fan_out(dims, seed=0))
    flow = path(problem.network, problem.loss)
    for share in (1e-9, 1e-3, 0.1):
        certificate = descent_path(problem.network, problem.loss, share * 2 / problem.network.lambda_min_T)
        if share < 1e-8:
            assert certificate.alpha == pytest.approx(flow.alpha, rel=1e-4)
            assert certificate.radius == pytest.approx(flow.radius, rel=1e-4)
            times = np.linspace(0, 4 / flow.rate, 9)
            assert certificate.bound(times) == pytest.approx(flow.bound(times), rel=1e-3)
        elif certificate.applies:
            assert certificate.alpha < flow.alpha


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_words_grow_no_faster_with_a_disturbance_than_is_said(depth):
    """K_l and G_l where each layer also moves by eps along its greatest singular vectors: W_1 W_1^T as fast as said."""
    problem = random_problem(7, depth, size=0.01)
    network, c, h, eps = problem.network, problem.network.scale, 1e-6, 30.0
    moving = Moving(network, layer_norms(network), disturbed=True)
    before = moving.y
    E = network.product - problem.loss.minimiser
    weights = []
    for W, A, B in zip(network.weights, network.prefixes, network.suffixes, strict=True):
        U, _, V = np.linalg.svd(W)
        weights.append(W - h * c * A.T @ E @ B.T / np.linalg.norm(E) + h * eps * np.outer(U[:, 0], V[0]))
    after = fs.LinearNetwork(tuple(weights), scale=c)
    moving.after(h, None, lambda U: eps)
    assert after.lambda_min_T >= moving.least
    shares = []
    for places, products in zip(moving.words.ends, (after.prefixes, after.suffixes), strict=True):
        for place, product in zip(places, products, strict=True):
            if place >= 0:
                size = np.linalg.norm(product, 2) ** 2
                assert size <= moving.y[place] * SLACK
                shares.append((size - before[place]) / (moving.y[place] - before[place]))
    assert max(shares) > 0.9


def test_certificates_of_descent_are_its_own():
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
    found = fs.certify(problem, method=fs.GradientDescent(5e-6))
    assert found.best.name == "descent-path"
    assert found.best.rate > found["descent-ball"].rate > 0.5 * found.best.rate
    assert found["path"].rate is None
    assert "gradient descent" in found["theorem-2"].reason
    assert found.best.rate < fs.certify(problem).best.rate
    assert fs.certify(problem, method=fs.Scipy()).best.name == "path"


def test_where_nothing_is_certified():
    labels = fs.ExponentialLoss(np.eye(3), np.ones((3, 3)))
    network = fs.fan_out((3, 4, 3, 3), seed=0)
    for theorem in (descent_ball, descent_path):
        assert "smoothness" in theorem(network, labels, 1e-3).reason
    assert greatest_step(network, labels) is None
    assert ball(network, fs.SquaredLoss(50 * np.eye(3))).alpha == 0
    narrow = fs.LinearNetwork(([[2.0], [0.0]], [[1.0, 0.0]]))
    assert ball(narrow, fs.SquaredLoss(np.eye(2))).alpha == 0


@pytest.mark.parametrize("eta", [1e-3, 0.4, 1.0, 50.0, 1e8])
@pytest.mark.parametrize("kind", ["squared", "masked"])
def test_at_the_minimum_only_steps_that_stay_stable_are_certified(eta, kind):
    """No loss is left, so nothing moves; a rate there is one of what a rounding error would do."""
    network = fs.LinearNetwork((np.eye(2), np.eye(2)))
    loss = fs.SquaredLoss(np.eye(2)) if kind == "squared" else fs.MaskedSquaredLoss(np.ones((2, 2)), np.eye(2))
    found = fs.certify(fs.Problem(loss, network), method=fs.GradientDescent(eta))
    for certificate in found:
        if certificate.applies and certificate.rate is not None:
            assert np.isfinite(certificate.rate)
            assert eta < 1  # |T| = 2
    assert (found.best is not None) == (eta < 1)


def test_bounds_at_times_beyond_float64_are_0():
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3e60]], [[1e60]])))
    for certificate in fs.certify(problem):
        if certificate.rate:
            assert certificate.bound([1e300]) == 0
