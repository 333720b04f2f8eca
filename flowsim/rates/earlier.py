"""Bounds before [MVM23], to compare with: Yun et al. 2020, Min et al. 2021 (Arora et al. 2018: homogeneous)."""

from __future__ import annotations

from flowsim.losses import Loss, SquaredLoss
from flowsim.network import Network
from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.imbalance import NEEDS_ALL, TOLERANCE, slacks, spectra
from flowsim.rates.theorem_1 import theorem_1_A1
from flowsim.rates.theorem_3 import half


def yun_2020(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
    """alpha = scale^2 lambda^{L-1} for D_l >= 0 (l < L-1), D_{L-1} >= lambda I and h_{L-1} >= n.

    Source: Yun, Krishnan, Mobahi (ICLR 2021, "A unifying view on implicit bias"), as compared with in [MVM23]. It is
    the half of Theorem 3 left of l* = L with l_n(D_l) = 0 for l < L - 1 and lambda, the least, for l_n(D_{L-1}).
    Without h_{L-1} >= n it fails: W_1 the first two columns of I_3, W_2 = 0.
    """
    name = "yun-2020"
    found = spectra(network)
    if found is None or not network.is_dense:
        return refused(name, NEEDS_ALL)
    n, last = network.dims[0], network.dims[-2]
    if last < n:
        return refused(name, f"it needs h_(L-1) >= n, and h_(L-1) = {last}, n = {n}")
    for layer, (D, slack) in enumerate(zip(found, slacks(network, tolerance), strict=True), start=1):
        if D.values[-1] < -slack:
            return refused(name, f"D_{layer} has the eigenvalue {D.values[-1]:.4g} < 0 (tolerance {slack:.2g})")
    leading = [*(min(float(D.low[-1]), 0.0) for D in found[:-1]), float(found[-1].low[-1])]
    return along_trajectory(name, network, loss, network.scale**2 * half(found, n, leading))


def min_2021(network: Network, loss: Loss | None = None) -> Certificate:
    """alpha = scale^2 Delta for two layers and the squared loss (Min, Tarmoun, Vidal, Mallada, ICML 2021).

    Theorem 1 of [MVM23] extends it to all losses with A1.
    """
    name = "min-2021"
    if loss is not None and type(loss) is not SquaredLoss:
        return refused(name, "it is for the squared loss ||Y - W||_F^2 / 2")
    same = theorem_1_A1(network, loss)
    return Certificate(name, same.applies, same.alpha, rate=same.rate, reason=same.reason, excess=same.excess)
