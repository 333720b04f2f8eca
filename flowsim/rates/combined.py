"""A rate from all that holds along the flow at once: the norms of products, the imbalance and the margin, in time.

Ours. Each of these lower bounds of lambda_min(T(t)) holds at every time, so does their maximum: what the norms of
products say (path.py) falls as the weights move, what Theorems 1 to 3 say of the imbalance stays, and so does what the
ball says (ball.py); what sees the product W rises as the loss falls: from the time on at which L - f* is at most x,

    sigma_k(W(t)) >= [sigma_k(W*) - sqrt(2 x / mu)]_+     (A2),

for f is mu-strongly convex and the flow does not raise it. In the clock of path.py, where x = gamma e^2 / 4, their
maximum is a floor under the bounds of the path: de/ds <= -max(path, floor(e)). The floor is taken at levels of e that
are FALL apart, at the greater end of each.
"""

from __future__ import annotations

from flowsim.losses import Loss
from flowsim.network import Network
from flowsim.rates.ball import ball
from flowsim.rates.certificate import Certificate, refused
from flowsim.rates.homogeneous import proved
from flowsim.rates.imbalance import TOLERANCE, narrow, spectra
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.margin import Margin, margin, margin_at
from flowsim.rates.path import FALL, FALLS, NEEDS, Floor, Start, certified, travel
from flowsim.rates.product_bound import with_margin
from flowsim.rates.theorem_1 import two_layer_eigenvalues, with_product
from flowsim.rates.theorem_4 import for_any_loss

NAME = "combined"


def combined(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
    """lambda_min(T(t)) >= alpha along the whole flow: at every time the best of the path, the imbalance and the margin.

    Ours, not in [MVM23]; see the head of this module. It needs A1 (f - f* known), and uses A2 where it is there. alpha
    is what the worst time leaves; `bound` is never above that of `path`, and it goes on where the path ends.

    A target too far away for the path alone:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 3))), fs.fan_out((3, 100, 200, 3), seed=0))
    >>> certificates = fs.certify(problem)
    >>> path, second, both = (certificates[name] for name in ("path", "theorem-2", "combined"))
    >>> certificates.best.name, bool(path.alpha <= second.alpha), bool(both.bound(0.01) < 0.5 * second.bound(0.01))
    ('combined', True, True)
    """
    start = Start.of(network, loss)
    if start is None or loss is None:
        return refused(NAME, NEEDS)
    floor = _floor(network, loss, start, tolerance)
    found = travel(network, layer_norms(network), start.e, start.cap, floor)
    return certified(NAME, network, loss, start, found)


def _floor(network: Network, loss: Loss, start: Start, tolerance: float) -> Floor:
    """e -> the best of the theorems that hold for all time, with the margin of that loss; found when asked for."""
    constants = ball(network, loss), *for_any_loss(network, tolerance)
    nu, _ = margin(network, loss)
    at_the_start = 0.0 if nu is None else _with_margin(network, nu)
    constant = max(at_the_start, *(certificate.alpha or 0.0 for certificate in constants))
    known: dict[int, float] = {}

    def floor(e: float) -> float:
        level = next((k for k in range(FALLS) if start.e * FALL ** (k + 1) < e), FALLS)
        if level not in known:
            nu, _ = margin_at(network, loss, start.gamma * (start.e * FALL**level) ** 2 / 4)
            known[level] = constant if nu is None else max(constant, _with_margin(network, nu))
        return known[level]

    return floor


def _with_margin(network: Network, nu: Margin) -> float:
    """The best of what sees the product."""
    found = spectra(network)
    if found is None:
        return 0.0
    n, m = network.dims[0], network.dims[-1]
    seen = [0.0]
    if network.depth == 2:
        seen.append(with_product(network, two_layer_eigenvalues(found[0], n, m), nu))
    if network.depth == 3:
        seen.append(with_margin(network, found, nu))
    if network.is_dense and narrow(network, min(n, m)) is None:
        seen.append(proved(network, nu))
    return max(seen)
