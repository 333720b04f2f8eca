"""Any depth, imbalance near multiples of the identity: Theorem 3 and Corollary 2 of [MVM23] and Arora et al. 2018,
corrected, and a sharp bound of ours that they follow from.

Let r_l <= D_l <= s_l, and y_0 a unit vector of R^n, y_l = W_l^T y_{l-1}, g_l = |y_l|^2 / |y_{l-1}|^2. From
W_{l+1} W_{l+1}^T = W_l^T W_l - D_l and |W_l y_l| |y_{l-1}| >= <W_l y_l, y_{l-1}> = |y_l|^2,
    g_{l+1} >= g_l - s_l,   so that   sigma_n(W_1 .. W_l)^2 >= prod_{k<=l} [x - s_1 - .. - s_{k-1}]_+,
x = l_n(W_1 W_1^T). The transposed network, with -D_{L-1}, .., -D_1 in the place of D_1, .., D_{L-1} and
z = l_m(W_L^T W_L) in that of x, bounds sigma_m(W_l .. W_L)^2, and
    lambda_min(T) >= sum_l sigma_n(W_1 .. W_{l-1})^2 sigma_m(W_{l+1} .. W_L)^2.

What x is at least. (a) By Weyl, x >= l_n(W_2 W_2^T) + r_1 >= .. >= r_1 + .. + r_k as long as h_1, .., h_k >= n.
(b) For n <= m from sigma_min(W) >= nu: let y_0 be an eigenvector of W_1 W_1^T for x, D_l = d_l I + E_l, ||E_l|| <= e_l,
and r_{l+1} = W_{l+1} W_{l+1}^T y_l - (x - d_1 - .. - d_l) y_l = W_l^T r_l - E_l y_l (r_1 = 0). Then
    |y_{l+1}|^2 <= (x - d_1 - .. - d_l) |y_l|^2 + |y_l| |r_{l+1}|,   |r_{l+1}| <= ||W_l|| |r_l| + e_l |y_l|,
bounds |y_L| = |W^T y_0| >= nu by a function of x that grows with it. (c) The norms: with w the first left singular
vector of W_1 in the place of y_0, ||W||^2 >= prod_l [||W_1||^2 - s_1 - .. - s_{l-1}]_+, hence ||W_1||^2 <=
max_l (s_1 + .. + s_{l-1}) + ||W||^{2/L}, and ||W_l||^2 <= ||W_1||^2 - r_1 - .. - r_{l-1}.

For D_l = d_l I nothing is lost with n = m: the bound is the least eigenvalue of the scalar network w_l^2 - w_{l+1}^2 =
d_l with product sigma_min(W), which grows with it; balanced, L sigma_min^{2-2/L}, and sigma_min^{2-2/L} for n != m.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import sqrt

import numpy as np

from flowsim.losses import Loss
from flowsim.network import Network
from flowsim.rates.certificate import Certificate, along_trajectory, at_this_instant, refused
from flowsim.rates.imbalance import NEEDS_ALL, TOLERANCE, Spectrum, narrow, slacks, spectra
from flowsim.rates.margin import Margin, margin, present

BISECTIONS = 70
"""Of the logarithm of x beyond its floor, whose range is at most that of floating point."""
TINY = float(np.finfo(float).tiny)


def chain_bound(D: Sequence[Spectrum], dims: Sequence[int], nu: Margin | None) -> float:
    """The lower bound on lambda_min(T) of this module, the model's scale left out.

    D: the eigenvalues of D_1 .. D_{L-1}; dims: (h_0, .., h_L); nu: the margin of W_1 .. W_L, None where nothing is
    known of the product.
    """
    n, m = dims[0], dims[-1]
    ranges = [(float(one.low[-1]), float(one.high[0])) for one in D]
    mirrored = [(-high, -low) for low, high in reversed(ranges)]
    left = _growths(ranges, dims, nu if n <= m else None)
    right = _growths(mirrored, dims[::-1], nu if m <= n else None)
    before = list(accumulate(left[:-1], lambda a, b: a * b, initial=1.0))
    after = list(accumulate(right[:-1], lambda a, b: a * b, initial=1.0))
    return sum(a * b for a, b in zip(before, reversed(after), strict=True))


def _growths(ranges: Sequence[tuple[float, float]], dims: Sequence[int], nu: Margin | None) -> list[float]:
    """Lower bounds of g_1, .., g_L: [x - s_1 - .. - s_{l-1}]_+."""
    n = dims[0]
    reached = [r for (r, _), k in zip(ranges, range(1, len(dims)), strict=False) if min(dims[1 : k + 1]) >= n]
    floor = max(accumulate(reached, initial=0.0))
    beyond = _beyond(floor, ranges, nu) if nu is not None else 0.0
    bases = accumulate((s for _, s in ranges), lambda base, s: base - s, initial=floor)
    return [max(base + beyond, 0.0) for base in bases]


def _beyond(floor: float, ranges: Sequence[tuple[float, float]], nu: Margin) -> float:
    """The greatest t >= 0, from below, with which x = floor + t keeps |W^T y_0| <= nu."""
    depth, least = len(ranges) + 1, nu(len(nu.values))
    centres = [0.5 * (r + s) for r, s in ranges]
    spreads = [0.5 * (s - r) for r, s in ranges]
    tops = accumulate((s for _, s in ranges), initial=0.0)
    largest = max(tops) + nu.top ** (2 / depth)
    norms = [sqrt(max(largest - below, 0.0)) for below in accumulate((r for r, _ in ranges), initial=0.0)]
    bases = list(accumulate(centres, lambda base, d: base - d, initial=floor))

    def size(t: float) -> float:
        """The bound on |W^T y_0|."""
        y, r = sqrt(max(bases[0] + t, 0.0)), 0.0
        for base, norm, spread in zip(bases[1:], norms, spreads, strict=False):
            r = norm * r + spread * y
            y *= sqrt(max(base + t, 0.0) + r / y) if y > 0 else 0.0
        return y

    low, high = TINY, least ** (2 / depth) + max(0.0, -min(bases))
    if least <= 0 or size(low) > least:
        return 0.0
    for _ in range(BISECTIONS):
        middle = sqrt(low) * sqrt(high)
        low, high = (middle, high) if size(middle) <= least else (low, middle)
    return low


def homogeneous_imbalance(network: Network, tolerance: float) -> tuple[np.ndarray | None, str]:
    """([d_1, ..., d_{L-1}], "") where n = m and D_l = d_l I for all l, else (None, the reason).

    A hidden width below n is refused: lambda_min(T) = 0 there, and a 1 x 1 matrix D_l is a multiple of I whatever it
    is.
    """
    found = spectra(network)
    if found is None or not network.is_dense:
        return None, NEEDS_ALL
    n, m = network.dims[0], network.dims[-1]
    if n != m:
        return None, f"it holds for n = m only, and n = {n}, m = {m}"
    if reason := narrow(network, n):
        return None, reason
    for layer, (D, slack) in enumerate(zip(found, slacks(network, tolerance), strict=True), start=1):
        v = D.values
        if v[0] - v[-1] > slack:
            return None, (
                f"D_{layer} is no multiple of I: its eigenvalues run from {v[-1]:.4g} to {v[0]:.4g}"
                f" (tolerance {slack:.2g})"
            )
    return np.array([D.values.mean() for D in found]), ""


def excesses(d: np.ndarray) -> np.ndarray:
    """w_l^2 - min_k w_k^2 of scalar layers with w_l^2 - w_{l+1}^2 = d_l: 0 once, the cumulative imbalances else."""
    squares = np.concatenate([[0.0], -np.cumsum(d)])
    return squares - squares.min()


def printed_bound(d: np.ndarray, sigma: float) -> float:
    """sqrt((prod d_(i))^2 + (L sigma^{2-2/L})^2)."""
    L = len(d) + 1
    with np.errstate(over="ignore"):
        return float(np.hypot(np.prod(np.sort(excesses(d))[1:]), L * np.float64(sigma) ** (2 - 2 / L)))


def proved(network: Network, nu: Margin | None) -> float:
    """chain_bound of a network whose product keeps to a margin, the model's scale included."""
    found = spectra(network)
    assert found is not None
    return network.scale**2 * chain_bound(found, network.dims, _unscaled(nu, network.scale))


def _unscaled(nu: Margin | None, scale: float) -> Margin | None:
    return None if nu is None else Margin(nu.values / scale, nu.distance / scale)


def _paper(network: Network, d: np.ndarray, nu: Margin | None) -> float:
    """The paper's formula, never above what is proved here for imbalances that are homogeneous up to rounding."""
    sigma = 0.0 if nu is None else nu(len(nu.values)) / network.scale
    return min(network.scale**2 * printed_bound(d, sigma), proved(network, nu))


def theorem_3_homogeneous(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
    """lambda_min(T) >= scale^2 sqrt((prod d_(i))^2 + (L sigma_min^{2-2/L})^2) for D_l = d_l I, n = m, at these weights.

    sigma_min that of W_1 ... W_L; hidden widths of at least n. Source: [MVM23], Theorem 3, eq. (19), which is printed
    without n = m and fails for n != m: for every full-rank balanced two-layer network with n = 3, m = 2.
    """
    name = "theorem-3-homogeneous"
    d, reason = homogeneous_imbalance(network, tolerance)
    if d is None:
        return refused(name, reason, scope="instant")
    return at_this_instant(name, _paper(network, d, present(network)))


def corollary_2(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
    """alpha = scale^2 sqrt((prod d_(i))^2 + (L nu_min^{2-2/L})^2) for D_l = d_l I, n = m, along the whole trajectory.

    nu_min is the margin of flowsim.rates.margin under A2, 0 under A1 alone; hidden widths of at least n. Source:
    [MVM23], Corollary 2, whose print has L nu_min in place of L nu_min^{2-2/L}: with L = 3, y = 0.1, all w =
    0.095^{1/3}, t = 15 the loss is 89 times that bound.
    """
    name = "corollary-2"
    d, reason = homogeneous_imbalance(network, tolerance)
    if d is None:
        return refused(name, reason)
    return along_trajectory(name, network, loss, _paper(network, d, margin(network, loss)[0]))


def homogeneous_sharp(network: Network, loss: Loss | None = None) -> Certificate:
    """alpha = scale^2 times the bound at the head of this module, along the whole trajectory, for any D_l, n and m.

    Ours. sigma_min(W) >= nu_min by the margin under A2; under A1 alone what is certified comes from the imbalance. For
    D_l = d_l I it is never below Corollary 2; the further the D_l are from multiples of I the less it says.
    """
    name = "homogeneous-sharp"
    if spectra(network) is None or not network.is_dense:
        return refused(name, NEEDS_ALL)
    if reason := narrow(network, min(network.dims[0], network.dims[-1])):
        return refused(name, reason)
    remark = "beyond the paper: exact for homogeneous imbalance at sigma_min(W) = nu_min"
    return along_trajectory(name, network, loss, proved(network, margin(network, loss)[0]), remark)


def arora_2018(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
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
    return at_this_instant(name, _paper(network, np.zeros_like(d), present(network)))
