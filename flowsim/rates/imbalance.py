"""What the theorems see of the imbalance: the eigenvalues of all D_l, and when one counts as 0."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from flowsim.reduction import CompressedNetwork

TOLERANCE = 1e-12
"""An eigenvalue of D_l within TOLERANCE max(||W_l||_F^2, ||W_{l+1}||_F^2) of 0 counts as 0: about its round-off."""
ROUND_OFF = 1e-14
"""The same for the sums of eigenvalues that are rates: what is 0 by its rank must not make a rate of 1e-15."""


def spectra(network: Any) -> list[np.ndarray] | None:
    """The eigenvalues of D_1 .. D_{L-1}, descending; None where the full layers are not at hand as arrays.

    Of a compressed network with two layers the core has all that are not 0. What is within round-off of 0 is 0.
    """
    if isinstance(network, CompressedNetwork) and network.depth == 2:
        network = network.core
    if not network.is_dense:
        return None
    pairs = zip(network.imbalance_eigenvalues, slacks(network, ROUND_OFF), strict=True)
    return [np.where(np.abs(values) > slack, values, 0.0) for values, slack in pairs]


NEEDS_ALL = "it needs all eigenvalues of the D_l: the full layers, as arrays"


def positive(descending: np.ndarray, index: int) -> float:
    """[l_index]_+, counted from 1; 0 beyond the order."""
    return max(float(descending[index - 1]), 0.0) if index <= len(descending) else 0.0


def slacks(network: Any, tolerance: float) -> list[float]:
    """For each D_l how far from 0 an eigenvalue may be to count as 0."""
    squares = [float(np.vdot(W, W)) for W in network.weights]
    return [tolerance * max(pair) for pair in pairwise(squares)]


def singular(W: np.ndarray, index: int) -> float:
    """sigma_index(W), counted from 1; 0 beyond the shorter side."""
    values = np.linalg.svd(W, compute_uv=False)
    return float(values[index - 1]) if index <= len(values) else 0.0
