"""Closed forms against adaptive integration, and adaptive integration against closed forms."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError
from flowsim.exact import balanced_mode, riccati, saxe_mode

TIGHT = [
    fs.Scipy("RK45", 1e-12, 1e-14),
    fs.Scipy("DOP853", 1e-12, 1e-14),
    fs.Scipy("Radau", 1e-12, 1e-14),
    fs.Scipy("LSODA", 1e-13, 1e-14),
]
TIGHT += [fs.Diffrax(name, 1e-12, 1e-14) for name in ("Tsit5", "Dopri5", "Dopri8", "Kvaerno5")]


def homogeneous(rng, n, h, m, lam):
    """Two layers with D = lam I_h: W_1^T W_1 - W_2 W_2^T = lam I."""
    if lam < 0:
        W1, W2 = homogeneous(rng, m, h, n, -lam)
        return W2.T, W1.T
    W2 = 0.7 * rng.standard_normal((h, m))
    values, vectors = np.linalg.eigh(W2 @ W2.T + lam * np.eye(h))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    if n >= h:
        return np.linalg.qr(rng.standard_normal((n, h)))[0] @ root, W2
    return root[-n:], W2  # lam = 0: the rank of W_2 is at most n


@pytest.mark.parametrize("lam", [0.0, 1.5, -2.0])
@pytest.mark.parametrize("method", TIGHT, ids=lambda m: m.name)
def test_riccati(rng, lam, method):
    n, h, m = 5, 3, 4  # lam > 0 needs h <= n, lam < 0 needs h <= m
    W1, W2 = homogeneous(rng, n, h, m, lam)
    Y = rng.standard_normal((n, m))
    network = fs.LinearNetwork((W1, W2))
    times = np.linspace(0.0, 2.0, 5)
    expected = riccati(network, Y, times)
    assert expected[0] == pytest.approx(network.product, abs=1e-12)
    run = fs.simulate(fs.Problem(fs.SquaredLoss(Y), network), method, t1=2.0, save_points=times)
    for t, W in zip(times, expected, strict=True):
        assert np.abs(run.product_at(t) - W).max() <= 1e-10


def test_saxe_mode_is_the_balanced_mode_of_depth_two():
    t = np.linspace(0, 3, 7)
    assert balanced_mode(t, 2.0, 0.01, 2) == pytest.approx(saxe_mode(t, 2.0, 0.01), rel=1e-11)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_balanced_modes_of_a_spectral_network(depth):
    """A balanced network aligned with its target follows independent scalar modes."""
    targets, starts = np.array([3.0, 1.0]), np.array([0.2, 0.05])
    weights = tuple(np.diag(starts ** (1 / depth)) for _ in range(depth))
    times = np.linspace(0.0, 2.0, 6)
    problem = fs.Problem(fs.SquaredLoss(np.diag(targets)), fs.LinearNetwork(weights))
    run = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=2.0, save_points=times)
    seen = np.array([np.diag(run.product_at(t)) for t in times])
    for mode, (s, u0) in enumerate(zip(targets, starts, strict=True)):
        assert seen[:, mode] == pytest.approx(balanced_mode(times, s, u0, depth), rel=1e-9)


@pytest.mark.parametrize("imbalance", [1.5, 0.0, -2.0])
def test_riccati_at_late_times(imbalance):
    """Where e^{2Ft} spans sixteen decades and more."""
    network = fs.lambda_balanced((12, 8, 7) if imbalance >= 0 else (7, 8, 12), imbalance=imbalance, seed=0)
    Y = 5 * np.random.default_rng(0).standard_normal((network.dims[0], network.dims[-1]))
    run = fs.simulate(fs.Problem(fs.SquaredLoss(Y), network), fs.Scipy("DOP853", 1e-12, 1e-14), t1=8.0, save_points=9)
    for t, W in zip(run.time, riccati(network, Y, run.time), strict=True):
        assert np.linalg.norm(run.product_at(t) - W) < 1e-9 * np.linalg.norm(Y)
    with pytest.raises(InputError, match="`t` must be at most"):
        riccati(network, Y, 1e6)
