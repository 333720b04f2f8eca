"""Two layers: Lemma 3 and Theorem 1 of [MVM23], corrected, from the spectrum of D = D_1."""

from __future__ import annotations

from math import hypot
from typing import Any

import numpy as np

from flowsim.rates.certificate import Certificate, along_trajectory, at_this_instant, refused
from flowsim.rates.imbalance import positive, singular, spectra
from flowsim.rates.margin import margin


def two_layer_deltas(values: np.ndarray, n: int, m: int) -> tuple[float, float, float]:
    """(Delta+, Delta-, Delta) from the eigenvalues of D, descending.

    Delta+ = [l_1(D)]_+ - [l_n(D)]_+, Delta- = [l_1(-D)]_+ - [l_m(-D)]_+, Delta = [l_n(D)]_+ + [l_m(-D)]_+.
    """
    nth, mth = positive(values, n), positive(-values[::-1], m)
    return positive(values, 1) - nth, positive(-values[::-1], 1) - mth, nth + mth


def _right_side(deltas: tuple[float, float, float], at_m: float, at_n: float) -> float:
    """1/2 (-Delta+ + sqrt((Delta+ + Delta)^2 + 4 at_m^2) - Delta- + sqrt((Delta- + Delta)^2 + 4 at_n^2))."""
    plus, minus, both = deltas
    return 0.5 * (hypot(plus + both, 2 * at_m) - plus + hypot(minus + both, 2 * at_n) - minus)


def _two_layers(network: Any) -> tuple[tuple[float, float, float] | None, str]:
    if network.depth != 2:
        return None, f"it is for two layers, the network has {network.depth}"
    values = spectra(network)
    assert values is not None  # the first and the last layer are always arrays
    return two_layer_deltas(values[0], network.dims[0], network.dims[-1]), ""


def lemma_3(network: Any, loss: Any = None) -> Certificate:
    """lambda_min(T) >= 1/2 (-Delta+ + sqrt((Delta+ + Delta)^2 + 4 sigma_m(W)^2)
                             - Delta- + sqrt((Delta- + Delta)^2 + 4 sigma_n(W)^2))   at the present weights.

    W = W_1 W_2 (the model's scale left out, alpha times its square); Delta's as in two_layer_deltas; equality for
    n = m = 1. Source: [MVM23], Lemma 3, eq. (9). The print pairs Delta+ with sigma_n and Delta- with sigma_m, which is
    false for n != m: W_1 = diag(10, 0.1), W_2 = (0.1, 0)^T has lambda_min(T) = 0.02, the printed bound is 1.005.
    """
    deltas, reason = _two_layers(network)
    if deltas is None:
        return refused("lemma-3", reason, scope="instant")
    n, m = network.dims[0], network.dims[-1]
    W = network.product / network.scale
    return at_this_instant("lemma-3", network.scale**2 * _right_side(deltas, singular(W, m), singular(W, n)))


def theorem_1_A1(network: Any, loss: Any = None) -> Certificate:
    """alpha = scale^2 Delta, Delta = [l_n(D)]_+ + [l_m(-D)]_+, along the whole trajectory ([MVM23], Theorem 1).

    The rate alpha gamma needs A1 only.
    """
    deltas, reason = _two_layers(network)
    if deltas is None:
        return refused("theorem-1-A1", reason)
    return along_trajectory("theorem-1-A1", network, loss, network.scale**2 * deltas[2])


def theorem_1_A2(network: Any, loss: Any = None) -> Certificate:
    """The right side of lemma_3 with sigma_k(W) replaced by the margin nu_k, along the whole trajectory, under A2.

    Source: [MVM23], Theorem 1, eq. (12). The print pairs Delta+ with nu_n (see lemma_3) and lacks the factor 1/2: with
    y = 1, w = (0.95, 0.95), t = 2 the loss exceeds that bound 766 times over.
    """
    name = "theorem-1-A2"
    deltas, reason = _two_layers(network)
    if deltas is None:
        return refused(name, reason)
    nu, reason = margin(network, loss)
    if nu is None:
        return refused(name, reason)
    n, m = network.dims[0], network.dims[-1]
    alpha = network.scale**2 * _right_side(deltas, nu(m) / network.scale, nu(n) / network.scale)
    return along_trajectory(name, network, loss, alpha)
