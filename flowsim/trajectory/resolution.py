"""Until when a recorded loss is that of the flow, and not what round-off and the errors of the steps leave of it; and
the rate that it shows until then."""

from __future__ import annotations

import numpy as np

TAIL = 0.1
"""The share of the steps, the last ones and at least two, in which a floor is looked for."""
PROMISED, SEEN = 5.0, 0.5
"""A floor is where the gradient promises a fall by e^PROMISED at least, and less than SEEN of that exponent is seen."""
DEEP = 1e-6
"""A floor lies below this share of the first value: above, a loss that rests is at a saddle."""
ABOVE = 100.0
"""A value is resolved down to ABOVE times the greatest of the last steps."""


def resolved_until(time: np.ndarray, excess: np.ndarray, gradient: float, last: float) -> float | None:
    """The end of the last step whose L - f* is resolved; None where all are.

    time, excess: t and L - f* after each step; gradient, last: ||grad L||_F and L - f* at the end. The exact flow obeys
    -d/dt log(L - f*) = ||grad L||_F^2 / (L - f*). There is a floor where that promises, between the halves of the last
    TAIL of the steps, a fall that is not seen.
    """
    first = max(min(int(len(time) * (1 - TAIL)), len(time) - 2), 0)
    tail, middle = excess[first:], (len(time) - first) // 2
    if len(tail) < 2 or not np.isfinite(excess).all() or excess[0] <= 0 or tail.max() > DEEP * excess[0]:
        return None
    promised = float((time[-1] - time[first]) / 2 * gradient**2)
    before, after = float(np.median(tail[:middle])), float(np.median(tail[middle:]))
    seen = np.log(before / after) if min(before, after) > 0 else 0.0
    if promised <= PROMISED * last or (last > 0 and seen >= SEEN * promised / last):
        return None
    floor = float(np.clip(ABOVE * tail.max(), 0.0, DEEP * excess[0]))
    return float(time[np.flatnonzero(excess > floor)[-1]])


def rate_seen(time: np.ndarray, excess: np.ndarray, until: float | None) -> float | None:
    """The mean rate log((L(0) - f*) / (L(t) - f*)) / t of a record of steps; None where nothing fell.

    time, excess: t and L - f* after each step; t is the last of them, or `until` where the rest is not resolved.
    """
    place = len(time) - 1 if until is None else int(np.searchsorted(time, until))
    first, last, end = float(excess[0]), float(excess[place]), float(time[place])
    return float(np.log(first / last)) / end if 0 < last < np.inf and first > 0 and end > 0 else None
