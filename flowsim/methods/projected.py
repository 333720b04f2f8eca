"""Projection onto the invariants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowsim.errors import InputError
from flowsim.methods.base import Kind, Method

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.steps import Integrator


@dataclass(frozen=True)
class Projected(Method):
    """An explicit one-step method whose every step is projected back onto {D_l = D_l(0) for all l}.

    method: Scipy or Diffrax with the name of an explicit method, RKC, or one's own that takes explicit steps one by
    one. Raises InputError for another one.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> plain = fs.Scipy("RK45", rtol=1e-3)
    >>> for method in (plain, fs.Projected(plain)):
    ...     print(method.name, fs.simulate(problem, method, t1=2.0).imbalance_drift.max() < 1e-12)
    RK45 False
    projected-RK45 True
    """

    method: Method

    def __post_init__(self) -> None:
        if not (isinstance(self.method, Method) and self.method.kind.explicit and self.method.takes_single_steps):
            raise InputError(
                "Argument `method` must be an explicit Runge-Kutta method of Scipy or Diffrax, or RKC, to be projected,"
                f" but it is {getattr(self.method, 'name', self.method)!r}; gauss-legendre keeps the invariants itself."
            )

    @property
    def name(self) -> str:
        """The method's name in tables: projected-NAME."""
        return f"projected-{self.method.name}"

    @property
    def key(self) -> str:
        """The name that METHODS lists."""
        return f"projected-{self.method.key}"

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        return projected_kind(self.method.kind, self.method.key)

    @property
    def rtol(self) -> float:
        """The relative tolerance of the method."""
        return float(self.settings.rtol)

    @property
    def atol(self) -> float:
        """The absolute tolerance of the method."""
        return float(self.settings.atol)

    @property
    def settings(self) -> Any:
        """The method that is projected."""
        return self.method

    def compile_seconds(self) -> float:
        """Those of the method."""
        return self.method.compile_seconds()

    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """One step a segment."""
        from flowsim.methods.projected_steps import ProjectedSteps

        return ProjectedSteps(motion, self.method.step_by_step(motion, t, state, t1))


def projected_kind(kind: Kind, key: str) -> Kind:
    """What is known of a method of that kind and key when it is projected."""
    return replace(
        kind,
        line=f"{key}, projected onto the invariants: every D_l to round-off",
        keeps_invariants=True,
        sources=(*kind.sources, "hairer2006geometric"),
    )
