"""What the theorems see of the imbalance: the eigenvalues of all D_l, and what they are uncertain by."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.network import LinearNetwork, Network

TOLERANCE = 1e-12
"""An eigenvalue of D_l within TOLERANCE max(||W_l||_F^2, ||W_{l+1}||_F^2) of 0 counts as 0 where a theorem asks for a
sign: about its round-off. What is so forgiven is taken off alpha."""
EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a symmetric matrix, descending, each known up to `slack`."""

    values: np.ndarray
    slack: float = 0.0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def negated(self) -> Spectrum:
        """Those of the matrix times -1."""
        return Spectrum(-self.values[::-1], self.slack)

    def divided(self, unit: float) -> Spectrum:
        """Those of the matrix over a number."""
        return Spectrum(self.values / unit, self.slack / unit)

    @property
    def low(self) -> np.ndarray:
        """Lower bounds of all."""
        return self.values - self.slack

    @property
    def high(self) -> np.ndarray:
        """Upper bounds of all."""
        return self.values + self.slack

    def least(self, index: int) -> float:
        """A lower bound of [l_index]_+, counted from 1; 0 beyond the order."""
        return max(float(self.low[index - 1]), 0.0) if index <= len(self) else 0.0

    def most(self, index: int) -> float:
        """An upper bound of [l_index]_+, counted from 1; 0 beyond the order."""
        return max(float(self.high[index - 1]), 0.0) if index <= len(self) else 0.0


def uncertainty(width: int, *squares: float) -> float:
    """How far the computed eigenvalues of sums of Gram matrices may be off: 8 (width + 4) eps times these squares.

    squares: ||.||_F^2 of the factors; width: the longest of their sides. A sum of k products is off by k eps of its
    terms' sizes at most, and an eigenvalue solver by a small multiple of the order times eps of the norm.
    """
    return 8 * (width + 4) * EPS * float(np.sum(squares)) + width * float(np.finfo(float).tiny)


def spectra(network: Network) -> list[Spectrum] | None:
    """The eigenvalues of D_1 .. D_{L-1}; None where the full layers are not at hand as arrays.

    Of a compressed network with two layers the core has all that are not 0.
    """
    if isinstance(network, CompressedNetwork) and network.depth == 2:
        network = network.core
    if not isinstance(network, LinearNetwork) or not network.is_dense:
        return None
    pairs = zip(network.imbalance_eigenvalues, pairwise(network.weights), strict=True)
    return [
        Spectrum(values, uncertainty(max(*W.shape, V.shape[1]), np.vdot(W, W), np.vdot(V, V)))
        for values, (W, V) in pairs
    ]


NEEDS_ALL = "it needs all eigenvalues of the D_l: the full layers, as arrays"


def slacks(network: Network, tolerance: float) -> list[float]:
    """For each D_l how far from 0 an eigenvalue may be to count as 0."""
    squares = [float(np.vdot(W, W)) for W in network.weights]
    return [tolerance * max(pair) for pair in pairwise(squares)]


def narrow(network: Network, needed: int) -> str | None:
    """The first hidden layer below the width that a theorem needs, in words; None where all are as wide."""
    for layer, width in enumerate(network.dims[1:-1], start=1):
        if width < needed:
            return f"it needs hidden widths of at least {needed}, and h_{layer} = {width}"
    return None
