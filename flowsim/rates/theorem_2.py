"""Theorem 2 of [MVM23]: a rate for three layers from the imbalance alone, any initialization."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowsim.losses import constants_of, excess
from flowsim.network import LinearNetwork
from flowsim.rates.certificate import Certificate

NAME = "theorem-2"


def theorem_2(network: LinearNetwork, loss: Any = None) -> Certificate:
    """alpha_3 = scale^2 Delta*, L = 3 ([MVM23], Theorem 2 and Corollary 1); the rate gamma alpha_3 needs A1 only.

    D_21 = W_2 W_2^T - W_1^T W_1 (h_1 x h_1), D_23 = W_2^T W_2 - W_3 W_3^T (h_2 x h_2), eigenvalues l_i descending;
        Dbar_h = diag max(l_i(D_21), l_i(D_23), 0), i = 1 .. h,
        Delta_21 = tr Dbar_h1 - tr(Dbar_h1 wedge_n D_21), Delta_21^(2) the same with squares,
        Delta_23, Delta_23^(2) with Dbar_h2, wedge_m, D_23, where (A wedge_r B)_i = min(l_i(A), l_{i+1-r}(B)),
        Delta* = 1/2 (Delta_21^(2) + Delta_21^2) + Delta_21 Delta_23 + 1/2 (Delta_23^(2) + Delta_23^2).
    It never exceeds lambda_min(T(t)), at any t; a value below 0 by round-off counts as 0.
    The paper's appendix (Theorem G.2) writes Delta* for twice this number: that form is not a lower bound.
    """
    if network.depth != 3:
        return Certificate(NAME, False, reason=f"it is for three layers, the network has {network.depth}")
    if not network.is_dense:
        return Certificate(NAME, False, reason="it needs all eigenvalues of D_1 and D_2: the full layers, as arrays")
    alpha = network.scale**2 * max(delta_star(network), 0.0)
    if loss is None:
        return Certificate(NAME, True, alpha, reason="the rate needs a target or data: no loss was given")
    constants = constants_of(loss)
    if constants is None or constants.dominance != "quadratic" or constants.gamma is None:
        return Certificate(NAME, False, alpha, reason="assumption A1 (Polyak-Lojasiewicz) is not known for this loss")
    return Certificate(NAME, True, alpha, rate=alpha * constants.gamma, excess=float(excess(loss, network.product)))


def delta_star(network: LinearNetwork) -> float:
    """Delta* of the weights of a three-layer network, the model's scale left out."""
    n, m = network.dims[0], network.dims[-1]
    l_21 = np.linalg.eigvalsh(-network.imbalance(1))[::-1]
    l_23 = np.linalg.eigvalsh(network.imbalance(2))[::-1]
    Delta_21, Delta_21_squares = _traces(l_21, _upper(l_21, l_23, len(l_21)), n)
    Delta_23, Delta_23_squares = _traces(l_23, _upper(l_21, l_23, len(l_23)), m)
    return 0.5 * (Delta_21_squares + Delta_21**2) + Delta_21 * Delta_23 + 0.5 * (Delta_23_squares + Delta_23**2)


def _upper(l_21: np.ndarray, l_23: np.ndarray, order: int) -> np.ndarray:
    """The diagonal of Dbar_order; an eigenvalue beyond a matrix's order does not count."""
    upper = np.zeros(order)
    for eigenvalues in (l_21, l_23):
        shared = min(order, len(eigenvalues))
        upper[:shared] = np.maximum(upper[:shared], eigenvalues[:shared])
    return upper


def _traces(eigenvalues: np.ndarray, upper: np.ndarray, r: int) -> tuple[float, float]:
    """tr Dbar - tr(Dbar wedge_r D), and the same with squares; where the two agree nothing is summed."""
    shifted = np.concatenate([np.full(r - 1, np.inf), eigenvalues])[: len(upper)]
    wedge = np.minimum(upper, shifted)
    return float((upper - wedge).sum()), float(((upper - wedge) * (upper + wedge)).sum())
