"""lambda_min(T) from below: what rounding cannot take away, and what errors of the weights can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flowsim.network import LinearNetwork

DENSE, LARGEST = 100, 3000
"""Up to n m = DENSE all eigenvalues are computed; up to LARGEST the least one, by Cholesky factors."""
COUNTS = 1e-9
"""Rounding counts where it may be more than this share of the eigenvalue."""
LONGEST, CONVERGED = 40, 1e-12
"""Lanczos steps at most, and the residual at which they end, over the inverse's greatest eigenvalue."""
EPS = float(np.finfo(float).eps)


class Certain:
    """Lower bounds on lambda_min(T), at least 0: the computed value less what rounding may have added to it.

    A least eigenvalue of an N x N matrix M is uncertain by about N eps ||M||, N = n m and M = T here, N = n and M =
    scale^2 W_1 W_1^T (m and W_2^T W_2) for two layers, where T is their Kronecker sum; the sums over the widths in M
    add the width to N. Where that counts and n m is small, sigma_min(J)^2 with T = J J^T takes its place, sigma
    uncertain by about N eps ||J||. Beyond n m = LARGEST the value is that of LinearNetwork.lambda_min_T, which takes
    off its residual but does not prove that it is the least.

    Called with one network after another, along a path: the last eigenvector is where the next search begins.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.vector: np.ndarray | None = None

    def __call__(self, weights: Sequence[np.ndarray]) -> float:
        network = LinearNetwork(tuple(weights), self.scale)
        n, m, width = network.dims[0], network.dims[-1], max(network.dims)
        if min(network.dims) < min(n, m):
            return 0.0
        if network.depth == 2:
            W, V = network.weights
            return self.scale**2 * (_dense(W @ W.T, width) + _dense(V.T @ V, width))
        if n * m > LARGEST:
            return max(network.lambda_min_T - uncertainty(n * m, width, norm_of_T(weights, self.scale)), 0.0)
        T = np.zeros((n, m, n, m))
        for P, Q in network.grams:
            T += P[:, None, :, None] * Q[None, :, None, :]
        M = T.reshape(n * m, n * m)
        if n * m > DENSE:
            return self._searched(M, width)
        certain = _dense(M, width)
        if uncertainty(n * m, width, float(np.trace(M))) > COUNTS * certain:
            certain = max(certain, _by_factors(network, width))
        return certain

    def _searched(self, M: np.ndarray, width: int) -> float:
        """By Lanczos steps with M^-1 from the last eigenvector. That no eigenvalue is less than the value found, less
        its residual, is proved by a Cholesky factor of what is left of M."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        size = float(np.abs(M).sum(axis=1).max())  # at least ||M||
        unsure, one = uncertainty(len(M), width, size), np.eye(len(M))
        try:
            factor = cho_factor(M + 2 * unsure * one, check_finite=False)
            start = np.random.default_rng(0).standard_normal(len(M)) if self.vector is None else self.vector
            x = _ritz_vector(lambda v: cho_solve(factor, v, check_finite=False), start)
            value = float(x @ (M @ x))
            least = value - float(np.linalg.norm(M @ x - value * x)) - unsure
            cho_factor(M - least * one, check_finite=False)
        except LinAlgError:
            return _dense(M, width)
        self.vector = x
        return max(least - unsure, 0.0)


def _ritz_vector(inverse: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """The eigenvector of the inverse's greatest eigenvalue in a Krylov space, which grows until it is found."""
    basis = [start / np.linalg.norm(start)]
    images: list[np.ndarray] = []
    while True:
        images.append(inverse(basis[-1]))
        V, Z = np.array(basis), np.array(images)
        values, vectors = np.linalg.eigh(0.5 * (V @ Z.T + Z @ V.T))
        x, z = vectors[:, -1] @ V, vectors[:, -1] @ Z
        if len(basis) == LONGEST or np.linalg.norm(z - values[-1] * x) <= CONVERGED * values[-1]:
            return np.asarray(z / np.linalg.norm(z))
        rest = images[-1]
        for _ in range(2):
            rest = rest - (V @ rest) @ V
        if not np.linalg.norm(rest) > EPS * np.linalg.norm(images[-1]):
            return np.asarray(z / np.linalg.norm(z))
        basis.append(rest / np.linalg.norm(rest))


def uncertainty(order: int, width: int, norm: float) -> float:
    """Of an eigenvalue of a matrix of that order and norm, whose entries are sums over so many products."""
    return (order + width) * EPS * norm


def norm_of_T(weights: Sequence[np.ndarray], scale: float) -> float:
    """An upper bound on ||T||: the sum over the layers of ||A_l||^2 ||B_l||^2."""
    grams = LinearNetwork(tuple(weights), scale).grams
    return sum(float(np.linalg.norm(P, 2) * np.linalg.norm(Q, 2)) for P, Q in grams)


def _dense(M: np.ndarray, width: int) -> float:
    """The least eigenvalue of a positive semidefinite matrix less its uncertainty, at least 0."""
    values = np.linalg.eigvalsh(M)
    return max(float(values[0]) - uncertainty(len(M), width, float(values[-1])), 0.0)


def _by_factors(network: LinearNetwork, width: int) -> float:
    J = network.jacobian_factors
    if J.shape[1] < len(J):
        return 0.0
    sigma = np.linalg.svd(J, compute_uv=False)
    return max(float(sigma[-1]) - uncertainty(len(J), width, float(sigma[0])), 0.0) ** 2


def sensitivity(weights: Sequence[np.ndarray], scale: float, radius: float) -> float:
    """kappa with ||J(V) - J(W)|| <= kappa ||V - W||_F for all V with ||V - W||_F <= radius; T = J J^T.

    The change of W_1..W_{l-1} (x) W_{l+1}..W_L with the change delta_k of layer k, in the spectral norm, is at most
    c_lk delta_k with c_lk the product of the norms of what stands between; kappa is the spectral norm of c. In the ball
    the norm of a product of layers a .. b is at most its norm at W and prod (||W_l|| + radius) - prod ||W_l||.
    """
    depth = len(weights)
    sizes = [float(np.linalg.norm(W, 2)) for W in weights]
    norms = {(a, a - 1): 1.0 for a in range(depth + 1)}
    for a in range(depth):
        P = weights[a]
        norms[a, a] = sizes[a] + radius
        for b in range(a + 1, depth):
            P = P @ weights[b]
            most, least = np.prod(np.array(sizes[a : b + 1]) + radius), np.prod(sizes[a : b + 1])
            norms[a, b] = float(np.linalg.norm(P, 2) + most - least)
    c = np.zeros((depth, depth))
    for a in range(depth):
        for b in range(a + 1, depth):
            c[a, b] = c[b, a] = norms[0, a - 1] * norms[a + 1, b - 1] * norms[b + 1, depth - 1]
    return scale * float(np.linalg.norm(c, 2))


def loss_of_eigenvalue(least: np.ndarray, kappa: float, distance: np.ndarray) -> np.ndarray:
    """By how much lambda_min(T) may be less within that distance of the weights: sqrt(lambda) = sigma_min(J) falls by
    at most kappa times the distance."""
    step = kappa * distance
    return np.minimum(step * (2 * np.sqrt(least) + step), np.inf)
