"""Rates from how far the weights can move at all: a ball that the flow does not leave (nor descent: descent.py).

Ours. J(theta) is the derivative of theta = (W_1, ..., W_L) -> W = c W_1 ... W_L, T = J J^T, E = grad f(W). With norms
of contiguous products, N(i, j) >= |W_i ... W_j|, a change of layer k by at most delta_k in norm, sum delta_k^2 <= r^2,
changes W_i ... W_j by at most P(i, j) = sum_k N(i, k-1) delta_k Q(k+1, j), Q = N + P, and the block c A_l (x) B_l^T of
J by at most c (Q(1, l-1) Q(l+1, L) - N(1, l-1) N(l+1, L)). To first order these are c C delta with the matrix

    C_lk = C_kl = N(1, k-1) N(k+1, l-1) N(l+1, L)  (k < l),   C_kk = 0,

at most c |C| r together; the rest is taken with every delta_k = r. So |J(theta) - J(theta_0)| <= Lambda(r) in the ball
of radius r, and sigma_min(J) >= sigma(r) = sigma_min(J(theta_0)) - Lambda(r).

The flow. ||theta'|| = ||J^T E||, e = 2 sqrt((f - f*) / gamma) as in path.py: ||theta'|| dt <= -de / sigma_min(J). If
int_0^R sigma dr = e(0) has a solution R, the weights stay within R of the start, and lambda_min(T(t)) >= sigma(R)^2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.losses import Loss
from flowsim.network import LinearNetwork, Network
from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.path import NEEDS, Start

NAME = "ball"
POINTS = 400
"""Radii at which sigma is taken, up to where it is 0; it does not increase: sums of right ends are below integrals."""
EPS = float(np.finfo(float).eps)
HALVINGS = 40


@dataclass(frozen=True)
class Ball:
    """What is known of J around the weights: at least |W_i ... W_j| at norms[i - 1, j], the scale c, at most
    sigma_min(J) and at least |J|."""

    norms: np.ndarray
    scale: float
    least: float
    greatest: float

    @classmethod
    def around(cls, network: Network) -> Ball | None:
        """Of a network; None where the norms of its layers are not at hand, or sigma_min(J) may be 0."""
        layers = layer_norms(network)
        if layers is None:
            return None
        depth = network.depth
        small = network.at_least(depth).core if isinstance(network, CompressedNetwork) else network
        assert isinstance(small, LinearNetwork)
        norms = np.ones((depth + 2, depth + 2))
        for i in range(depth):
            for j in range(i + 1, depth + 1):
                norms[i, j] = float(np.prod(layers[i:j]))
        widest = max(max(W.shape) for W in small.weights)
        before = [(0, j, A) for j, A in enumerate(small.prefixes)]
        after = [(i + 1, depth, B) for i, B in enumerate(small.suffixes)]
        for i, j, product in (*before, *after):
            if j > i:
                slack = 4 * (widest + 4) * (j - i) * EPS * norms[i, j] * min(product.shape) ** 0.5
                norms[i, j] = min(norms[i, j], float(np.linalg.norm(product, 2)) + slack)
        T = sum(norms[0, k] ** 2 * norms[k + 1, depth] ** 2 for k in range(depth))
        greatest = network.scale * sqrt(T)
        blurred = 8 * (network.dims[0] * network.dims[-1] + 4) * EPS * greatest
        least = sqrt(max(network.lambda_min_T, 0.0)) - blurred
        return cls(norms, network.scale, least, greatest) if least > 0 else None

    @property
    def depth(self) -> int:
        """L."""
        return len(self.norms) - 2

    def within(self, r: np.ndarray | float) -> np.ndarray:
        """Q(i, j), N(i, j) at every point of the ball of radius r: (L + 2, L + 2, ...) for radii (...)."""
        depth, radii = self.depth, np.asarray(r, float)
        N = self.norms.reshape(*self.norms.shape, *([1] * radii.ndim))
        Q = N * np.ones(radii.shape)
        for length in range(1, depth + 1):
            for i in range(depth - length + 1):
                j = i + length
                Q[i, j] += radii * sum(N[i, k] * Q[k + 1, j] for k in range(i, j))
        return Q

    def first_order(self, norms: np.ndarray) -> np.ndarray:
        """C, from norms N or Q."""
        C = np.zeros((self.depth, self.depth))
        for i in range(self.depth):
            for j in range(i + 1, self.depth):
                C[i, j] = C[j, i] = norms[0, i] * norms[i + 1, j] * norms[j + 1, self.depth]
        return C

    @cached_property
    def matrix(self) -> np.ndarray:
        """C at the weights."""
        return self.first_order(self.norms)

    def change(self, r: np.ndarray | float) -> np.ndarray:
        """Lambda(r), of radii (...) alike."""
        Q, N, depth = self.within(r), self.norms, self.depth
        whole = np.array([Q[0, k] * Q[k + 1, depth] - N[0, k] * N[k + 1, depth] for k in range(depth)])
        rest = np.maximum(whole - np.multiply.outer(self.matrix.sum(axis=1), r), 0.0)
        first = float(np.linalg.norm(self.matrix, 2)) * np.asarray(r)
        return np.asarray(self.scale * (first + np.linalg.norm(rest, axis=0)) * (1 + 64 * EPS))

    def lipschitz(self, r: float) -> float:
        """A Lipschitz constant of J within r: of every block, and so of all."""
        C = self.first_order(self.within(r))
        return self.scale * float(np.linalg.norm(C, 2)) if np.isfinite(C).all() else float("inf")

    def sigma(self, r: np.ndarray | float) -> np.ndarray:
        """A lower bound of sigma_min(J) within r."""
        return self.least - self.change(r)

    @cached_property
    def radii(self) -> np.ndarray:
        """POINTS radii, evenly up to where sigma is 0."""
        low, high = 0.0, self.least
        while self.sigma(high) > 0:
            high *= 2
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.sigma(middle) > 0 else (low, middle)
        return np.linspace(0.0, low, POINTS + 1)

    @cached_property
    def sigmas(self) -> np.ndarray:
        """sigma at the radii."""
        return self.sigma(self.radii)

    @cached_property
    def integrals(self) -> np.ndarray:
        """At least int_0^r sigma, at the radii."""
        return np.append(0.0, np.cumsum(np.diff(self.radii) * self.sigmas[1:]))


def ball(network: Network, loss: Loss | None = None) -> Certificate:
    """lambda_min(T(t)) >= alpha = sigma(R)^2 along the whole flow, any depth: the ball that it cannot leave.

    Ours, not in [MVM23]; proof at the head of this module. It needs A1 (f - f* known). `path` mostly says more.
    """
    start = Start.of(network, loss)
    if start is None or loss is None:
        return refused(NAME, NEEDS)
    around = Ball.around(network)
    if around is None:
        return along_trajectory(NAME, network, loss, 0.0, "lambda_min(T) may be 0, or layers are not at hand")
    place = int(np.searchsorted(around.integrals, start.e))
    if place == len(around.radii):
        return along_trajectory(NAME, network, loss, 0.0, "the loss can move the weights too far")
    found = along_trajectory(NAME, network, loss, max(float(around.sigmas[place]), 0.0) ** 2)
    return replace(found, radius=float(around.radii[place])) if found.rate else found
