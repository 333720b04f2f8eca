"""The laws of gradient flow on weights that were trained elsewhere: how far they are from them, judged by nobody."""

from __future__ import annotations

import numpy as np

from flowsim.laws.laws import ENERGY, MONOTONE, conserved
from flowsim.laws.result import Law
from flowsim.runs.trajectory import Trajectory

REASON = "recorded elsewhere: told, not judged"


def laws_of(run: Trajectory) -> list[Law]:
    """The greatest drift of every D_l, energy residual, and rise of sqrt(L - f*) from one record to the next."""
    roots = np.sqrt(np.maximum(run.excess, 0.0))
    rises = np.maximum(np.diff(roots), 0.0)
    changes = zip(conserved(run), run.imbalance_change.T, strict=True)
    drifts = [_told(*title, change, run.time) for title, change in changes]
    name, equation = ENERGY
    between = f"{equation} (by the trapezoidal rule between the records)"
    energy = _told(name, between, np.abs(run.energy_residual), run.step_time)
    return [*drifts, energy, _told(*MONOTONE, np.append(0.0, rises), run.time)]


def _told(name: str, equation: str, residuals: np.ndarray, times: np.ndarray) -> Law:
    place = int(np.argmax(residuals))
    return Law(name, equation, float(residuals[place]), None, None, float(times[place]), f"{equation}; {REASON}")
