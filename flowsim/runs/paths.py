"""What many members did side by side, and the numbers that are told of each, of all together: those of its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowsim.compression.control import CompressedModel, Model
from flowsim.losses import minimum_of
from flowsim.methods import Method
from flowsim.problem import Problem
from flowsim.runs.derived import (
    Rows,
    rates_seen,
    relative_drift,
    resolved_times,
    rounding_of,
    unbalanced,
)
from flowsim.values import Json

SAVED = 1 + 1e-14
"""A time that exceeds the end by rounding is the end."""
Result = tuple[np.ndarray, Json]
"""A member's loss curve and its scalars."""


@dataclass(frozen=True)
class Paths:
    """What B members did, in rows: the starts of steps and their ends, in order, or what was there before, repeated.

    time, spent, excess (B, R): t, what was dissipated since the row before, L - f*; kept (B, R): whether the row is the
    end of a step; watched (W): the rows where defect, fewer, moved (B, W) are known: the defect, what it would be with
    a Krylov step fewer, and how far the weights have moved; saved: at the times to save, and last at the end, L - f*
    and ||grad L||_F (B, S + 1) and the change of the imbalance (B, S + 1, L-1), NaN beyond a member's end; end (B),
    final (B, size): where a member ends, its state there; steps (B); healthy (B): no step was refused for good; below
    (B): whether the level of the loss was reached, at `end`; segment (B): how many rows the first segment of steps of
    simulate has, 0 where that is not known.
    """

    time: np.ndarray
    spent: np.ndarray
    excess: np.ndarray
    kept: np.ndarray
    watched: np.ndarray
    defect: np.ndarray
    fewer: np.ndarray
    moved: np.ndarray
    saved: tuple[np.ndarray, ...]
    end: np.ndarray
    final: np.ndarray
    steps: np.ndarray
    healthy: np.ndarray
    below: np.ndarray
    segment: np.ndarray

    @property
    def rows(self) -> Rows:
        """The steps."""
        kept = self.kept.copy()
        kept[:, 0] = True
        return Rows(self.time, self.excess, np.cumsum(np.where(kept, self.spent, 0.0), 1), kept)


def told(
    problems: Sequence[Problem],
    models: Sequence[Model],
    method: Method,
    times: np.ndarray,
    paths: Paths,
    errors: np.ndarray,
) -> list[Result]:
    """L - f* at the times, its last value held beyond the end, and the SCALARS of each member, whose models are of one
    kind; errors (B): those of a compression at the end. Of members that are not healthy it says nothing."""
    (excess, norms, drift), steps, some = paths.saved, paths.rows, models[0]
    inside = times <= paths.end[:, None] * SAVED
    latest = inside.sum(1) - 1
    between = times[latest] < paths.end
    last = np.where(between, len(times), latest)
    final, gradient = (part[np.arange(len(last)), last] for part in (excess, norms))
    minima, rounding = _of_losses(problems)
    size = np.linalg.norm(paths.final, axis=1)
    tolerance = method.step_tolerance(size, paths.final.shape[1])
    until = resolved_times(steps, gradient, tolerance, size, rounding)
    imbalances = np.array([problem.network.imbalance_norms for problem in problems])
    drifts = relative_drift(drift, imbalances[:, None])
    drifts = np.where(np.column_stack([inside, between])[..., None], drifts, 0.0).max((1, 2))
    residuals = np.where(steps.kept, np.abs(unbalanced(steps.excess, steps.dissipated)), 0.0).max(1)
    columns: dict[str, object] = {
        "status": np.where(paths.below, "converged", "completed"),
        "reason": None,
        "initial_loss": minima + excess[:, 0],
        "final_loss": minima + final,
        "final_excess": final,
        "time_reached": np.where(between, paths.end, times[latest]),
        "rate_seen": rates_seen(steps, until),
        "drift": drifts,
        "energy_residual": residuals,
        "error_estimate": errors if isinstance(some, CompressedModel) else some.error,
        "steps": paths.steps,
        "rhs_evaluations": None,
        "core_width": max(some.network.widths[1:-1]) if isinstance(some, CompressedModel) else None,
    }
    values = [np.broadcast_to(np.asarray(value), len(last)).tolist() for value in columns.values()]
    scalars = (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
    return list(zip(np.where(inside, excess[:, :-1], final[:, None]), scalars, strict=True))


def _of_losses(problems: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray]:
    """f*, 0 where it is not known, and the absolute rounding error of L - f*, of each; losses are often shared."""
    losses = {id(problem.loss): problem.loss for problem in problems}
    known = {key: (minimum_of(loss) or 0.0, rounding_of(loss)) for key, loss in losses.items()}
    minima, rounding = np.array([known[id(problem.loss)] for problem in problems]).T
    return minima, rounding
