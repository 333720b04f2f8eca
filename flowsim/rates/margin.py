"""The margin: how small the singular values of the product can become while the loss does not grow."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.losses import Loss, constants_of, excess, minimiser_of, minimum_of
from flowsim.network import Network
from flowsim.rates.imbalance import EPS


@dataclass(frozen=True)
class Margin:
    """Bounds on the singular values of a matrix that stays within `distance` (Frobenius) of one with these `values`."""

    values: np.ndarray
    distance: float

    def __call__(self, index: int) -> float:
        """A lower bound of the singular value of that index, counted from 1; 0 beyond the shorter side."""
        return max(float(self.values[index - 1]) - self.distance, 0.0) if index <= len(self.values) else 0.0

    @property
    def top(self) -> float:
        """An upper bound of all."""
        return float(self.values[0]) + self.distance


def present(network: Network) -> Margin:
    """The singular values of the model's product W at the present weights, up to the rounding of its computation."""
    return Margin(np.linalg.svd(network.product, compute_uv=False), rounding(network))


def margin(network: Network, loss: Loss | None) -> tuple[Margin | None, str]:
    """(nu, "") or (None, the reason): nu(k) = [sigma_k(W*) - sqrt(2 (L(0) - f*) / mu)]_+ <= sigma_k(W(t)), t >= 0.

    For a mu-strongly convex f with minimiser W*, mu/2 ||W - W*||_F^2 <= f(W) - f*, and the flow does not raise f. The
    distance in [MVM23], section 3.1, sqrt(K / mu) ||W(0) - W*||_F for a K-smooth f, is never smaller. The model's scale
    is part of W.
    """
    if loss is None:
        return None, "it needs a loss (a target or data), and there is none"
    return margin_at(network, loss, float(excess(loss, network.product)))


def margin_at(network: Network, loss: Loss, left: float) -> tuple[Margin | None, str]:
    """margin from the time on at which L - f* is no more than `left`."""
    constants, minimiser = constants_of(loss), minimiser_of(loss)
    if constants is None or constants.mu <= 0 or minimum_of(loss) is None or minimiser is None:
        return None, "assumption A2 (strongly convex, with known minimum and minimiser) is not known for this loss"
    values = np.linalg.svd(minimiser, compute_uv=False)
    distance = sqrt(2 * left / constants.mu)
    condition = sqrt(max(constants.K or constants.mu, constants.mu) / constants.mu)
    blurred = rounding(network) + 8 * sum(loss.shape) * EPS * float(values.sum())
    return Margin(values, distance * (1 + 64 * EPS) + condition * blurred), ""


def rounding(network: Network) -> float:
    """How far the computed product, and a singular value of it, may be off (Frobenius)."""
    small = network.core if isinstance(network, CompressedNetwork) else network
    size = small.scale * float(np.prod([np.linalg.norm(W) for W in small.weights]))
    return 8 * (sum(small.dims) + 4) * EPS * size
