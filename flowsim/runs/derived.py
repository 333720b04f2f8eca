"""Each number that the record of a run shows, once: losses, drift, energy, until when the loss is that of the flow, the
rate seen, and the scalars that ensembles, sweeps, comparisons and reports keep of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flowsim.losses import Loss, is_built_in, minimum_of
from flowsim.runs.record import Record
from flowsim.values import Json

NEAR = 3.0
"""A loss is unresolved within so many tolerances of its minimum: there errors of the steps decide its fall."""
EPSILON = float(np.finfo(float).eps)
"""Of the weights' norm: without a tolerance their rounding alone says how near a minimum can be approached."""
ROUND_OFF = 1e3 * EPSILON
"""A fall of the loss, or of what it dissipates, by less than this share says nothing."""
TAIL = 0.1
"""The share of the steps, the last ones and at least two, in which a floor is looked for."""
PROMISED, SEEN = 5.0, 0.5
"""A floor is where the gradient promises a fall by e^PROMISED at least, and less than SEEN of that exponent is seen."""
DEEP = 1e-6
"""A floor lies below this share of the first value: above, a loss that rests is at a saddle."""
ABOVE = 100.0
"""A value is resolved down to ABOVE times the greatest of the last steps, or of its rounding errors."""


class Rows(NamedTuple):
    """What M runs did, in K rows each: t, L - f* and the integral of ||grad L||_F^2 (M, K) after each step; kept
    (M, K): whether the row is a step, or the start; one that is not repeats the row before."""

    time: np.ndarray
    excess: np.ndarray
    dissipated: np.ndarray
    kept: np.ndarray


def resolved_times(
    steps: Rows,
    gradient: np.ndarray,
    tolerance: np.ndarray | None,
    size: np.ndarray,
    rounding: np.ndarray,
) -> np.ndarray:
    """(M): the end of the last step whose L - f* is resolved; inf where that is the last of all, or not known.

    gradient: ||grad L||_F at the end; tolerance: that of the steps, in ||.||_F of the weights, None where they are not
    controlled; size: ||W||_F at the end; rounding: the absolute rounding error of L - f*; each (M).
    """
    time, excess, _, kept = steps
    first = excess[:, :1]
    error = EPSILON * size if tolerance is None else tolerance
    resolved = kept & (_distances(steps, gradient) > NEAR * error[:, None])
    resolved &= (excess > ABOVE * rounding[:, None]) | (excess == first)
    usual = (np.isfinite(excess) & (excess >= -DEEP * first) | ~kept).all(1) & (first[:, 0] > 0) & (kept.sum(1) > 1)
    if tolerance is None:
        every = zip(time, excess, kept, gradient, usual, strict=True)
        floors = [_floor(t[k], e[k], g) if known else 0.0 for t, e, k, g, known in every]
        resolved &= excess > np.array(floors)[:, None]
    last = kept.shape[1] - 1 - kept[:, ::-1].argmax(1)
    found = np.where(resolved, time, -np.inf).max(1)
    return np.where(usual & ~resolved[np.arange(len(last)), last], found, np.inf)


def rounding_of(loss: Loss) -> float:
    """The absolute rounding error of L - f*: of losses of flowsim it is relative, of another one that of L."""
    return 0.0 if is_built_in(loss) else float(np.finfo(float).eps * abs(minimum_of(loss) or 0.0))


def _distances(steps: Rows, gradient: np.ndarray) -> np.ndarray:
    """(M, K): how far the weights are from the minimum after each step, in ||.||_F; inf at t = 0.

    At the distance d L - f* = c d^2 / 2 and ||grad L||_F = c d: c is half of ||grad L||_F^2 over L - f*, each in its
    mean over the step; where rounding of `dissipated` hides it, that of the end.
    """
    first, last = steps.excess[:, :-1], np.maximum(steps.excess[:, 1:], 0.0)
    lost, length = np.diff(steps.dissipated), np.diff(steps.time)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        ratio = np.log(first / last)
        mean = np.where(np.abs(ratio) > 1e-6, (first - last) / ratio, first)
        at_end = (gradient * gradient)[:, None] / (2 * last[:, -1:])
        curvature = np.where(lost > ROUND_OFF * steps.dissipated[:, -1:], lost / length / (2 * mean), at_end)
        found = np.where(last > 0, np.sqrt(2 * last / curvature), 0.0)
    return np.insert(found, 0, np.inf, axis=1)


def _floor(time: np.ndarray, excess: np.ndarray, gradient: float) -> float:
    """The greatest unresolved L - f* of a record without a tolerance; -inf where all of it is resolved.

    The exact flow obeys -d/dt log(L - f*) = ||grad L||_F^2 / (L - f*). There is a floor where that promises, between
    the halves of the last TAIL of the steps, a fall that is not seen.
    """
    first = max(min(int(len(time) * (1 - TAIL)), len(time) - 2), 0)
    tail, middle, last = excess[first:], (len(time) - first) // 2, float(excess[-1])
    if tail.max() > DEEP * excess[0]:
        return -np.inf
    promised = float((time[-1] - time[first]) / 2 * gradient * gradient)
    before, after = float(np.median(tail[:middle])), float(np.median(tail[middle:]))
    seen = np.log(before / after) if min(before, after) > 0 else 0.0
    if promised <= PROMISED * last or (last > 0 and seen >= SEEN * promised / last):
        return -np.inf
    return float(np.clip(ABOVE * tail.max(), 0.0, DEEP * excess[0]))


def loss(record: Record, excess: np.ndarray) -> np.ndarray:
    """L of L - f*."""
    return (minimum_of(record.problem.loss) or 0.0) + excess


def relative_drift(change: np.ndarray, norms: Sequence[float] | np.ndarray) -> np.ndarray:
    """||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)."""
    return change / np.maximum(1.0, norms)


def imbalance_drift(record: Record) -> np.ndarray:
    """(S, L-1): ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)."""
    return relative_drift(record.imbalance_change, record.problem.network.imbalance_norms)


def unbalanced(energy: np.ndarray, dissipated: np.ndarray) -> np.ndarray:
    """(E(0) - E(t) - what was dissipated) / E(0), the steps last."""
    start = energy[..., :1]
    return (start - energy - dissipated) / np.where(start == 0, 1.0, start)


def energy_residual(record: Record) -> np.ndarray:
    """`unbalanced` after each step, E = L - f* and what is stored beside; NaN where the dynamics knows of no energy."""
    if not record.motion.has_energy:
        return np.full(len(record.steps.time), np.nan)
    return unbalanced(record.steps.energy, record.steps.dissipated)


def resolved_until(record: Record) -> float | None:
    """Until when L - f* is that of the flow, not round-off and error; None where it is to the end, or not known."""
    steps, end = record.steps, record.checkpoints.states[-1]
    if record.motion.structure != "gradient":
        return None  # neither the gradient nor what is dissipated tells how far away the minimum is
    size, rounding = np.linalg.norm(end[None], axis=1), np.array([rounding_of(record.problem.loss)])
    tolerance = record.method.step_tolerance(size, len(end))
    rows = _alone(steps.time, steps.energy, steps.dissipated)
    found = float(resolved_times(rows, record.gradient_norm[-1:], tolerance, size, rounding)[0])
    return found if found < np.inf else None


def _alone(time: np.ndarray, excess: np.ndarray, dissipated: np.ndarray) -> Rows:
    """Those of one run."""
    return Rows(time[None], excess[None], dissipated[None], np.ones((1, len(time)), bool))


def rates_seen(steps: Rows, until: np.ndarray) -> np.ndarray:
    """(M): log((L(0) - f*) / (L(t) - f*)) / t, t the end of the steps, or `until` (M) where that is earlier; NaN where
    the loss has not changed by more than rounding."""
    place = np.minimum((steps.time < until[:, None]).sum(1), steps.time.shape[1] - 1)[:, None]
    first, (last, end) = steps.excess[:, 0], (np.take_along_axis(part, place, 1)[:, 0] for part in steps[1::-1])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        fallen = np.log(first / last)
        known = (last > 0) & (last < np.inf) & (first > 0) & (end > 0) & (np.abs(fallen) > ROUND_OFF)
        return np.where(known, fallen / end, np.nan)


def rate_seen(record: Record, until: float | None) -> float | None:
    """rates_seen of one run; None for NaN."""
    steps = record.steps
    rows = _alone(steps.time, steps.excess, steps.dissipated)
    found = float(rates_seen(rows, np.array([np.inf if until is None else until]))[0])
    return None if np.isnan(found) else found


class Scalar(NamedTuple):
    """A number or word that is kept of a run: what it is, and its value."""

    words: str
    of: Callable[[Record], float | str | None]


SCALARS = {
    "status": Scalar("how the simulation ended", lambda r: r.status),
    "reason": Scalar("why it failed", lambda r: None if r.exit_code == 0 else r.message),
    "initial_loss": Scalar("L(0)", lambda r: float(loss(r, r.excess[0]))),
    "final_loss": Scalar("L at the end", lambda r: float(loss(r, r.excess[-1]))),
    "final_excess": Scalar("L - f* at the end", lambda r: float(r.excess[-1])),
    "time_reached": Scalar(
        "t at the end: where L - f* fell to stop_loss if status is converged", lambda r: float(r.time[-1])
    ),
    "rate_seen": Scalar(
        "log((L(0) - f*) / (L - f*)) / t at the end, or where the loss is last resolved",
        lambda r: rate_seen(r, resolved_until(r)),
    ),
    "drift": Scalar(
        "greatest ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F), where the dynamics conserves D_l",
        lambda r: float(imbalance_drift(r).max()) if r.dynamics.keeps_imbalance else None,
    ),
    "energy_residual": Scalar(
        "greatest |L(0) - L(t) - integral of ||grad L||^2| / (L(0) - f*); of other dynamics that of their energy",
        lambda r: float(np.abs(energy_residual(r)).max()) if r.motion.has_energy else None,
    ),
    "error_estimate": Scalar(
        "estimated compression error of the weights at the end", lambda r: float(r.reduction.error[-1])
    ),
    "steps": Scalar("accepted steps", lambda r: r.stats["steps"]),
    "rhs_evaluations": Scalar("right-hand sides", lambda r: r.stats["rhs_evaluations"]),
    "core_width": Scalar(
        "greatest width of the compressed network",
        lambda r: None if r.reduction.network is None else max(r.reduction.network.widths[1:-1]),
    ),
}
"""name -> what it is, and its value of a record."""


def scalars(record: Record) -> Json:
    """All SCALARS of a record."""
    return {name: scalar.of(record) for name, scalar in SCALARS.items()}
