"""What a simulation returns, and its file."""

from __future__ import annotations

from flowsim.trajectory.netcdf import load
from flowsim.trajectory.result import (
    EXIT_CODES,
    REMEDIES,
    Checkpoints,
    Reduction,
    Steps,
    Trajectory,
    UnknownLoss,
    as_trajectory,
)

__all__ = [
    "EXIT_CODES",
    "REMEDIES",
    "Checkpoints",
    "Reduction",
    "Steps",
    "Trajectory",
    "UnknownLoss",
    "as_trajectory",
    "load",
]
