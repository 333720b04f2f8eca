"""Convergence rates as certificates, one module a theorem."""

from __future__ import annotations

from typing import Any

from flowsim.network import LinearNetwork
from flowsim.problem import Problem
from flowsim.rates.certificate import Certificate, Certificates
from flowsim.rates.theorem_2 import theorem_2
from flowsim.reduction import CompressedNetwork

__all__ = ["THEOREMS", "Certificate", "Certificates", "certify", "theorem_2"]

THEOREMS = (theorem_2,)
"""Each takes (network, loss or None) and returns a Certificate."""


def certify(subject: Problem | LinearNetwork | CompressedNetwork) -> Certificates:
    """All theorems on a problem, or on a network alone (then there are bounds alpha, but no rates)."""
    network: Any = subject.network if isinstance(subject, Problem) else subject
    loss: Any = subject.loss if isinstance(subject, Problem) else None
    return Certificates(network.dims, network.lambda_min_T, tuple(theorem(network, loss) for theorem in THEOREMS))
