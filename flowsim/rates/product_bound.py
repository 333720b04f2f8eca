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

The proof of Theorem 2 gives, for a = lambda_n(W_1 W_1^T), sigma_n(W_1 W_2)^2 >= 1/2 (Delta_21^(2) + a^2) and
a >= Delta_21. Besides, with w the right singular vector W_1^T v of W_1 with |w|^2 = a, p <= |W_2^T w|^2 = a^2 +
w^T D_21 w <= a^2 + delta_1 a, which bounds a from below by p. In all, with b and q the same from the right,
    lambda_min(T) >= sigma_n(W_1 W_2)^2 + lambda_n(W_1 W_1^T) lambda_m(W_3^T W_3) + sigma_m(W_2 W_3)^2 >= p + a b + q.
It is never below Delta*, strictly above where p_* > 1/2 (Delta_21^(2) + Delta_21^2), and exact, 3 nu^{4/3}, for
balanced weights with n = m. For n < m only the left half gains: sigma_m(W) = 0.

For n = m = 1 the three terms are tied to each other: |W_1 W_2|^2 b >= nu^2 and |W_2 W_3|^2 a >= nu^2 (Cauchy-Schwarz on
W = W_1 W_2 W_3), so that lambda_min(T) is at least the minimum over a, b above their bounds of
    max(p, 1/2 (Delta_21^(2) + a^2), nu^2 / b) + a b + max(q, 1/2 (Delta_23^(2) + b^2), nu^2 / a),
a convex function of log a and log b.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.imbalance import NEEDS_ALL, positive, spectra
from flowsim.rates.margin import margin
from flowsim.rates.theorem_2 import deltas

NAME = "theorem-2-product"
SEARCH, MISSED = {"xatol": 1e-10}, 1e-9
"""The searches in log a and log b end within 1e-10; a sum of products of powers up to 3 changes by less than 1e-9."""


def theorem_2_product(network: Any, loss: Any = None) -> Certificate:
    """alpha = scale^2 (p + a b + q) of this module, nu = nu_min(n,m) the margin, L = 3, under A2: at least Theorem 2.

    Not in [MVM23]; the proof stands at the head of this module.
    """
    if network.depth != 3:
        return refused(NAME, f"it is for three layers, the network has {network.depth}")
    values = spectra(network)
    if values is None:
        return refused(NAME, NEEDS_ALL)
    nu, reason = margin(network, loss)
    if nu is None:
        return refused(NAME, reason)
    n, m = network.dims[0], network.dims[-1]
    alpha = network.scale**2 * product_bound(values[0], values[1], n, m, nu(min(n, m)) / network.scale)
    return along_trajectory(NAME, network, loss, alpha, "beyond the paper: Theorem 2 with the margin of the product")


def product_bound(l_1: np.ndarray, l_2: np.ndarray, n: int, m: int, nu: float) -> float:
    """p + a b + q from the eigenvalues of D_1, D_2 (descending) and nu <= sigma_min(W), the model's scale left out."""
    Delta_21, half_21, Delta_23, half_23 = deltas(l_1, l_2, n, m)
    top_21, top_12 = positive(-l_1[::-1], 1), positive(l_1, 1)  # [l_1(D_21)]_+, [l_1(-D_21)]_+
    top_23, top_32 = positive(l_2, 1), positive(-l_2[::-1], 1)
    p, a = _half(Delta_21, half_21, nu if n <= m else 0.0, top_21, top_32)
    q, b = _half(Delta_23, half_23, nu if m <= n else 0.0, top_23, top_12)
    if n == m == 1 and nu > 0:
        return _tied((p, a, 2 * half_21 - Delta_21**2), (q, b, 2 * half_23 - Delta_23**2), nu)
    return p + a * b + q


def _tied(left: tuple[float, float, float], right: tuple[float, float, float], nu: float) -> float:
    """The minimum for n = m = 1, less what the search may have missed of it."""
    (p, a_0, squares_21), (q, b_0, squares_23) = left, right

    def total(a: float, b: float) -> float:
        first = max(p, 0.5 * (squares_21 + a * a), nu**2 / b)
        return first + a * b + max(q, 0.5 * (squares_23 + b * b), nu**2 / a)

    top = total(a_0, b_0)
    longest_a = log(max(a_0 * (1 + 1e-6), min(top / b_0, sqrt(2 * top + abs(squares_21)))))
    longest_b = log(max(b_0 * (1 + 1e-6), min(top / a_0, sqrt(2 * top + abs(squares_23)))))

    def best_b(log_a: float) -> float:
        a = exp(log_a)
        found = minimize_scalar(lambda log_b: total(a, exp(log_b)), bounds=(log(b_0), longest_b), options=SEARCH)
        return min(float(found.fun), total(a, b_0))

    found = minimize_scalar(best_b, bounds=(log(a_0), longest_a), options=SEARCH)
    return min(float(found.fun), best_b(log(a_0)), top) * (1 - MISSED)


def _half(Delta: float, half: float, nu: float, near: float, far: float) -> tuple[float, float]:
    """(p, a): the lower bounds of sigma_n(W_1 W_2)^2 and lambda_n(W_1 W_1^T); half = 1/2 (Delta^(2) + Delta^2)."""
    p = max(half, _least_square(nu, near, far))
    a = max(Delta, 2 * p / (near + sqrt(near**2 + 4 * p)) if p > 0 else 0.0)
    return max(p, half + 0.5 * (a - Delta) * (a + Delta)), a


def _least_square(nu: float, near: float, far: float) -> float:
    """p_*: the root of far p + 1/2 (near p + sqrt(near^2 p^2 + 4 p^3)) = nu^2."""
    if nu <= 0:
        return 0.0
    top = nu ** (4 / 3)  # p = top x, 0 <= x <= 1: then all terms are of the size of nu^2 / top
    near, far = near * top / nu**2, far * top / nu**2
    return top * float(brentq(lambda x: far * x + 0.5 * (near * x + sqrt((near * x) ** 2 + 4 * x**3)) - 1, 0, 1 + 1e-9))
