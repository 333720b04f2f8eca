"""Theorem 2 of [MVM23]: a rate for three layers from the imbalance alone, any initialization."""

from __future__ import annotations

import numpy as np

from flowsim.compression import CompressedNetwork, compress
from flowsim.losses import Loss
from flowsim.network import Network
from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.imbalance import Spectrum, spectra, uncertainty

NAME = "theorem-2"
CHEAP_STEPS = 8
"""Krylov steps in which the extreme eigenvalues are sought, at least, where the layers are not arrays."""


def theorem_2(network: Network, loss: Loss | None = None) -> Certificate:
    """alpha_3 = scale^2 Delta*, L = 3 ([MVM23], Theorem 2 and Corollary 1); the rate gamma alpha_3 needs A1 only.

    D_21 = W_2 W_2^T - W_1^T W_1 (h_1 x h_1), D_23 = W_2^T W_2 - W_3 W_3^T (h_2 x h_2), eigenvalues l_i descending;
        Dbar_h = diag max(l_i(D_21), l_i(D_23), 0), i = 1 .. h,
        Delta_21 = tr Dbar_h1 - tr(Dbar_h1 wedge_n D_21), Delta_21^(2) the same with squares,
        Delta_23, Delta_23^(2) with Dbar_h2, wedge_m, D_23, where (A wedge_r B)_i = min(l_i(A), l_{i+1-r}(B)),
        Delta* = 1/2 (Delta_21^(2) + Delta_21^2) + Delta_21 Delta_23 + 1/2 (Delta_23^(2) + Delta_23^2).
    It never exceeds lambda_min(T(t)), at any t.
    The paper's appendix (Theorem G.2) writes Delta* for twice this number: that form is not a lower bound.

    A compressed network, or one with an operator as layer, gets the sums over their last index alone, a lower bound of
    Delta* from a few products with W_2: see last_terms.
    """
    if network.depth != 3:
        return refused(NAME, f"it is for three layers, the network has {network.depth}")
    if isinstance(network, CompressedNetwork) or not network.is_dense:
        compressed = network if isinstance(network, CompressedNetwork) else compress(network)
        compressed = compressed.at_least(CHEAP_STEPS)
        remark = f"the last terms of its sums, in {compressed.steps} Krylov steps: a lower bound of the theorem's alpha"
        return along_trajectory(NAME, network, loss, network.scale**2 * last_terms(compressed), remark)
    return along_trajectory(NAME, network, loss, network.scale**2 * delta_star(network))


def delta_star(network: Network) -> float:
    """Delta* of the arrays of a three-layer network, the model's scale left out."""
    found = spectra(network)
    assert found is not None
    Delta_21, half_21, Delta_23, half_23 = deltas(found[0], found[1], network.dims[0], network.dims[-1])
    return half_21 + Delta_21 * Delta_23 + half_23


def deltas(D_1: Spectrum, D_2: Spectrum, n: int, m: int) -> tuple[float, float, float, float]:
    """(Delta_21, 1/2 (Delta_21^(2) + Delta_21^2), the same two of D_23), at least."""
    D_21, D_23 = D_1.negated, D_2
    return *_sums(D_21, dominating(D_21, D_23, len(D_21)), n), *_sums(D_23, dominating(D_21, D_23, len(D_23)), m)


def dominating(D_21: Spectrum, D_23: Spectrum, order: int) -> np.ndarray:
    """The diagonal of Dbar_order, at least; an eigenvalue beyond a matrix's order does not count."""
    upper = np.zeros(order)
    for eigenvalues in (D_21.low, D_23.low):
        shared = min(order, len(eigenvalues))
        upper[:shared] = np.maximum(upper[:shared], eigenvalues[:shared])
    return upper


def _sums(D: Spectrum, upper: np.ndarray, r: int) -> tuple[float, float]:
    """(Delta, 1/2 (Delta^(2) + Delta^2)), Delta = sum_i d_i, d = u - u wedge_r D >= 0, u the diagonal of Dbar >= 0.

    Delta^(2) = sum_i d_i (2 u_i - d_i), so the half is sum_i d_i u_i + sum_{i<j} d_i d_j: no two terms cancel. Both
    grow with u and fall with the eigenvalues of D.
    """
    shifted = np.concatenate([np.full(r - 1, np.inf), D.high])[: len(upper)]
    d = upper - np.minimum(upper, shifted)
    later = np.cumsum(d[::-1])[::-1] - d
    return float(d.sum()), float((d * (upper + later)).sum())


def last_terms(network: CompressedNetwork) -> float:
    """[l_n(D_1)]_+ [l_m(-D_2)]_+ with Ritz values in the Krylov bases for the eigenvalues: never above Delta*.

    Delta* stays a lower bound when its sums run over fewer indices, the same ones in Delta and Delta^(2), and when a
    term of Dbar is made smaller. The last index alone, with 0 for Dbar there, leaves Delta_21 = [l_n(D_1)]_+,
    Delta_21^(2) = -Delta_21^2, and the same for D_23: their product. Ritz values, the eigenvalues of P^T D P, never
    exceed the eigenvalues of the same index (Cauchy).
    """
    M_1, M_2, M_3 = network.surroundings  # W_2^T P_1 and W_2 P_2 lie whole in them
    k_1, k_2 = network.core.dims[1:-1]
    D_1 = (M_1.T @ M_1)[:k_1, :k_1] - M_2[:k_1] @ M_2[:k_1].T
    D_2 = M_2[:, :k_2].T @ M_2[:, :k_2] - (M_3 @ M_3.T)[:k_2, :k_2]
    slack = uncertainty(max(M_2.shape), *(np.vdot(M, M) for M in (M_1, M_2, M_3)))
    ritz_1, ritz_2 = (Spectrum(np.linalg.eigvalsh(D)[::-1], slack) for D in (D_1, -D_2))
    return ritz_1.least(network.dims[0]) * ritz_2.least(network.dims[-1])
