"""Initial weights: pinned draws, variances, balance, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.errors import InputError
from flowsim.initialization import SCHEMES

NORMALS = [0.12573022, -0.13210486, 0.64042265]
"""The first draws of numpy.random.default_rng(0)."""
DEVIATIONS = {"fan_in": (1 / 3) ** 0.5, "fan_out": 0.5, "xavier": (2 / 7) ** 0.5, "ntk": 1.0}


@pytest.mark.parametrize("scheme", sorted(DEVIATIONS))
def test_gaussian_draws_are_pinned(scheme):
    network = fs.initialize(scheme, (3, 4, 5, 2), seed=0)
    assert network.weights[0][0, :3] == pytest.approx(DEVIATIONS[scheme] * np.array(NORMALS), rel=1e-7)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_same_seed_same_weights(scheme):
    dims = (3, 3, 3, 3) if scheme == "diagonal" else (3, 7, 6, 2)
    one, two, other = (fs.initialize(scheme, dims, seed=seed) for seed in (5, 5, 6))
    for W, V, U in zip(one.weights, two.weights, other.weights, strict=True):
        assert (W == V).all()
        assert np.abs(W - U).max() > 1e-3
    half = fs.initialize(scheme, dims, seed=5, scale=0.5)
    assert half.weights[1] == pytest.approx(0.5 * one.weights[1], rel=1e-12)
    assert one.origin["scheme"] == scheme


@pytest.mark.parametrize(
    ("scheme", "variance"), [("fan_in", 1 / 300), ("fan_out", 1 / 200), ("xavier", 2 / 500), ("ntk", 1.0)]
)
def test_variances(scheme, variance):
    W2 = fs.initialize(scheme, (2, 300, 200, 2), seed=1).weights[1]
    assert W2.var() == pytest.approx(variance, rel=0.02)


def test_the_ntk_factor():
    assert fs.ntk((5, 20, 30, 4), seed=0).scale == pytest.approx((20 * 30 * 4) ** -0.5)


@pytest.mark.parametrize("dims", [(3, 5, 2), (3, 9, 7, 8, 4), (5, 6, 5, 5)])
def test_balanced_weights_have_no_imbalance(dims):
    network = fs.balanced(dims, seed=0)
    assert max(np.linalg.norm(D) for D in network.imbalances) < 1e-13
    assert np.linalg.svd(network.product, compute_uv=False).min() > 1e-6


@pytest.mark.parametrize("dims", [(3, 5, 2), (3, 9, 7, 8, 4)])
def test_orthogonal_weights_are(dims):
    for W in fs.orthogonal(dims, seed=0).weights:
        thin = W if W.shape[0] >= W.shape[1] else W.T
        assert thin.T @ thin == pytest.approx(np.eye(thin.shape[1]), abs=1e-13)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dims": (3, 2)}, "at least three sizes"),
        ({"dims": (3, 0, 2)}, "at least 1"),
        ({"dims": (3, 1, 2)}, "hidden widths"),
        ({"dims": (3, 4.5, 2)}, "whole number"),
        ({"dims": "3,4,2"}, "list of sizes"),
        ({"dims": (10**6, 10**6, 10**6)}, "GiB"),
        ({"seed": -1}, "at least 0"),
        ({"seed": "a"}, "whole number"),
        ({"scale": 0.0}, "greater than 0"),
        ({"scale": float("nan")}, "finite"),
        ({"scheme": "fanout"}, "did you mean fan_out"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        fs.initialize(**{"scheme": "fan_in", "dims": (3, 4, 2), "seed": 0, **arguments})


@settings(max_examples=40)
@given(depth=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_unimodal_imbalance_is_the_one_asked_for(depth, seed):
    rng = np.random.default_rng(seed)
    n, m = (int(k) for k in rng.integers(1, 4, 2))
    dims = (n, *(int(k) for k in rng.integers(max(n, m), 7, depth - 1)), m)
    peak, d = int(rng.integers(1, depth + 1)), rng.uniform(0, 2, depth - 1)
    network = fs.unimodal(dims, peak=peak, imbalance=d, seed=seed)
    for layer, values in enumerate(network.imbalance_eigenvalues, start=1):
        if layer < peak:
            assert values[-1] >= -1e-12 * (1 + values[0])
            assert values[n - 1] == pytest.approx(d[layer - 1], rel=1e-9, abs=1e-12 * (1 + values[0]))
        else:
            assert values[0] <= 1e-12 * (1 - values[-1])
            assert -values[-m] == pytest.approx(d[layer - 1], rel=1e-9, abs=1e-12 * (1 - values[-1]))


@pytest.mark.parametrize(
    ("dims", "d"),
    [
        ((3, 3, 3, 3), (1.5, -2.0)),
        ((2, 5, 5, 2), (-1.0, 1.0)),
        ((5, 3, 3), (0.7,)),
        ((2, 3, 4), (-0.7,)),
        ((2, 5, 3), (0.0,)),
        ((2, 4, 3, 4, 2), (0.0, 0.0, 0.0)),
    ],
)
def test_homogeneous_imbalance_is_a_multiple_of_the_identity(dims, d):
    network = fs.homogeneous(dims, imbalance=d, seed=3)
    for D, level in zip(network.imbalances, d, strict=True):
        assert pytest.approx(level * np.eye(len(D)), abs=1e-12) == D


@pytest.mark.parametrize(("dims", "d"), [((2, 5, 3), (1.0,)), ((2, 5, 5, 2), (1.0, -1.0)), ((2, 4, 2), (-1.0,))])
def test_homogeneous_imbalance_that_fits_no_weights_is_refused(dims, d):
    with pytest.raises(InputError, match="fit the widths"):
        fs.homogeneous(dims, imbalance=d, seed=0)


def test_lambda_balanced_weights():
    for level, dims in ((1.5, (3, 3, 4)), (-2.0, (4, 3, 3)), (0.5, (2, 2, 2, 2))):
        for D in fs.lambda_balanced(dims, imbalance=level, seed=1).imbalances:
            assert pytest.approx(level * np.eye(len(D)), abs=1e-12) == D


def test_spectral_weights_split_into_scalar_networks(rng):
    Y = rng.standard_normal((3, 2))
    left, _, right = np.linalg.svd(Y, full_matrices=False)
    network = fs.spectral((3, 5, 6, 2), seed=1, target=Y)
    flow = fs.simulate(fs.Problem(fs.SquaredLoss(Y), network), fs.Scipy("DOP853", 1e-11, 1e-13), t1=2.0)
    modes = left.T @ flow.product_at(2.0) @ right.T
    assert modes == pytest.approx(np.diag(np.diag(modes)), abs=1e-9)


def test_diagonal_weights_stay_diagonal():
    network = fs.diagonal((3, 3, 3), seed=0)
    flow = fs.simulate(fs.Problem(fs.SquaredLoss(np.diag([1.0, 2.0, -1.0])), network), t1=1.0)
    for W in flow.weights_at(1.0):
        assert pytest.approx(np.diag(np.diag(W)), abs=1e-15) == W


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.diagonal((2, 3, 2), seed=0), "equal sizes"),
        (lambda: fs.unimodal((2, 3, 2), peak=3, imbalance=[1.0], seed=0), "at most 2"),
        (lambda: fs.unimodal((2, 3, 2), peak=1, imbalance=[-1.0], seed=0), "at least 0"),
        (lambda: fs.homogeneous((2, 2, 2), imbalance=[1.0, 2.0], seed=0), "must hold 1 numbers"),
        (lambda: fs.initialize("unimodal", (2, 3, 2), seed=0, imbalance=[1.0]), "`peak` must be given"),
        (lambda: fs.initialize("fan_in", (2, 3, 2), seed=0, peak=1), "must not be given"),
    ],
)
def test_bad_structures_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
