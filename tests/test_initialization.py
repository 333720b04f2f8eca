"""Initial weights: pinned draws, variances, balance, and what is refused."""

import numpy as np
import pytest

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
    one, two, other = (fs.initialize(scheme, (3, 7, 6, 2), seed=seed) for seed in (5, 5, 6))
    for W, V, U in zip(one.weights, two.weights, other.weights, strict=True):
        assert (W == V).all()
        assert np.abs(W - U).max() > 1e-3
    half = fs.initialize(scheme, (3, 7, 6, 2), seed=5, scale=0.5)
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
