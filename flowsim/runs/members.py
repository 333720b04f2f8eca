"""What is kept of one of many runs: the scalars of its record and of its certificates, and columns of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowsim.dynamics import Dynamics
from flowsim.problem import Problem
from flowsim.rates import THEOREMS, certify
from flowsim.runs.derived import SCALARS
from flowsim.values import Json


def alpha_of(name: str) -> str:
    """What a certificate's alpha is called among the scalars: theorem_2_alpha for theorem-2."""
    return f"{name.replace('-', '_')}_alpha"


def certified(problem: Problem, which: str, dynamics: Dynamics | None = None) -> Json:
    """What the theorems say of one member."""
    if which == "none":
        return {}
    found = certify(problem, dynamics=dynamics, cheap=which == "cheap")
    best = found.best
    alphas = {alpha_of(entry.name): entry.alpha if entry.applies else None for entry in found}
    return {
        "lambda_min_T": found.lambda_min_T,
        **alphas,
        "best_certificate": None if best is None else best.name,
        "best_alpha": None if best is None else best.alpha,
        "certified_rate": None if best is None else best.rate,
    }


WORDS = {"dims", "scheme", "method", "status", "reason", "best_certificate"}
"""Scalars that are words."""


def column(name: str, values: Sequence[object]) -> np.ndarray:
    """One scalar of all members: words, or numbers with NaN for what is not known."""
    if name in WORDS:
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def meanings() -> dict[str, str]:
    """name -> what it is, of all scalars."""
    return {
        **{name: scalar.words for name, scalar in SCALARS.items()},
        "lambda_min_T": "least eigenvalue of T at t = 0",
        **{alpha_of(name): f"alpha of {name}; NaN where it does not apply" for name in THEOREMS},
        "best_certificate": "the certificate of the greatest rate",
        "best_alpha": "its alpha",
        "certified_rate": "its rate",
    }
