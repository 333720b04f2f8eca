"""Sweeps: the product of lists of settings, many seeds each, planned from one specification and resumable.

A member is one combination and one seed. Everything about it follows from the specification alone: its weights come
from SeedSequence(root_seed).spawn(seeds)[k], the same for every combination, and it is simulated by itself, with one
BLAS thread, so that neither the order nor the number of workers nor an interruption changes a digit.
"""

from __future__ import annotations

from flowsim.sweeps.running import SweepResult, run_member, sweep
from flowsim.sweeps.specification import Member, SweepSpec
from flowsim.sweeps.tables import table

__all__ = ["Member", "SweepResult", "SweepSpec", "run_member", "sweep", "table"]
