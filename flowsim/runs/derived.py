"""Each number that the record of a run shows, once: losses, drift, energy, until when the loss is that of the flow, the
rate seen, and the scalars that ensembles, sweeps, comparisons and reports keep of a run."""

from __future__ import annotations

from collections.abc import Callable
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


def _resolved_until(
    time: np.ndarray,
    excess: np.ndarray,
    dissipated: np.ndarray,
    gradient: float,
    tolerance: float | None,
    size: float,
    rounding: float,
) -> float | None:
    """The end of the last step whose L - f* is resolved; None where that is the last of all.

    time, excess, dissipated: t, L - f* and the integral of ||grad L||_F^2 after each step; gradient: ||grad L||_F at
    the end; tolerance: that of the steps, in ||.||_F of the weights, None where they are not controlled; size: ||W||_F
    at the end; rounding: the absolute rounding error of L - f*.
    """
    if len(time) < 2 or not np.isfinite(excess).all() or excess[0] <= 0 or excess.min() < -DEEP * excess[0]:
        return None
    error = EPSILON * size if tolerance is None else tolerance
    resolved = _distance(time, excess, dissipated, gradient) > NEAR * error
    if tolerance is None:
        resolved &= excess > _floor(time, excess, gradient)
    resolved &= (excess > ABOVE * rounding) | (excess == excess[0])
    return None if resolved[-1] else float(time[np.flatnonzero(resolved)[-1]])


def rounding_of(loss: Loss) -> float:
    """The absolute rounding error of L - f*: of losses of flowsim it is relative, of another one that of L."""
    return 0.0 if is_built_in(loss) else float(np.finfo(float).eps * abs(minimum_of(loss) or 0.0))


def _distance(time: np.ndarray, excess: np.ndarray, dissipated: np.ndarray, gradient: float) -> np.ndarray:
    """(K,): how far the weights are from the minimum after each step, in ||.||_F; inf at t = 0.

    At the distance d L - f* = c d^2 / 2 and ||grad L||_F = c d: c is half of ||grad L||_F^2 over L - f*, each in its
    mean over the step; where rounding of `dissipated` hides it, that of the end.
    """
    first, last = excess[:-1], np.maximum(excess[1:], 0.0)
    lost = np.diff(dissipated)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        ratio = np.log(first / last)
        mean = np.where(np.abs(ratio) > 1e-6, (first - last) / ratio, first)
        curvature = lost / np.diff(time) / (2 * mean)
        curvature = np.where(lost > ROUND_OFF * dissipated[-1], curvature, gradient * gradient / (2 * last[-1]))
        found = np.sqrt(2 * last / curvature)
    return np.append(np.inf, np.where(last > 0, found, 0.0))


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


def imbalance_drift(record: Record) -> np.ndarray:
    """(S, L-1): ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)."""
    return record.imbalance_change / np.maximum(1.0, record.problem.network.imbalance_norms)


def energy_residual(record: Record) -> np.ndarray:
    """(E(0) - E(t) - what was dissipated) / E(0) after each step, E = L - f* and what is stored beside; NaN where the
    dynamics knows of no energy."""
    if not record.motion.has_energy:
        return np.full(len(record.steps.time), np.nan)
    energy, dissipated = record.steps.energy, record.steps.dissipated
    return (energy[0] - energy - dissipated) / (energy[0] or 1.0)


def resolved_until(record: Record) -> float | None:
    """Until when L - f* is that of the flow, not round-off and error; None where it is to the end, or not known."""
    steps, end = record.steps, record.checkpoints.states[-1]
    if record.motion.structure != "gradient":
        return None  # neither the gradient nor what is dissipated tells how far away the minimum is
    size = float(np.linalg.norm(end))
    tolerance = record.method.step_tolerance(size, len(end))
    told = steps.time, steps.energy, steps.dissipated, float(record.gradient_norm[-1])
    return _resolved_until(*told, tolerance, size, rounding_of(record.problem.loss))


def rate_seen(record: Record, until: float | None) -> float | None:
    """log((L(0) - f*) / (L(t) - f*)) / t, t the end of the steps, or `until`; None where the loss has not changed by
    more than rounding."""
    time, excess = record.steps.time, record.steps.excess
    place = len(time) - 1 if until is None else int(np.searchsorted(time, until))
    first, last, end = float(excess[0]), float(excess[place]), float(time[place])
    if not (0 < last < np.inf and first > 0 and end > 0):
        return None
    fallen = float(np.log(first / last))
    return fallen / end if abs(fallen) > ROUND_OFF else None


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
