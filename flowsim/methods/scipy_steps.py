"""scipy's implicit OdeSolver objects, one accepted step a segment."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.integrate import BDF, LSODA, Radau
from scipy.linalg import LinAlgWarning

from flowsim.dynamics import Motion
from flowsim.errors import InputError
from flowsim.methods.steps import (
    DENSE_JACOBIAN_LIMIT,
    LEAST_SPAN,
    CountingVelocity,
    IntegrationFailure,
    Segment,
    dissipation,
)

if TYPE_CHECKING:
    from flowsim.methods.scipy import Scipy

SOLVERS = {"Radau": Radau, "BDF": BDF, "LSODA": LSODA}


class ScipySteps:
    """Radau, BDF or LSODA from (t, state) to t1.

    Raises InputError when it would need a dense Jacobian of more than DENSE_JACOBIAN_LIMIT weights.
    """

    def __init__(self, motion: Motion, method: Scipy, t: float, state: np.ndarray, t1: float) -> None:
        if method.kind.dense_jacobian and state.size > DENSE_JACOBIAN_LIMIT:
            raise InputError(
                f"Argument `method` must be explicit for {state.size} weights, but {method.name} forms a dense Jacobian"
                f" (at most {DENSE_JACOBIAN_LIMIT} weights); use dop853, rkc or gauss-legendre."
            )
        self.motion, self.t, self.t1 = motion, t, t1
        velocity = CountingVelocity(motion)
        self.counts = velocity.counts
        settings = _settings(method, t1 - t) | {"jac": motion.jacobian}
        self.solver: Any = SOLVERS[method.name](velocity, t, state, t1, **settings)
        if method.name == "Radau" and method.step_size is not None:
            self.solver.newton_tol = 1e-13  # with error control off, rtol = 1 would leave the stages unsolved

    def advance(self) -> Segment:
        """One accepted step."""
        before = self.t, self.solver.y
        with warnings.catch_warnings():  # of singular matrices and repeated failures: the status says it
            warnings.simplefilter("ignore", LinAlgWarning)
            warnings.filterwarnings("ignore", "lsoda:", UserWarning)
            message = self.solver.step()
        if self.solver.status == "failed":
            raise IntegrationFailure(f"{type(self.solver).__name__} stopped at t = {self.t:.6g}: {message}")
        start, self.t = self.t, float(self.solver.t)
        if getattr(self.solver, "njev", 0):
            self.counts.jacobians = int(self.solver.njev)
        self.dense = dense = _Dense(self, before)
        end = self.motion.products(self.solver.y)
        return Segment(
            times=np.array([start, self.t]),
            products=end[None],
            dissipated=np.array([dissipation(self.motion, dense, start, self.t)]),
            evaluate=dense,
        )

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached; the last step's dense output, if wanted, is built before."""
        _ = self.dense.interpolant
        self.solver.y, self.solver.f = state, self.solver.fun(self.t, state)

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, with a step of at least that size first, and the Jacobian as it is."""
        solver = self.solver
        if t != self.t:
            solver.sol = None  # Radau extrapolates its last step
        self.t, self.t1, solver.t, solver.t_bound, solver.status = t, t1, t, t1, "running"
        solver.y, solver.f = state, solver.fun(t, state)
        if step > solver.h_abs:
            solver.h_abs = step
            solver.LU_real = solver.LU_complex = None


def _settings(method: Scipy, span: float) -> dict[str, object]:
    if method.step_size is None:
        first = {"first_step": span} if span < LEAST_SPAN else {}  # LSODA's own choice divides by its square
        return {"rtol": method.rtol, "atol": method.atol, **first}
    step = min(method.step_size, span)
    return {"rtol": 1.0, "atol": 1e6, "first_step": step, "max_step": step}


class _Dense:
    """The dense output of the last step, built when first asked for; its ends are the steps' own values."""

    def __init__(self, steps: ScipySteps, start: tuple[float, np.ndarray]) -> None:
        self.solver, self.start, self.end = steps.solver, start, (steps.solver.t, steps.solver.y)

    @cached_property
    def interpolant(self) -> Callable[[float | np.ndarray], np.ndarray]:
        return self.solver.dense_output()

    def __call__(self, t: np.ndarray) -> np.ndarray:
        states = np.empty((len(t), len(self.end[1])))
        between = (t != self.start[0]) & (t != self.end[0])
        if between.any():
            states[between] = self.interpolant(t[between]).T
        for end, state in (self.start, self.end):
            states[t == end] = state
        return states
