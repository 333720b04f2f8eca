"""Gradient descent on two layers, from imbalance and margin: Theorem 3.2 of Xu, Min, Tarmoun, Mallada, Vidal (AISTATS
2023), "Linear Convergence of Gradient Descent for Finite Width Over-parametrized Linear Networks with General
Initialization", corrected and sharpened.

With r = step_size c^2 |W| ||E||, x = <T E, E> / ||E||^2, beta >= |T|, E = grad f(W), c the scale, a step gives
W^+ = W - eta T E + eta^2 c^2 E W^T E, so that for a K-smooth f

    f(W^+) - f(W) <= -eta g(x) ||E||^2,   g(x) = x - r - (K eta / 2) (sqrt(beta x) + r)^2,

and g grows with x from lambda_min(T) on where 1 >= (K eta / 2) (beta + r sqrt(beta / lambda_min(T))). Under A1 each
step shrinks f - f* by 1 - eta gamma g(lambda_min(T)) at least (Lemma 3.1 there has the greater (beta + r)^2 last).

lambda_min(T) >= alpha by Theorem 1 of [MVM23] and |W_1|^2 <= 1/2 (l + sqrt(l^2 + 4 |W|^2)), l = [l_1(D)]_+ (W_2
alike, with -D), where D is the imbalance at that step. A step changes it by eta^2 (G_1^T G_1 - G_2 G_2^T), a difference
of two positive semidefinite matrices: by at most eta^2 c^2 max(|W_1|^2, |W_2|^2) ||E||^2 in norm, and
sum eta g ||E||^2 <= L(0) - f*. So all steps together move no eigenvalue of D by more than

    d = eta c^2 max(|W_1|^2, |W_2|^2) (L(0) - f*) / g,

where alpha, the norms and g are those for eigenvalues that may have moved by d: any d for which this holds is enough,
by induction over the steps. The paper takes constants c_1, c_2 for d, the sum of the two norms for their maximum, and
the same singular value p_1 in both halves of alpha, which is false for n != m (see lemma_3).
"""

from __future__ import annotations

from math import log1p, sqrt

from flowsim.losses import Loss, excess
from flowsim.network import Network
from flowsim.rates.certificate import ROUNDING, Certificate, refused
from flowsim.rates.imbalance import Spectrum, spectra
from flowsim.rates.margin import Margin, margin
from flowsim.rates.path import Start
from flowsim.rates.theorem_1 import two_layer_eigenvalues, with_product

NAME = "xu-2023"
ROUNDS, FURTHER = 60, 1.01
"""Of the iteration for d, each FURTHER than what the last one asked for."""


def xu_2023(network: Network, loss: Loss | None, step_size: float) -> Certificate:
    """A rate of gradient descent on two layers with that step size: f - f* shrinks by 1 - eta gamma alpha in a step.

    alpha = g at the bounds of the head of this module, with its proof and its source. For losses under A2; rate, in the
    time t = k step_size, is -log(1 - eta gamma alpha) / eta.
    """
    if network.depth != 2:
        return refused(NAME, f"it is for two layers, the network has {network.depth}")
    start, (nu, reason) = Start.of(network, loss), margin(network, loss)
    if nu is None or start is None or loss is None or not start.K:
        return refused(NAME, reason or "it needs a loss with a known smoothness")
    first = float(excess(loss, network.product))
    alpha = _kept(network, nu, start.K, first, step_size)
    if alpha is None:
        said = f"a step size of {step_size:.3g} is not certified: imbalance and margin may be lost, or are not there"
        return refused(NAME, said)
    alpha *= 1 - ROUNDING
    rate = -log1p(-step_size * start.gamma * alpha) / step_size
    return Certificate(NAME, True, alpha, rate=rate, excess=first, discrete=True)


def _kept(network: Network, nu: Margin, K: float, first: float, step_size: float) -> float | None:
    """g at a d that is enough; None where none is found."""
    found, c = spectra(network), network.scale
    assert found is not None  # the first and the last layer are always arrays
    D, d, size = found[0], 0.0, sqrt(2 * K * first)
    for _ in range(ROUNDS):
        moved = two_layer_eigenvalues(Spectrum(D.values, D.slack + d), network.dims[0], network.dims[-1])
        least = with_product(network, moved, nu)
        norms = [0.5 * (top + sqrt(top**2 + 4 * (nu.top / c) ** 2)) for top in (moved.top, moved.bottom)]
        beta, r = c**2 * sum(norms), step_size * c**2 * nu.top * size
        if not least > 0 or 0.5 * K * step_size * (beta + r * sqrt(beta / least)) > 1:
            return None
        g = least - r - 0.5 * K * step_size * (sqrt(beta * least) + r) ** 2
        if g <= 0:
            return None
        needed = step_size * c**2 * max(norms) * first / g
        if needed <= d:
            return g
        d = FURTHER * needed
    return None
