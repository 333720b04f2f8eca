"""Upper bounds of the spectral norms of the layers."""

from __future__ import annotations

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.compression.sampling import SampledBases
from flowsim.network import Network

EPS = float(np.finfo(float).eps)
FEW = 600
"""A layer whose shorter side is no longer than this has its singular values computed."""
ABOVE = 1e-9
"""What a norm found by Lanczos may at first be too small by, relative; ten times that, and so on, where it is not."""
UNLIKELY = 12.0
"""A Gaussian h x k matrix has a norm above sqrt(h) + sqrt(k) + u with a probability of at most exp(-u^2 / 2) (Davidson
and Szarek 2001): 5e-32 for this u."""


def layer_norms(network: Network) -> list[float] | None:
    """At least |W_l|, l = 1 .. L; None where layers are not at hand.

    Of a network drawn in compressed form they hold but with probability L exp(-UNLIKELY^2 / 2).
    """
    if not isinstance(network, CompressedNetwork):
        return [layer_norm(W) for W in network.weights] if network.is_dense else None
    bases = network.bases
    if bases.weights is not None:
        arrays = [W for W in bases.weights if isinstance(W, np.ndarray)]
        return [layer_norm(W) for W in arrays] if len(arrays) == network.depth else None
    if isinstance(bases, SampledBases):
        pairs = zip(bases.deviations, network.dims, network.dims[1:], strict=False)
        return [sigma * (rows**0.5 + columns**0.5 + UNLIKELY) for sigma, rows, columns in pairs]
    if network.depth == 2:
        return [layer_norm(W) for W in network.core.weights]
    return None


def layer_norm(W: np.ndarray) -> float:
    """At least |W|: computed where the matrix is small; else a Cholesky factor of b^2 I - W W^T proves b >= |W|."""
    from scipy.linalg import LinAlgError, cholesky
    from scipy.sparse.linalg import eigsh

    short, long = min(W.shape), max(W.shape)
    slack = 8 * (long + 4) * EPS
    if short <= FEW:
        return float(np.linalg.norm(W, 2)) * (1 + slack)
    if not W.any():
        return 0.0
    gram = W @ W.T if W.shape[0] == short else W.T @ W
    found, above = float(eigsh(gram, 1, which="LA", tol=1e-10, return_eigenvectors=False)[0]), ABOVE
    while True:
        try:
            cholesky(found * (1 + above) * np.eye(short) - gram, overwrite_a=True, check_finite=False)
        except LinAlgError:
            above *= 10
        else:
            rounded = slack * float(np.trace(gram))
            return float(np.sqrt(found * (1 + above) + rounded))
