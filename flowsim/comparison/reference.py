"""The reference of a comparison: a far tighter solve, and how far a second method is from it."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flowsim.dynamics import Motion, as_motion
from flowsim.errors import InputError, NumericalFailure
from flowsim.methods import RKC, Auto, GaussLegendre, KrylovBDF, Method, Scipy
from flowsim.methods.steps import STABILITY_GRADIENTS, greatest_eigenvalue
from flowsim.problem import Problem
from flowsim.runs.simulation import simulate
from flowsim.runs.trajectory import Trajectory

REFERENCE = Scipy("DOP853", 1e-13, 1e-15)
CHECK = GaussLegendre(4, 1e-12, 1e-14)
OTHER_CHECK = Scipy("Radau", 1e-11, 1e-13)
"""For a dynamics that is neither a gradient flow nor has momentum."""
STIFF_REFERENCE, STIFF_CHECK = KrylovBDF(1e-12, 1e-14), RKC(1e-9, 1e-11)
"""For a gradient flow that is so stiff that REFERENCE would take MOST_WORK, in gradients times weights."""
MOST_WORK, PROBE = 1e9, Auto(1e-6, 1e-8)
REFERENCE_SHARE = 10
"""A comparison's reference may take as long as this many of its runs."""


@dataclass(frozen=True)
class Reference:
    """The weights at the times of comparison, from a far tighter solve, and how far a second method is from it.

    uncertainty: the greatest ||W - V||_F over the times, over the change of the weights; check: the second method.
    """

    times: np.ndarray
    weights: list[list[np.ndarray]]
    change: float
    uncertainty: float
    check: Method = CHECK

    def errors(self, weights_at: Callable[[float], list[np.ndarray]]) -> np.ndarray:
        """||W(t) - W_ref(t)||_F over all layers, over the change of the weights, at each time."""
        return np.array(
            [
                _distance(weights_at(float(t)), true) / self.change
                for t, true in zip(self.times, self.weights, strict=True)
            ]
        )


def solve_reference(motion: Motion | Problem, times: np.ndarray, time_limit: float = np.inf) -> Reference:
    """The weights at the times (the first 0) by DOP853 at rtol 1e-13, or by krylov-bdf at 1e-12 where a flow is very
    stiff, on the full weights where there are any; their uncertainty from a second method.

    Every time is the end of a step: dense output is less accurate than steps are where stability limits these.
    Raises InputError where either method needs more than time_limit seconds, NumericalFailure where one breaks down.
    """
    motion = as_motion(motion)
    reference, checking = _methods(motion, times, time_limit)
    check = weights_of(_solved(motion, checking, times, time_limit))
    if getattr(motion.problem.network, "is_dense", False):
        weights = _landed(motion, reference, times, time_limit)
    else:
        found = weights_of(_solved(motion, reference, times, time_limit))
        weights = [found(float(t)) for t in times]
    change = _distance(weights[-1], weights[0]) or 1.0
    gaps = [_distance(check(float(t)), W) / change for t, W in zip(times, weights, strict=True)]
    return Reference(times, weights, change, max(gaps), checking)


def _methods(motion: Motion, times: np.ndarray, time_limit: float) -> tuple[Method, Method]:
    """The reference, and what checks it."""
    if motion.structure != "gradient":
        return REFERENCE, OTHER_CHECK if motion.structure == "general" else CHECK
    run = _solved(motion, PROBE, times, time_limit)
    kept, integrated = run.checkpoints, run.simulated_motion
    radius = max(
        greatest_eigenvalue(integrated, t, state)
        for t, state in ((0.0, kept.whole(0)), (float(times[-1]), kept.whole(len(kept.times) - 1)))
    )
    size = motion.size if getattr(motion.problem.network, "is_dense", False) else integrated.size
    if STABILITY_GRADIENTS * radius * float(times[-1]) * size > MOST_WORK:
        return STIFF_REFERENCE, STIFF_CHECK
    return REFERENCE, CHECK


def _solved(motion: Motion, method: Method, times: np.ndarray, time_limit: float) -> Trajectory:
    limit = None if np.isinf(time_limit) else time_limit
    end, dynamics = float(times[-1]), motion.dynamics
    run = simulate(motion.problem, method, t1=end, dynamics=dynamics, save_points=times, wall_limit=limit)
    if run.status == "interrupted":
        raise KeyboardInterrupt
    if run.status in ("wall_limit", "step_limit"):
        raise _too_far(times, run.time[-1], time_limit)
    if run.status != "completed":
        raise NumericalFailure(f"There is no reference to compare with: {method} {run.status}. {run.message}")
    return run


def _too_far(times: np.ndarray, reached: float, time_limit: float) -> InputError:
    return InputError(
        f"Argument `t1` must be a time that the reference reaches within {time_limit:g} s, but of t1 = {times[-1]:g} "
        f"it had got to {reached:.3g}; lower t1 or raise time_limit, of which the reference may take {REFERENCE_SHARE}."
    )


def _landed(motion: Motion, method: Method, times: np.ndarray, time_limit: float) -> list[list[np.ndarray]]:
    """The weights at the times, each the end of a step."""
    states, deadline = [motion.initial_state], clock.perf_counter() + time_limit
    for t, end in pairwise(times):
        integrator = method.start(motion, float(t), states[-1], float(end))
        while integrator.t < integrator.t1:
            if clock.perf_counter() > deadline:
                raise _too_far(times, integrator.t, time_limit)
            segment = integrator.advance()
        states.append(segment.evaluate(segment.times[-1:])[0])
    return [motion.split(state)[: motion.problem.network.depth] for state in states]


def weights_of(run: Trajectory) -> Callable[[float], list[np.ndarray]]:
    """The full weights at a time, or the core's where there are no others."""
    try:
        run.weights_at(0.0)
    except InputError:
        return lambda t: list(run.core_at(t).weights)
    return run.weights_at


def _distance(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.linalg.norm(W - V) ** 2 for W, V in zip(one, other, strict=True))))
