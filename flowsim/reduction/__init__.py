"""Width compression: a wide network at the cost of a tiny one, with an error estimate."""

from __future__ import annotations

from flowsim.reduction.bases import FixedBases, KrylovBases
from flowsim.reduction.compressed import CompressedNetwork, compress, first_level
from flowsim.reduction.sampling import sample_compressed

__all__ = ["CompressedNetwork", "FixedBases", "KrylovBases", "compress", "first_level", "sample_compressed"]
