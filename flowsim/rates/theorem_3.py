"""Any depth: Theorem 3 and Corollary 2 of [MVM23], for unimodal and for homogeneous imbalance, corrected.

Cumulative imbalances of unimodal weights (D_l >= 0 for l < l*, D_l <= 0 for l >= l*):
    d_(i) = sum_{l=i}^{l*-1} l_n(D_l) for i < l*,   d_(i) = sum_{l=l*}^{i} l_m(-D_l) for i >= l*.
`tolerance` is relative (flowsim.rates.imbalance.TOLERANCE): an eigenvalue that far on the wrong side of 0 counts as 0.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from scipy.optimize import brentq

from flowsim.rates.certificate import Certificate, along_trajectory, at_this_instant, refused
from flowsim.rates.imbalance import NEEDS_ALL, TOLERANCE, positive, singular, slacks, spectra
from flowsim.rates.margin import margin


def theorem_3_unimodal(network: Any, loss: Any = None, tolerance: float = TOLERANCE) -> Certificate:
    """alpha = scale^{2} d_(1) ... d_(L-1) for unimodal imbalance, along the whole trajectory; the rate needs A1 only.

    Source: [MVM23], Theorem 3, eq. (17). Where several l* fit (some D_l = 0), the best is taken. For L = 2 it is the
    better half of Theorem 1 when D has a sign, for L = 3 it equals Theorem 2.
    """
    name = "theorem-3-unimodal"
    values = spectra(network)
    if values is None:
        return refused(name, NEEDS_ALL)
    allowed = slacks(network, tolerance) if network.is_dense else [0.0]
    candidates = [
        _product_at(values, peak, network.dims[0], network.dims[-1])
        for peak in range(1, network.depth + 1)
        if _is_peak(values, allowed, peak)
    ]
    if not candidates:
        found = "; ".join(f"D_{i} from {v[-1]:.4g} to {v[0]:.4g}" for i, v in enumerate(values, start=1))
        return refused(name, f"the imbalance is not unimodal (tolerance {max(allowed):.2g}): eigenvalues of {found}")
    return along_trajectory(name, network, loss, network.scale**2 * max(candidates))


def _is_peak(values: list[np.ndarray], allowed: list[float], peak: int) -> bool:
    """D_l >= 0 for l < l*, D_l <= 0 for l >= l*."""
    rising = all(v[-1] >= -slack for v, slack in zip(values[: peak - 1], allowed, strict=False))
    return rising and all(v[0] <= slack for v, slack in zip(values[peak - 1 :], allowed[peak - 1 :], strict=True))


def _product_at(values: list[np.ndarray], peak: int, n: int, m: int) -> float:
    left = np.cumsum([positive(v, n) for v in values[: peak - 1]][::-1])
    right = np.cumsum([positive(-v[::-1], m) for v in values[peak - 1 :]])
    return float(prod([*left, *right]))


def homogeneous_imbalance(network: Any, tolerance: float) -> tuple[np.ndarray | None, str]:
    """([d_1, ..., d_{L-1}], "") where n = m and D_l = d_l I for all l, else (None, the reason)."""
    values = spectra(network)
    if values is None or not network.is_dense:
        return None, NEEDS_ALL
    if network.dims[0] != network.dims[-1]:
        return None, f"it holds for n = m only, and n = {network.dims[0]}, m = {network.dims[-1]}"
    for layer, (v, slack) in enumerate(zip(values, slacks(network, tolerance), strict=True), start=1):
        if v[0] - v[-1] > slack:
            return None, (
                f"D_{layer} is no multiple of I: its eigenvalues run from {v[-1]:.4g} to {v[0]:.4g}"
                f" (tolerance {slack:.2g})"
            )
    return np.array([v.mean() for v in values]), ""


def excesses(d: np.ndarray) -> np.ndarray:
    """w_l^2 - min_k w_k^2 of scalar layers with w_l^2 - w_{l+1}^2 = d_l: 0 once, the cumulative imbalances else."""
    squares = np.concatenate([[0.0], -np.cumsum(d)])
    return squares - squares.min()


def _printed_bound(d: np.ndarray, sigma: float) -> float:
    """sqrt((prod d_(i))^2 + (L sigma^{2-2/L})^2)."""
    L = len(d) + 1
    return float(np.hypot(np.prod(np.sort(excesses(d))[1:]), L * sigma ** (2 - 2 / L)))


def sharp_bound(d: np.ndarray, sigma: float) -> float:
    """sum_l prod_{k != l} w_k^2 of the scalar network with imbalances d and product sigma."""
    floor = excesses(d)
    top = sigma ** (2 / len(floor))
    least = 0.0  # min_k w_k^2
    if sigma > 0:
        least = top * float(brentq(lambda x: np.log((floor + top * x) / top).sum(), 1e-300, 1 + 1e-9, xtol=1e-300))
    return float(sum(np.prod(np.delete(floor + least, layer)) for layer in range(len(floor))))


def theorem_3_homogeneous(network: Any, loss: Any = None, tolerance: float = TOLERANCE) -> Certificate:
    """lambda_min(T) >= scale^2 sqrt((prod d_(i))^2 + (L sigma_min^{2-2/L})^2) for D_l = d_l I, n = m, at these weights.

    sigma_min that of W_1 ... W_L. Source: [MVM23], Theorem 3, eq. (19), which is printed without n = m and fails for
    n != m: for every full-rank balanced two-layer network with n = 3, m = 2.
    """
    name = "theorem-3-homogeneous"
    d, reason = homogeneous_imbalance(network, tolerance)
    if d is None:
        return refused(name, reason, scope="instant")
    return at_this_instant(name, network.scale**2 * _printed_bound(d, _least(network)))


def corollary_2(network: Any, loss: Any = None, tolerance: float = TOLERANCE) -> Certificate:
    """alpha = scale^2 sqrt((prod d_(i))^2 + (L nu_min^{2-2/L})^2) for D_l = d_l I, n = m, along the whole trajectory.

    nu_min is the margin of flowsim.rates.margin under A2, 0 under A1 alone. Source: [MVM23], Corollary 2, whose print
    has L nu_min in place of L nu_min^{2-2/L}: with L = 3, y = 0.1, all w = 0.095^{1/3}, t = 15 the loss is 89 times
    that bound.
    """
    return _with_margin("corollary-2", network, loss, tolerance, _printed_bound, None)


def homogeneous_sharp(network: Any, loss: Any = None, tolerance: float = TOLERANCE) -> Certificate:
    """alpha = scale^2 sum_l prod_{k != l} w_k^2, w the scalar network with imbalances d_l and product nu_min; n = m.

    Ours, and never below Corollary 2: for D_l = d_l I the prefixes and suffixes are polynomials in H = W_1 W_1^T and
    H' = W_L^T W_L, A_l A_l^T = prod_{k<l} (H + c_k), c_1 = 0, c_{k+1} = c_k - d_k. So T splits into scalar networks,
    and its least eigenvalue is that of the scalar network with product sigma_min(W), which grows with sigma_min(W).
    """
    remark = "beyond the paper: exact for homogeneous imbalance at sigma_min(W) = nu_min"
    return _with_margin("homogeneous-sharp", network, loss, tolerance, sharp_bound, remark)


def _with_margin(name: str, network: Any, loss: Any, tolerance: float, bound: Any, remark: str | None) -> Certificate:
    d, reason = homogeneous_imbalance(network, tolerance)
    if d is None:
        return refused(name, reason)
    nu, _ = margin(network, loss)
    least = nu(network.dims[0]) / network.scale if nu is not None else 0.0
    return along_trajectory(name, network, loss, network.scale**2 * bound(d, least), remark)


def _least(network: Any) -> float:
    """sigma_min(W_1 ... W_L), the model's scale left out."""
    return singular(network.product, min(network.product.shape)) / network.scale


def arora_2018(network: Any, loss: Any = None, tolerance: float = TOLERANCE) -> Certificate:
    """lambda_min(T) = scale^2 L sigma_min(W)^{2-2/L} for balanced weights (all D_l = 0) and n = m, at these weights.

    Source: Arora, Cohen, Hazan (ICML 2018), as compared with in [MVM23]; for n != m it fails.
    """
    name = "arora-2018"
    d, reason = homogeneous_imbalance(network, tolerance)
    if d is None:
        return refused(name, reason, scope="instant")
    if (np.abs(d) > slacks(network, tolerance)).any():
        found = ", ".join(f"{x:.4g}" for x in d)
        return refused(name, f"the weights are not balanced: D_l = d_l I, d = {found}", scope="instant")
    return at_this_instant(name, network.scale**2 * network.depth * _least(network) ** (2 - 2 / network.depth))
