"""Any depth, unimodal imbalance: Theorem 3 of [MVM23].

Unimodal weights with index l* have D_l >= 0 for l < l* and D_l <= 0 for l >= l*. Their cumulative imbalances are
    d_(i) = sum_{l=i}^{l*-1} l_n(D_l) for i < l*,   d_(i) = sum_{l=l*}^{i} l_m(-D_l) for i >= l*.

D_l has a sign up to rounding only. Let D_l >= -delta_l I for l = 1 .. k = l* - 1, and Delta_i = delta_1 + .. +
delta_{i-1}. From W_{l+1} W_{l+1}^T = W_l^T W_l - D_l <= W_l^T W_l + delta_l I and rank(W_1) <= n the eigenvalue of
index n + 1 of W_l W_l^T and of W_l^T W_l is at most Delta_l. Let S_l be the span of the first n eigenvectors of W_l^T
W_l. For a positive semidefinite M that is at most epsilon off S_l, l_n(M) <= l_min(M on S_l) + epsilon (Aronszajn).
Applied to W_{l+1} W_{l+1}^T and to D_l + delta_l I, each at most Delta_{l+1} off S_l since their sum is at most Delta_l
+ delta_l there, it gives for a_l = l_n(W_l W_l^T)
    a_l >= a_{l+1} + l_n(D_l) - 2 Delta_{l+1},   a_l >= l_n(D_l),   a_l >= a_{l+1} - delta_l,   a_{k+1} = 0.
Now let y_0 be a unit vector, y_l = W_l^T y_{l-1} and rho_l the size of its part off S_l over that on S_l, rho_1 = 0.
The part of y_l on S_l grows by W_{l+1}^T, back into S_{l+1}, by sqrt(a_{l+1} - 2 Delta_{l+1}) at least, and what comes
off S_l, or goes off S_{l+1}, by sqrt(Delta_{l+1}) at most. So with
    f_l = sqrt(a_{l+1} - 2 Delta_{l+1}) - sqrt(Delta_{l+1}) rho_l,   rho_{l+1} = sqrt(Delta_{l+1}) (1 + rho_l) / f_l
sigma_n(W_1 .. W_k) >= sqrt(a_1) f_1 .. f_{k-1}, which is (d_(1) .. d_(k))^(1/2) where all delta_l = 0. The other half
is the same for the transposed network, and lambda_min(T) >= sigma_n(W_1 .. W_{l*-1})^2 sigma_m(W_{l*+1} .. W_L)^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import sqrt

from flowsim.losses import Loss
from flowsim.network import Network
from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.imbalance import NEEDS_ALL, TOLERANCE, Spectrum, slacks, spectra


def theorem_3_unimodal(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
    """alpha = scale^2 d_(1) ... d_(L-1) for unimodal imbalance, along the whole trajectory; the rate needs A1 only.

    Source: [MVM23], Theorem 3, eq. (17). Where several l* fit (some D_l = 0), the best is taken. For L = 2 it is the
    better half of Theorem 1 when D has a sign, for L = 3 it equals Theorem 2. An eigenvalue within the tolerance on the
    wrong side of 0 does not refuse the theorem; what it takes off alpha is at the head of this module.
    """
    name = "theorem-3-unimodal"
    found = spectra(network)
    if found is None:
        return refused(name, NEEDS_ALL)
    allowed = slacks(network, tolerance) if network.is_dense else [0.0]
    n, m = network.dims[0], network.dims[-1]
    candidates = [
        half(found[: peak - 1], n) * half([D.negated for D in reversed(found[peak - 1 :])], m)
        for peak in range(1, network.depth + 1)
        if _is_peak(found, allowed, peak)
    ]
    if not candidates:
        ranges = "; ".join(f"D_{i} from {D.values[-1]:.4g} to {D.values[0]:.4g}" for i, D in enumerate(found, start=1))
        return refused(name, f"the imbalance is not unimodal (tolerance {max(allowed):.2g}): eigenvalues of {ranges}")
    return along_trajectory(name, network, loss, network.scale**2 * max(candidates))


def _is_peak(found: Sequence[Spectrum], allowed: Sequence[float], peak: int) -> bool:
    """D_l >= 0 for l < l*, D_l <= 0 for l >= l*."""
    pairs = list(zip(found, allowed, strict=True))
    rising = all(D.values[-1] >= -slack for D, slack in pairs[: peak - 1])
    return rising and all(D.values[0] <= slack for D, slack in pairs[peak - 1 :])


def half(D: Sequence[Spectrum], n: int, leading: Sequence[float] | None = None) -> float:
    """A lower bound of sigma_n(W_1 .. W_k)^2 from D_1 .. D_k, all nearly positive semidefinite; 1 for k = 0.

    leading: lower bounds of l_n(D_1) .. l_n(D_k), if they are not to be these eigenvalues themselves.
    """
    if not D:
        return 1.0
    if min(map(len, D)) < n:
        return 0.0
    leading = [float(one.low[n - 1]) for one in D] if leading is None else leading
    forgiven = [max(0.0, -float(one.low[-1])) for one in D]
    off = list(accumulate(forgiven, initial=0.0))  # Delta_1 .. Delta_{k+1}
    a, squares = 0.0, []
    for nth, delta, most in zip(reversed(leading), reversed(forgiven), reversed(off[1:]), strict=True):
        a = max(a + nth - 2 * most, nth, a - delta, 0.0)
        squares.append(a)
    first, *others = reversed(squares)
    size, rho = sqrt(first), 0.0
    for square, most in zip(others, off[1:-1], strict=True):
        growth = sqrt(max(square - 2 * most, 0.0)) - sqrt(most) * rho
        if growth <= 0:
            return 0.0
        size, rho = size * growth, sqrt(most) * (1 + rho) / growth
    return size * size
