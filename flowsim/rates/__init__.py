"""Convergence rates as certificates, one module a theorem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from flowsim.compression import CompressedNetwork, compress
from flowsim.dynamics import Dynamics, GradientFlow
from flowsim.errors import InputError
from flowsim.losses import Loss
from flowsim.methods import Method
from flowsim.network import LinearNetwork, Network
from flowsim.problem import Problem
from flowsim.rates.ball import ball
from flowsim.rates.certificate import OVERFLOW, Certificate, Certificates, refused
from flowsim.rates.combined import combined
from flowsim.rates.descent import DESCENTS, descent_ball, descent_path, greatest_step
from flowsim.rates.earlier import min_2021, yun_2020
from flowsim.rates.homogeneous import arora_2018, corollary_2, homogeneous_sharp, theorem_3_homogeneous
from flowsim.rates.imbalance import TOLERANCE
from flowsim.rates.path import path
from flowsim.rates.product_bound import theorem_2_product
from flowsim.rates.theorem_1 import lemma_3, theorem_1_A1, theorem_1_A2
from flowsim.rates.theorem_2 import theorem_2
from flowsim.rates.theorem_3 import theorem_3_unimodal
from flowsim.rates.theorem_4 import theorem_4
from flowsim.rates.xu_2023 import xu_2023
from flowsim.threads import threads_for

Theorem = Callable[[Network, Loss | None, float], Certificate]
"""Of a network, a loss or None, and the tolerance of what asks whether D_l has a sign or is a multiple of I."""


def _whatever_the_tolerance(
    theorem: Callable[[Network, Loss | None], Certificate], network: Network, loss: Loss | None, tolerance: float
) -> Certificate:
    return theorem(network, loss)


PLAIN = (lemma_3, theorem_1_A1, theorem_1_A2, theorem_2, theorem_2_product, homogeneous_sharp, ball, path)
STRUCTURED = (combined, theorem_3_unimodal, theorem_3_homogeneous, corollary_2, theorem_4, arora_2018, yun_2020)


def _named(theorem: Callable[..., Certificate]) -> str:
    return theorem.__name__.replace("_", "-")


THEOREMS: dict[str, Theorem] = {
    **{_named(theorem): partial(_whatever_the_tolerance, theorem) for theorem in PLAIN},
    **{_named(theorem): theorem for theorem in STRUCTURED},
    _named(min_2021): partial(_whatever_the_tolerance, min_2021),
}
"""name -> theorem, in the order of `certify`. A theorem of one's own is one more line."""

LARGEST_EXPONENT = 300.0
"""Of 10, of what is computed: float64 ends at 308."""

__all__ = [
    "THEOREMS",
    "TOLERANCE",
    "Certificate",
    "Certificates",
    "certify",
    "descent_ball",
    "descent_path",
    "greatest_step",
    "xu_2023",
    *(theorem.__name__ for theorem in (*PLAIN, *STRUCTURED, min_2021)),
]


def certify(
    subject: Problem | Network,
    *,
    method: Method | None = None,
    dynamics: Dynamics | None = None,
    tolerance: float = TOLERANCE,
    cheap: bool = False,
) -> Certificates:
    """All theorems on a problem, or on a network alone (then there are bounds alpha, but no rates).

    subject: a Problem, or a network, full or compressed. method: what it is trained with; of GradientDescent only
    `xu-2023`, `descent-ball` and `descent-path` have a rate, and of every other theorem it is said that it is one on
    the flow; none is on momentum. dynamics: what the weights obey; no theorem has a rate of another one than gradient
    flow, nor with weight decay, whose minimum is another.

    No alpha exceeds lambda_min(T) by rounding: eigenvalues count as smaller or larger by what they are uncertain by.
    tolerance: an eigenvalue of D_l within tolerance max(||W_l||_F^2, ||W_{l+1}||_F^2) of 0 counts as 0 where a theorem
    asks for a sign, for balance or for a multiple of I, and what is so forgiven is taken off alpha. cheap: use a few
    products with the hidden layers instead of all eigenvalues of the imbalance; what needs them all is refused, and
    Theorem 2 gives a smaller, valid bound.

    Scalar weights 3 and 1: Theorem 1 has alpha = |D_1| = 8 of lambda_min(T) = 10, and it stays valid along the flow.

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> certificates = fs.certify(problem)
    >>> first = certificates["theorem-1-A1"]
    >>> round(certificates.lambda_min_T, 9), round(first.alpha, 9), round(first.rate, 9)
    (10.0, 8.0, 16.0)
    >>> certificates["theorem-2"].reason
    'it is for three layers, the network has 2'
    """
    network: Network = subject.network if isinstance(subject, Problem) else subject
    if not isinstance(network, (LinearNetwork, CompressedNetwork)):
        raise InputError(
            f"Argument `subject` must be a Problem or a network, but it is of type {type(network).__name__};"
            " LinearNetwork(weights) makes one."
        )
    loss: Loss | None = subject.loss if isinstance(subject, Problem) else None
    if cheap and isinstance(network, LinearNetwork):
        network = compress(network)
    if _overflows(network):
        return Certificates(network.dims, float("nan"), tuple(refused(name, OVERFLOW) for name in THEOREMS))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"), threads_for(max(network.dims)):
        entries = [theorem(network, loss, tolerance) for theorem in THEOREMS.values()]
        if method is not None and method.kind.discrete:
            step = method.plain_step_size
            own = [] if step is None else [theorem(network, loss, step) for theorem in DESCENTS]
            entries = [
                *own,
                *(_without_rate(entry, f"it holds for the flow, not for {_told(method)}") for entry in entries),
            ]
        if dynamics is not None and not isinstance(dynamics, GradientFlow):
            reason = f"it holds for gradient flow, not for {dynamics.name}"
            entries = [_without_rate(entry, reason) for entry in entries]
        if isinstance(subject, Problem) and subject.weight_decay:
            entries = [_without_rate(entry, "it is on the loss alone, without weight decay") for entry in entries]
        return Certificates(network.dims, network.lambda_min_T, tuple(entries))


def _told(method: Method) -> str:
    """What kind of gradient descent it is."""
    if method.plain_step_size is not None:
        return "gradient descent"
    kinds = {"momentum": method.carries, "batches or noise": method.stochastic}
    named = [name for name, has in kinds.items() if has] or ["a schedule"]
    return f"gradient descent with {' and '.join(named)}"


def _without_rate(entry: Certificate, reason: str) -> Certificate:
    """Without its rate, where it has one: what is trained need not obey it."""
    if entry.rate is None:
        return entry
    return Certificate(entry.name, False, entry.alpha, entry.scope, entry.law, reason=reason)


def _overflows(network: Network) -> bool:
    """Whether D_l or T may exceed float64: the squares of a layer's norm, or of the product of L - 1 of them."""
    small = network.core if isinstance(network, CompressedNetwork) else network
    layers = [W for W in small.weights if isinstance(W, np.ndarray)]
    logs = [np.log10(float(np.abs(W).max()) or 1.0) + 0.5 * np.log10(W.size) for W in layers]
    together = sum(logs) - min(logs) + max(np.log10(small.scale), 0.0)
    return 2 * max(*logs, together) > LARGEST_EXPONENT
