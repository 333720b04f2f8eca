"""The one place where what a numerical library raises becomes an IntegrationFailure: the run ends, its result stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.methods.steps import Counts, IntegrationFailure, Integrator, Reusable, Segment

T = TypeVar("T")

MEMBER_FAILURES = (FlowsimError, ArithmeticError, np.linalg.LinAlgError, RuntimeError, MemoryError)
"""What makes a row of a sweep, an ensemble or a comparison that says why, and leaves the other rows alone: errors of
flowsim, of arithmetic, of LAPACK, of ARPACK and jax (RuntimeError), too little memory."""


@contextmanager
def breakdown(name: str, t: float) -> Iterator[None]:
    """Within, floating-point overflow is silent, and an ArithmeticError, ValueError or RuntimeError (LAPACK, ARPACK and
    jax raise such) is an IntegrationFailure at time t. flowsim's own errors stay as they are."""
    try:
        with np.errstate(all="ignore"):
            yield
    except FlowsimError:
        raise
    except (ArithmeticError, ValueError, RuntimeError) as error:
        reason = str(error).strip().rstrip(".").split("\n")[0] or type(error).__name__
        raise IntegrationFailure(f"{name} broke down at t = {t:.6g}: {reason}.") from error


class Guarded:
    """Another integrator, whose failures of whatever kind are IntegrationFailures."""

    def __init__(self, inner: Integrator, name: str) -> None:
        self.inner, self.name = inner, name

    @property
    def counts(self) -> Counts:
        """The work done so far."""
        return self.inner.counts

    @property
    def t(self) -> float:
        """The time reached."""
        return self.inner.t

    @property
    def t1(self) -> float:
        """The time it is bound for."""
        return self.inner.t1

    @property
    def remark(self) -> str:
        """What the integrator has to say of its work, a sentence."""
        return getattr(self.inner, "remark", "")

    def advance(self) -> Segment:
        """Take one or more steps. Raises IntegrationFailure when the next one is impossible, or leads nowhere."""
        start = self.inner.t
        with breakdown(self.name, start):
            segment = self.inner.advance()
        if not self.inner.t > start:
            raise IntegrationFailure(f"{self.name} stopped at t = {start:.6g}: its steps do not advance the time.")
        return replace(
            segment,
            evaluate=lambda t: self._evaluated(segment, segment.evaluate, t),
            layers=lambda t: self._evaluated(segment, segment.layers, t),
        )

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """As a Reusable integrator's. Raises IntegrationFailure where that is impossible."""
        with breakdown(self.name, t):
            cast(Reusable, self.inner).resume(t, state, t1, step)

    def _evaluated(self, segment: Segment, what: Callable[[np.ndarray], T], t: np.ndarray) -> T:
        with breakdown(self.name, float(segment.times[0])):
            return what(t)
