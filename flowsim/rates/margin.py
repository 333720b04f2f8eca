"""The margin: how small the singular values of the product can become while the loss does not grow."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np

from flowsim.losses import constants_of, minimiser_of
from flowsim.rates.imbalance import singular

Margin = Callable[[int], float]


def margin(network: Any, loss: Any) -> tuple[Margin | None, str]:
    """(k -> nu_k, "") or (None, the reason): nu_k = [sigma_k(W*) - sqrt(K / mu) ||W(0) - W*||_F]_+ <= sigma_k(W(t)).

    It holds at all t >= 0 for a K-smooth, mu-strongly convex f (A2) with minimiser W*: f(W(t)) <= f(W(0)) keeps
    ||W(t) - W*||_F <= sqrt(K / mu) ||W(0) - W*||_F ([MVM23], section 3.1). The model's scale is part of W.
    """
    if loss is None:
        return None, "it needs a loss (a target or data), and there is none"
    constants, minimiser = constants_of(loss), minimiser_of(loss)
    if constants is None or constants.mu <= 0 or constants.K is None or minimiser is None:
        return None, "assumption A2 (smooth and strongly convex, with a known minimiser) is not known for this loss"
    distance = sqrt(constants.K / constants.mu) * float(np.linalg.norm(network.product - minimiser))
    return (lambda k: max(singular(minimiser, k) - distance, 0.0)), ""
