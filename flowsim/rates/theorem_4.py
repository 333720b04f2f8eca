"""Theorem 4 of [MVM23]: classification losses, where the loss falls like 1/t."""

from __future__ import annotations

from flowsim.losses import Loss, constants_of
from flowsim.network import Network
from flowsim.rates.certificate import ASSUMPTIONS, Certificate, along_trajectory, refused
from flowsim.rates.homogeneous import homogeneous_sharp
from flowsim.rates.imbalance import TOLERANCE
from flowsim.rates.theorem_1 import theorem_1_A1
from flowsim.rates.theorem_2 import theorem_2
from flowsim.rates.theorem_3 import theorem_3_unimodal

NAME = "theorem-4"


def theorem_4(network: Network, loss: Loss | None = None, tolerance: float = TOLERANCE) -> Certificate:
    """L(t) - f* <= (L(0) - f*) / (1 + (L(0) - f*) alpha gamma^2 t) under A1': ||grad f||_F >= gamma (f - f*).

    alpha is the best bound on lambda_min(T(t)) that holds along the whole trajectory for any loss: Theorem 1 (A1 part),
    2, 3, or the homogeneous one. Source: [MVM23], Theorem 4. The exponential loss on separable data obeys A1' with
    gamma its separation margin; the logistic loss does not.
    """
    if loss is None:
        return refused(NAME, "it needs classification data, and there is no loss")
    constants = constants_of(loss)
    if constants is None or constants.dominance != "linear":
        return refused(NAME, f"assumption {ASSUMPTIONS['linear']} is not known for this loss")
    best = max(for_any_loss(network, tolerance), key=lambda c: c.alpha or 0.0, default=None)
    if best is None or best.alpha is None:
        return refused(NAME, "no bound on lambda_min(T(t)) holds along the trajectory for this network")
    return along_trajectory(NAME, network, loss, best.alpha, f"alpha from {best.name}", "linear")


def for_any_loss(network: Network, tolerance: float) -> list[Certificate]:
    """What applies of the theorems on the imbalance alone: they hold along the whole trajectory whatever the loss."""
    found = [theorem_1_A1(network), theorem_2(network), theorem_3_unimodal(network, tolerance=tolerance)]
    return [certificate for certificate in (*found, homogeneous_sharp(network)) if certificate.applies]
