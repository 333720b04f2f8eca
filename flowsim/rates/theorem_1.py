"""Two layers: Lemma 3 and Theorem 1 of [MVM23], corrected, from the spectrum of D = D_1."""

from __future__ import annotations

from math import hypot
from typing import NamedTuple

from flowsim.losses import Loss
from flowsim.network import Network
from flowsim.rates.certificate import Certificate, along_trajectory, at_this_instant, refused
from flowsim.rates.imbalance import Spectrum, spectra
from flowsim.rates.margin import Margin, margin, present


class Eigenvalues(NamedTuple):
    """[l_1(D)]_+ and [l_1(-D)]_+, at most; [l_n(D)]_+ and [l_m(-D)]_+, at least."""

    top: float
    bottom: float
    nth: float
    mth: float

    @property
    def Delta(self) -> float:
        """[l_n(D)]_+ + [l_m(-D)]_+."""
        return self.nth + self.mth


def two_layer_eigenvalues(D: Spectrum, n: int, m: int) -> Eigenvalues:
    """What the theorems see of D.

    In [MVM23] they stand as Delta+ = [l_1(D)]_+ - [l_n(D)]_+ and Delta- = [l_1(-D)]_+ - [l_m(-D)]_+.
    """
    return Eigenvalues(D.most(1), D.negated.most(1), D.least(n), D.negated.least(m))


def _right_side(values: Eigenvalues, at_m: float, at_n: float) -> float:
    """1/2 (-Delta+ + sqrt((Delta+ + Delta)^2 + 4 at_m^2) - Delta- + sqrt((Delta- + Delta)^2 + 4 at_n^2)).

    Delta+ + Delta = [l_1(D)]_+ + [l_m(-D)]_+, Delta- + Delta alike: Delta and two gains, none of which cancels; it
    falls with [l_1]_+ and grows with everything else.
    """
    gains = _gain(values.top + values.mth, 2 * at_m) + _gain(values.bottom + values.nth, 2 * at_n)
    return values.Delta + 0.5 * gains


def _gain(P: float, x: float) -> float:
    """sqrt(P^2 + x^2) - P for P, x >= 0."""
    return x * (x / (hypot(P, x) + P)) if x > 0 else 0.0


def _two_layers(network: Network) -> tuple[Eigenvalues | None, str]:
    if network.depth != 2:
        return None, f"it is for two layers, the network has {network.depth}"
    found = spectra(network)
    assert found is not None  # the first and the last layer are always arrays
    return two_layer_eigenvalues(found[0], network.dims[0], network.dims[-1]), ""


def with_product(network: Network, values: Eigenvalues, nu: Margin) -> float:
    """The right side of lemma_3 for a product that keeps to a margin, the model's scale included."""
    n, m = network.dims[0], network.dims[-1]
    return network.scale**2 * _right_side(values, nu(m) / network.scale, nu(n) / network.scale)


def lemma_3(network: Network, loss: Loss | None = None) -> Certificate:
    """lambda_min(T) >= 1/2 (-Delta+ + sqrt((Delta+ + Delta)^2 + 4 sigma_m(W)^2)
                             - Delta- + sqrt((Delta- + Delta)^2 + 4 sigma_n(W)^2))   at the present weights.

    W = W_1 W_2 (the model's scale left out, alpha times its square); Delta+, Delta- as in two_layer_eigenvalues, Delta
    = [l_n(D)]_+ + [l_m(-D)]_+; equality for n = m = 1. Source: [MVM23], Lemma 3, eq. (9). The print pairs Delta+ with
    sigma_n and Delta- with sigma_m, which is false for n != m: W_1 = diag(10, 0.1), W_2 = (0.1, 0)^T has lambda_min(T)
    = 0.02, the printed bound is 1.005.
    """
    values, reason = _two_layers(network)
    if values is None:
        return refused("lemma-3", reason, scope="instant")
    return at_this_instant("lemma-3", with_product(network, values, present(network)))


def theorem_1_A1(network: Network, loss: Loss | None = None) -> Certificate:
    """alpha = scale^2 Delta, Delta = [l_n(D)]_+ + [l_m(-D)]_+, along the whole trajectory ([MVM23], Theorem 1).

    The rate alpha gamma needs A1 only.
    """
    values, reason = _two_layers(network)
    if values is None:
        return refused("theorem-1-A1", reason)
    return along_trajectory("theorem-1-A1", network, loss, network.scale**2 * values.Delta)


def theorem_1_A2(network: Network, loss: Loss | None = None) -> Certificate:
    """The right side of lemma_3 with sigma_k(W) replaced by the margin nu_k, along the whole trajectory, under A2.

    Source: [MVM23], Theorem 1, eq. (12). The print pairs Delta+ with nu_n (see lemma_3) and lacks the factor 1/2: with
    y = 1, w = (0.95, 0.95), t = 2 the loss exceeds that bound 766 times over.
    """
    name = "theorem-1-A2"
    values, reason = _two_layers(network)
    if values is None:
        return refused(name, reason)
    nu, reason = margin(network, loss)
    if nu is None:
        return refused(name, reason)
    return along_trajectory(name, network, loss, with_product(network, values, nu))
