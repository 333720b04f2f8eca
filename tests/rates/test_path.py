"""The path certificate: against closed forms, the system written out by hand, and flows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.rates.combined import combined
from flowsim.rates.layer_norms import layer_norm, layer_norms
from flowsim.rates.path import FALL, FALLS, Travel, path, travel
from flowsim.rates.words import Words

SLACK = 1 + 1e-9


def squared(dims, seed, scheme="fan_out", scale=1.0, target=1.0):
    network = fs.initialize(scheme, dims, seed=seed, scale=scale)
    return fs.Problem(fs.SquaredLoss(np.full((dims[0], dims[-1]), target)), network)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("dims", [(3, 40, 2), (1, 30, 1), (2, 50, 3)])
def test_two_layers_are_as_in_closed_form(dims, scale):
    """lambda_min(T(t))^2 >= lambda_min(T(0))^2 - 8 c^2 (|Y| e_0 + e_0^2 / 2), as near as 256 Euler steps come."""
    for seed in range(5):
        network = fs.fan_out(dims, seed=seed)
        network = fs.LinearNetwork(network.weights, scale=scale)
        problem = fs.Problem(fs.SquaredLoss(np.ones((dims[0], dims[-1]))), network)
        e, Y = np.sqrt(2 * problem.initial_excess), np.linalg.norm(problem.loss.minimiser, 2)
        square = network.lambda_min_T**2 - 8 * scale**2 * (Y * e + e**2 / 2)
        alpha = path(network, problem.loss).alpha
        assert alpha <= network.lambda_min_T
        if square > 0.2 * network.lambda_min_T**2:
            assert 0.97 * np.sqrt(square) <= alpha <= SLACK * np.sqrt(square) or alpha > np.sqrt(square)


def test_three_layers_have_the_system_written_out_by_hand():
    weights = fs.fan_out((3, 12, 9, 2), seed=0).weights
    words = Words(weights, [layer_norm(W) for W in weights], 5)
    y = dict(zip(words.words, words.growth(words.start), strict=True))
    norm = dict(zip(words.words, words.start, strict=True))

    def of(table, *word):
        return table[min(word, tuple(-k for k in reversed(word)))]

    k2, g2, k3, g1 = (of(norm, *w) for w in ((1, -1), (-3, 3), (1, 2, -2, -1), (-3, -2, 2, 3)))
    v, omega = of(norm, 1, 2, -2, 2, 3), of(norm, 1, 2, 3)
    q, p = of(norm, -2, 2, 3), of(norm, 1, 2, -2)
    W1, W2, W3 = weights
    X = W1 @ W2
    for found, product in ((v, X @ W2.T @ W2 @ W3), (q, W2.T @ W2 @ W3), (p, X @ W2.T), (k3, X @ X.T)):
        assert found == pytest.approx(np.linalg.norm(product, 2), rel=1e-10)
    assert of(y, 1, -1) == pytest.approx(2 * omega)
    assert of(y, -3, 3) == pytest.approx(2 * omega)
    assert of(y, 1, 2, -2, -1) == pytest.approx(2 * (v + k2 * omega))
    assert of(y, -3, -2, 2, 3) == pytest.approx(2 * (v + g2 * omega))
    assert of(y, 1, 2, -2, 2, 3) == pytest.approx(q**2 + k2 * g1 + omega**2 + k3 * g2 + p**2)
    assert of(y, 1, 2, 3) == pytest.approx(g1 + k2 * g2 + k3)


@pytest.mark.parametrize("dims", [(2, 7, 3), (3, 9, 8, 2), (2, 8, 7, 9, 1), (1, 6, 7, 8, 6, 2)])
def test_norms_of_words_grow_no_faster_than_is_said(dims):
    """The right derivative of every norm, along a small step of a flow whose residual is as bad as it can be."""
    rng = np.random.default_rng(0)
    weights = fs.fan_out(dims, seed=1).weights
    words = Words(weights, [layer_norm(W) for W in weights], min(2 * len(weights) - 1, 7))
    growth, h = words.growth(words.start), 1e-6
    worst = np.zeros(len(growth))
    for _ in range(20):
        E = rng.standard_normal((dims[0], dims[-1])) if rng.random() < 0.5 else np.outer(
            rng.standard_normal(dims[0]), rng.standard_normal(dims[-1])
        )
        E /= np.linalg.norm(E)
        network = fs.LinearNetwork(weights)
        moved = [
            W - h * A.T @ E @ B.T for W, A, B in zip(weights, network.prefixes, network.suffixes, strict=True)
        ]
        after = Words(moved, [layer_norm(W) for W in moved], 1)
        now = np.array([after._norm(word) for word in words.words])
        worst = np.maximum(worst, (now - words.start) / h)
    assert (worst <= growth * (1 + 1e-4) + 1e-4).all()
    assert (worst / growth).max() > 0.2


@settings(max_examples=40)
@given(st.integers(2, 5), st.integers(0, 10**6), st.sampled_from(["squared", "least squares", "masked"]))
def test_no_flow_leaves_what_is_certified(depth, seed, kind):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 4, 2)
    dims = (int(n), *(int(h) for h in rng.integers(1, 25, depth - 1)), int(m))
    weights = tuple(rng.standard_normal(pair) / pair[0] ** 0.5 for pair in pairwise(dims))
    network = fs.LinearNetwork(weights, scale=float(rng.uniform(0.5, 1.5)))
    near = network.product + rng.uniform(0.01, 1) * rng.standard_normal((n, m))
    if kind == "least squares":
        X = rng.standard_normal((int(n) + 3, int(n)))
        loss = fs.LeastSquares(X, X @ near)
    else:
        loss = fs.SquaredLoss(near) if kind == "squared" else fs.MaskedSquaredLoss(near, rng.uniform(0.5, 2, (n, m)))
    found = path(network, loss), combined(network, loss)
    for certificate in found:
        assert certificate.alpha is None or certificate.alpha <= network.lambda_min_T * SLACK
    if not found[1].rate:
        return
    problem = fs.Problem(loss, network)
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-11, 1e-14), t1=8 / found[1].rate, max_steps=20_000)
    for certificate in found:
        if certificate.rate:
            assert (flow.steps.excess <= certificate.bound(flow.step_time) * SLACK + 1e-12 * flow.excess[0]).all()
            assert flow.weights_change <= certificate.radius * SLACK
            for t in flow.checkpoints.times[::20]:
                assert flow.core_at(t).lambda_min_T >= certificate.alpha / SLACK


def test_the_curve_falls_faster_than_its_constant_rate():
    certificate = path(*(lambda p: (p.network, p.loss))(squared((5, 300, 500, 1), 0)))
    t = np.linspace(0, 5 / certificate.rate, 50)
    constant = certificate.excess * np.exp(-certificate.rate * t)
    curve = certificate.bound(t)
    assert curve[0] == certificate.excess
    assert (curve[1:] < constant[1:]).all()
    late = certificate.knots[0][-2] + t
    assert certificate.bound(late)[1:] / certificate.bound(late)[:-1] == pytest.approx(constant[1:] / constant[:-1])


def test_compressed_drawn_and_full_networks_are_told_the_same():
    problem = squared((3, 90, 70, 2), 0)
    whole = path(problem.network, problem.loss)
    assert path(fs.compress(problem.network), problem.loss).alpha == pytest.approx(whole.alpha, rel=1e-6)
    drawn = fs.sample_compressed("fan_out", (3, 10**8, 10**8, 1), seed=0)
    certificate = path(drawn, fs.SquaredLoss(np.ones((3, 1))))
    assert certificate.alpha > 0.99 * drawn.lambda_min_T


def test_where_it_says_nothing():
    problem = squared((3, 4, 3, 3), 0)
    assert path(problem.network, problem.loss).alpha == 0
    assert "loss" in path(problem.network).reason
    labels = fs.ExponentialLoss(np.eye(3), np.ones((3, 3)))
    assert not path(problem.network, labels).applies
    narrow = fs.LinearNetwork(([[2.0], [0.0]], [[1.0, 0.0]]))
    assert path(narrow, fs.SquaredLoss(np.eye(2))).alpha == 0


def test_a_network_at_its_target_stays_as_it_is():
    network = fs.fan_out((2, 9, 8, 2), seed=0)
    certificate = path(network, fs.SquaredLoss(network.product))
    assert certificate.alpha == pytest.approx(network.lambda_min_T, rel=1e-9)
    assert certificate.radius == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(700, 900), (900, 650)])
def test_norms_of_large_layers_are_proved(shape):
    W = np.random.default_rng(0).standard_normal(shape)
    assert np.linalg.norm(W, 2) <= layer_norm(W) <= np.linalg.norm(W, 2) * (1 + 1e-6)
    assert layer_norm(np.zeros(shape)) == 0


def test_norms_of_drawn_layers_hold_for_full_ones():
    drawn = layer_norms(fs.sample_compressed("fan_in", (3, 40, 50, 2), seed=0))
    for seed in range(20):
        full = [np.linalg.norm(W, 2) for W in fs.fan_in((3, 40, 50, 2), seed=seed).weights]
        assert (np.array(full) <= drawn).all()


def test_the_cap_by_the_target_counts():
    network = fs.fan_out((3, 60, 50, 1), seed=0)
    loss = fs.SquaredLoss(np.ones((3, 1)))
    first = np.sqrt(2 * float(loss.excess(network.product)))
    free, capped = (travel(network, layer_norms(network), first, cap) for cap in (None, (np.sqrt(3.0), 1.0)))
    assert capped.least[-1] >= free.least[-1]


def test_what_is_combined_is_at_least_each_part():
    """Two and three layers, near and far from the target, imbalanced and balanced."""
    far = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        dims = [(3, 12, 3), (2, 30, 20, 2), (3, 90, 150, 3), (2, 5, 6, 7, 2)][seed % 4]
        network = fs.initialize(["fan_out", "fan_in", "balanced"][seed % 3], dims, seed=seed)
        target = network.product + [0.01, 0.3, 3.0][seed // 4] * rng.standard_normal((dims[0], dims[-1]))
        certificates = fs.certify(fs.Problem(fs.SquaredLoss(target), network))
        both = certificates["combined"]
        for name in ("theorem-1-A1", "theorem-1-A2", "theorem-2", "theorem-2-product", "homogeneous-sharp", "ball"):
            assert both.alpha >= (certificates[name].alpha or 0.0) / SLACK, name
        assert both.alpha >= 0.98 * certificates["path"].alpha
        if both.rate:
            t = np.linspace(0, 5, 30) / both.rate
            parts = [c.bound(t) for c in certificates if c.rate and c.scope == "trajectory" and c is not both]
            others = np.min(parts, axis=0)
            assert (both.bound(t) <= 1.01 * others).all()
            far += bool((both.bound(t) < 0.9 * others).any())
    assert far


def test_on_a_floor_alone_the_loss_falls_at_its_rate():
    """A floor that rises from 1 to 2 below e = 1/2: dL/dt = -2 floor L under gamma = 2."""
    network = fs.fan_out((2, 9, 8, 2), seed=0)
    found = travel(network, None, 1.0, None, lambda e: 1.0 if e > 0.5 else 2.0)
    times, exponents = found.knots(2.0)
    assert found.alpha == 1.0
    assert -2 * FALLS * np.log(FALL) - 1e-9 <= exponents[-2] <= -2 * (FALLS + 1) * np.log(FALL)
    assert times[-1] - times[-2] == pytest.approx((exponents[-1] - exponents[-2]) / 4)
    true = np.log(2) + (exponents[-2] / 2 - np.log(2)) / 2
    assert true <= times[-2] <= true - np.log(FALL) / 2
    assert travel(network, None, 1.0, None) is None
    assert travel(network, None, 1.0, None, lambda e: 1.0 if e > 0.5 else 0.0) is None


def test_the_radius_counts_what_is_left_of_the_loss():
    assert Travel(np.array([1.0, 0.5]), np.array([4.0, 4.0])).radius == pytest.approx(0.5)
    assert Travel(np.array([1.0, 0.0]), np.array([4.0, 1.0])).radius == pytest.approx(1.0)
