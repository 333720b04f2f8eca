"""Until when a recorded loss is that of the flow, and not what round-off and the errors of the steps leave of it; and
the rate that it shows until then."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowsim.losses import is_built_in, minimum_of

NEAR = 3.0
"""A loss is unresolved within so many tolerances of its minimum: there errors of the steps decide its fall."""
ROUND_OFF = 1e3 * np.finfo(float).eps
"""A step that dissipates less than this share of all says nothing of the curvature."""
TAIL = 0.1
"""The share of the steps, the last ones and at least two, in which a floor is looked for."""
PROMISED, SEEN = 5.0, 0.5
"""A floor is where the gradient promises a fall by e^PROMISED at least, and less than SEEN of that exponent is seen."""
DEEP = 1e-6
"""A floor lies below this share of the first value: above, a loss that rests is at a saddle."""
ABOVE = 100.0
"""A value is resolved down to ABOVE times the greatest of the last steps, or of its rounding errors."""


def resolved_until(
    time: np.ndarray,
    excess: np.ndarray,
    dissipated: np.ndarray,
    gradient: float,
    tolerance: float | None,
    rounding: float,
) -> float | None:
    """The end of the last step whose L - f* is resolved; None where that is the last of all.

    time, excess, dissipated: t, L - f* and the integral of ||grad L||_F^2 after each step; gradient: ||grad L||_F at
    the end; tolerance: that of the steps, in ||.||_F of the weights, None where they are not controlled; rounding: the
    absolute rounding error of L - f*.
    """
    if len(time) < 2 or not np.isfinite(excess).all() or excess[0] <= 0 or excess.min() < -DEEP * excess[0]:
        return None
    if tolerance is None:
        resolved = excess > _floor(time, excess, gradient)
    else:
        resolved = _distance(time, excess, dissipated, gradient) > NEAR * tolerance
    resolved &= (excess > ABOVE * rounding) | (excess == excess[0])
    return None if resolved[-1] else float(time[np.flatnonzero(resolved)[-1]])


def rounding_of(loss: Any) -> float:
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
        curvature = np.where(lost > ROUND_OFF * dissipated[-1], curvature, gradient**2 / (2 * last[-1]))
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
    promised = float((time[-1] - time[first]) / 2 * gradient**2)
    before, after = float(np.median(tail[:middle])), float(np.median(tail[middle:]))
    seen = np.log(before / after) if min(before, after) > 0 else 0.0
    if promised <= PROMISED * last or (last > 0 and seen >= SEEN * promised / last):
        return -np.inf
    return float(np.clip(ABOVE * tail.max(), 0.0, DEEP * excess[0]))


def rate_seen(time: np.ndarray, excess: np.ndarray, until: float | None) -> float | None:
    """The mean rate log((L(0) - f*) / (L(t) - f*)) / t of a record of steps; None where nothing fell.

    time, excess: t and L - f* after each step; t is the last of them, or `until` where the rest is not resolved.
    """
    place = len(time) - 1 if until is None else int(np.searchsorted(time, until))
    first, last, end = float(excess[0]), float(excess[place]), float(time[place])
    return float(np.log(first / last)) / end if 0 < last < np.inf and first > 0 and end > 0 else None
