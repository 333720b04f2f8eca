"""Width compression: a wide network at the cost of a tiny one, with an error estimate."""

from __future__ import annotations

from flowsim.compression.bases import FixedBases, KrylovBases
from flowsim.compression.core import CompressedNetwork, compress, first_level
from flowsim.compression.outside import Outside
from flowsim.compression.regrown import regrown
from flowsim.compression.sampling import SAMPLED, cannot_sample, redrawn, sample_compressed

__all__ = [
    "SAMPLED",
    "CompressedNetwork",
    "FixedBases",
    "KrylovBases",
    "Outside",
    "cannot_sample",
    "compress",
    "first_level",
    "redrawn",
    "regrown",
    "sample_compressed",
]
