"""Errors of the printed paper: each printed form fails where the corrected one holds."""

from math import hypot, sqrt

import numpy as np
import pytest

import flowsim as fs
from flowsim.rates.imbalance import spectra
from flowsim.rates.theorem_1 import two_layer_eigenvalues


def printed_lemma_3(network):
    """Eq. (9) as printed: Delta+ with sigma_n, Delta- with sigma_m."""
    n, m = network.dims[0], network.dims[-1]
    D = two_layer_eigenvalues(spectra(network)[0], n, m)
    plus, minus, both = D.top - D.nth, D.bottom - D.mth, D.Delta
    sigma = np.linalg.svd(network.product, compute_uv=False)
    at_n, at_m = (sigma[k - 1] if k <= len(sigma) else 0.0 for k in (n, m))
    return 0.5 * (hypot(plus + both, 2 * at_n) - plus + hypot(minus + both, 2 * at_m) - minus)


def test_lemma_3_pairs_the_wrong_singular_values():
    network = fs.LinearNetwork((np.diag([10, 0.1]), np.array([[0.1], [0.0]])))
    assert network.lambda_min_T == pytest.approx(0.02, rel=1e-9)
    assert printed_lemma_3(network) == pytest.approx(1.005, rel=1e-3)
    assert fs.certify(network)["lemma-3"].alpha == pytest.approx(0.02, rel=1e-9)


def scalar_flow(y, w, t1):
    network = fs.LinearNetwork(tuple(np.array([[x]]) for x in w))
    problem = fs.Problem(fs.SquaredLoss([[y]]), network)
    return problem, fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-15), t1=t1)


def test_theorem_1_lacks_a_half():
    problem, flow = scalar_flow(1.0, (0.95, 0.95), 2.0)
    corrected = fs.certify(problem)["theorem-1-A2"]
    printed = flow.excess[0] * np.exp(-2 * corrected.rate * 2.0)
    assert flow.excess[-1] / printed == pytest.approx(766, abs=1)
    assert flow.excess[-1] <= corrected.bound(2.0)


def test_corollary_2_lacks_an_exponent():
    problem, flow = scalar_flow(0.1, (0.095 ** (1 / 3),) * 3, 15.0)
    nu = 0.1 - abs(0.095 - 0.1)
    printed = flow.excess[0] * np.exp(-2 * 3 * nu * 15.0)
    corrected = fs.certify(problem)["corollary-2"]
    assert corrected.alpha == pytest.approx(3 * nu ** (4 / 3), rel=1e-9)
    assert flow.excess[-1] / printed == pytest.approx(89, abs=1)
    assert flow.excess[-1] / corrected.bound(15.0) == pytest.approx(0.86, abs=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_eq_19_is_for_square_products_only(seed):
    network = fs.balanced((3, 4, 2), seed=seed)
    sigma = np.linalg.svd(network.product, compute_uv=False)[-1]
    assert 2 * sigma > network.lambda_min_T * (1 + 1e-9)
    assert not fs.certify(network)["theorem-3-homogeneous"].applies
    assert not fs.certify(network)["arora-2018"].applies


def test_yun_needs_a_wide_last_layer():
    network = fs.LinearNetwork((np.eye(3)[:, :2], np.zeros((2, 3))))
    assert network.imbalance_eigenvalues[0][-1] == pytest.approx(1.0)
    assert network.lambda_min_T == pytest.approx(0.0, abs=1e-15)
    assert "h_(L-1)" in fs.certify(network)["yun-2020"].reason


def test_the_scale_of_the_model_enters_T_squared():
    network = fs.fan_in((2, 4, 5, 3), seed=0)
    scaled = fs.LinearNetwork(network.weights, scale=0.3)
    assert scaled.lambda_min_T == pytest.approx(0.3**2 * network.lambda_min_T, rel=1e-10)
    for name in ("theorem-2",):
        assert fs.certify(scaled)[name].alpha == pytest.approx(0.3**2 * fs.certify(network)[name].alpha, rel=1e-10)


def test_the_margin_is_for_the_scaled_product():
    weights = fs.balanced((2, 3, 2), seed=1).weights
    one = fs.LinearNetwork(weights)
    problem = fs.Problem(fs.SquaredLoss(one.product + 0.01), one)
    root = sqrt(0.5)
    same = fs.Problem(problem.loss, fs.LinearNetwork(tuple(W / root for W in weights), scale=root**2))
    assert fs.certify(same)["theorem-1-A2"].alpha == pytest.approx(root**2 * fs.certify(problem)["theorem-1-A2"].alpha)
