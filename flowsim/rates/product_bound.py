"""Three layers: a bound of ours that sees the product W beside the imbalance, which [MVM23] leaves open.

Let n <= m (else transpose), sigma_n(W) >= nu, and
    delta_1 = [l_1(D_21)]_+, delta_3 = [l_1(-D_23)]_+,  D_21 = W_2 W_2^T - W_1^T W_1,  D_23 = W_2^T W_2 - W_3 W_3^T.
Claim: p = sigma_n(W_1 W_2)^2 satisfies  nu^2 <= delta_3 p + 1/2 (delta_1 p + sqrt(delta_1^2 p^2 + 4 p^3)).
Proof. Let v be the left singular vector of W_1 W_2 with |z|^2 = p, z = W_2^T W_1^T v, so that W_1 W_2 z = p v, and let
s = |W_2 z|^2. From W_1^T W_1 = W_2 W_2^T - D_21,
    |W_2^T W_2 z|^2 = |W_1 W_2 z|^2 + (W_2 z)^T D_21 W_2 z <= p^2 + delta_1 s,
and s = z^T W_2^T W_2 z <= |z| |W_2^T W_2 z|, hence s^2 <= p (p^2 + delta_1 s), which gives
    s <= 1/2 (delta_1 p + sqrt(delta_1^2 p^2 + 4 p^3)).
Last, nu^2 <= |W^T v|^2 = |W_3^T z|^2 = s - z^T D_23 z <= s + delta_3 p. The right side grows with p: solved for p it is
a lower bound p_*, nu^{4/3} for balanced weights.

Theorem 2 has sigma_n(W_1 W_2)^2 >= 1/2 (Delta_21^(2) + Delta_21^2) and a >= Delta_21 for a = lambda_n(W_1 W_1^T).
Besides, with w the right singular vector W_1^T v of W_1 with |w|^2 = a, p <= |W_2^T w|^2 = a^2 + w^T D_21 w <= a^2 +
delta_1 a, which bounds a from below by p. In all, with b and q the same from the right,
    lambda_min(T) >= sigma_n(W_1 W_2)^2 + lambda_n(W_1 W_1^T) lambda_m(W_3^T W_3) + sigma_m(W_2 W_3)^2 >= p + a b + q.
It is never below Delta*, strictly above where p_* > 1/2 (Delta_21^(2) + Delta_21^2), and exact, 3 nu^{4/3}, for
balanced weights with n = m. For n < m only the left half gains: sigma_m(W) = 0.

For n = m = 1 the three terms are tied to each other. There a = |W_1|^2 and b = |W_3|^2 differ by a conserved number,
a - b = tr D_1 + tr D_2; |W_1 W_2|^2 b >= nu^2 and |W_2 W_3|^2 a >= nu^2 (Cauchy-Schwarz on W = W_1 W_2 W_3); and
|W_1 W_2|^2 = 1/2 (tr (W_2 W_2^T)^2 - tr D_21^2 + a^2) >= 1/2 (S_21 + a^2), S_21 = tr Dbar_h1^2 - tr D_21^2. So
lambda_min(T) is at least the minimum, over the one variable that is left, of
    max(p, 1/2 (S_21 + a^2), nu^2 / b) + a b + max(q, 1/2 (S_23 + b^2), nu^2 / a),
a convex function of it: each of its terms is. (For n >= 2 the middle member fails: W_1 = [[0, r], [r, 0]],
W_2 = diag(r, 1), r = 2^(1/2), W_3 = 0 has a = 2, S_21 = 1, and sigma_2(W_1 W_2)^2 = 2 < 2.5.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from flowsim.losses import Loss
from flowsim.network import Network
from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.imbalance import NEEDS_ALL, Spectrum, spectra
from flowsim.rates.margin import Margin, margin
from flowsim.rates.theorem_2 import deltas, dominating

NAME = "theorem-2-product"
ROUNDS = 40
"""Of an iteration that shrinks the logarithm of what is left by a factor 4 each time."""
BISECTIONS = 200
ROUNDING = 1e-13
"""What rounding may do to a sum of a few products of powers, relative to the greatest of them."""


def theorem_2_product(network: Network, loss: Loss | None = None) -> Certificate:
    """alpha = scale^2 (p + a b + q) of this module, nu = nu_min(n,m) the margin, L = 3, under A2: at least Theorem 2.

    Not in [MVM23]; the proof stands at the head of this module.
    """
    if network.depth != 3:
        return refused(NAME, f"it is for three layers, the network has {network.depth}")
    found = spectra(network)
    if found is None:
        return refused(NAME, NEEDS_ALL)
    nu, reason = margin(network, loss)
    if nu is None:
        return refused(NAME, reason)
    return along_trajectory(
        NAME,
        network,
        loss,
        with_margin(network, found, nu),
        "beyond the paper: Theorem 2 with the margin of the product",
    )


def with_margin(network: Network, found: list[Spectrum], nu: Margin) -> float:
    """product_bound of a network, with the eigenvalues of its D_l, whose product keeps to a margin; scale included."""
    n, m = network.dims[0], network.dims[-1]
    return network.scale**2 * product_bound(found[0], found[1], n, m, nu(min(n, m)) / network.scale)


def product_bound(D_1: Spectrum, D_2: Spectrum, n: int, m: int, nu: float) -> float:
    """p + a b + q from the eigenvalues of D_1, D_2 and nu <= sigma_min(W), the model's scale left out."""
    unit = max(*np.abs(D_1.values), *np.abs(D_2.values), nu ** (2 / 3))
    if unit == 0:
        return 0.0
    scaled = D_1.divided(unit), D_2.divided(unit), n, m, nu / (unit * sqrt(unit))
    return _scaled_bound(*scaled) * unit * unit


def _scaled_bound(D_1: Spectrum, D_2: Spectrum, n: int, m: int, nu: float) -> float:
    """product_bound where all its arguments are at most 1: no power of them overflows."""
    D_21, D_23 = D_1.negated, D_2
    Delta_21, half_21, Delta_23, half_23 = deltas(D_1, D_2, n, m)
    p, a = _half(Delta_21, half_21, nu if n <= m else 0.0, D_21.most(1), D_23.negated.most(1))
    q, b = _half(Delta_23, half_23, nu if m <= n else 0.0, D_23.most(1), D_21.negated.most(1))
    plain = p + a * b + q
    if not (n == m == 1 and nu > 0 and min(p, q) > 0):
        return plain
    squares = (_squares(dominating(D_21, D_23, len(D)), D) for D in (D_21, D_23))
    gap = float(D_1.values.sum() + D_2.values.sum())
    blur = len(D_1) * D_1.slack + len(D_2) * D_2.slack
    left, right = (side for side in zip((p, q), squares, (a, b), strict=True))
    ends = (left, right) if gap >= 0 else (right, left)
    return max(plain, _Tied(*ends, abs(gap) - blur, abs(gap) + blur, nu).least())


def _squares(upper: np.ndarray, D: Spectrum) -> float:
    """tr Dbar^2 - tr D^2, at least."""
    own = float((np.maximum(np.abs(D.low), np.abs(D.high)) ** 2).sum())
    return float((upper**2).sum()) - own * (1 + ROUNDING)


@dataclass(frozen=True)
class _Tied:
    """n = m = 1: the end with the larger square a, the other with b, least <= a - b <= most; each end (p, S, least)."""

    larger: tuple[float, float, float]
    smaller: tuple[float, float, float]
    near: float
    far: float
    nu: float

    def least(self) -> float:
        """A lower bound of the minimum over b: by bisection on the slope, then by the tangents there."""
        low = max(self.smaller[2], self.larger[2] - self.far, float(np.finfo(float).tiny))
        value, slope = self._at(low)
        if slope >= 0:
            return value * (1 - ROUNDING)
        high = max(2 * low, self.nu ** (2 / 3))
        while self._at(high)[1] < 0:
            high *= 2
        for _ in range(BISECTIONS):
            middle = sqrt(low) * sqrt(high)
            if not low < middle < high:
                break
            low, high = (middle, high) if self._at(middle)[1] < 0 else (low, middle)
        value, slope = self._at(low)
        return (value + slope * (high - low)) * (1 - ROUNDING)

    def _at(self, b: float) -> tuple[float, float]:
        """The sum at b and its slope."""
        (p, S_a, _), (q, S_b, _) = self.larger, self.smaller
        a, most = max(b + self.near, 0.0), b + self.far
        first = max((p, 0.0), self._square(S_a, a), self._over(b))
        last = max((q, 0.0), self._square(S_b, b), self._over(most))
        return first[0] + a * b + last[0], first[1] + a + (b if a > 0 else 0.0) + last[1]

    @staticmethod
    def _square(S: float, x: float) -> tuple[float, float]:
        return 0.5 * (S + x * x * (1 - ROUNDING)), x

    def _over(self, x: float) -> tuple[float, float]:
        return self.nu * (self.nu / x), -(self.nu / x) * (self.nu / x)


def _half(Delta: float, half: float, nu: float, near: float, far: float) -> tuple[float, float]:
    """(p, a): the lower bounds of sigma_n(W_1 W_2)^2 and lambda_n(W_1 W_1^T); half = 1/2 (Delta^(2) + Delta^2)."""
    p = max(half, _least_square(nu, near, far))
    return p, max(Delta, 2 * p / (near + sqrt(near**2 + 4 * p)) if p > 0 else 0.0)


def _least_square(nu: float, near: float, far: float) -> float:
    """p_*, from below: the p with p (far + 1/2 (near + sqrt(near^2 + 4 p))) = nu^2.

    Solved for the first p, the equation maps what lies above p_* below it, and closer: by a factor 2 in log p at least.
    """

    def other_side(p: float) -> float:
        return nu * (nu / (far + 0.5 * (near + sqrt(near**2 + 4 * p))))

    if nu * nu == 0:
        return 0.0
    p = nu ** (4 / 3)
    for _ in range(ROUNDS):
        p = other_side(other_side(p))
    return other_side(p) * (1 - ROUNDING)
