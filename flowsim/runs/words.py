"""What there is to say of a run in numbers, in the same words wherever it is shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.losses import UnknownLoss, minimum_of
from flowsim.network import DENSE_LIMIT
from flowsim.rates import Certificate

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory


def number(value: Any) -> str:
    """Four significant digits; "not known" for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "not known"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def final_loss(run: Trajectory, unknown: bool) -> str:
    """L at the end; unknown: whether the loss itself is, so that f* may be missing from it."""
    if unknown and run.excess[-1] >= 0:
        return f"{number(float(run.excess[-1]))} above f*, if the loss declares f*"
    return number(float(run.loss[-1]))


def ratio(run: Trajectory) -> str:
    """(L - f*) at the end over that at t = 0."""
    if minimum_of(run.problem.loss) is None:
        return "f* is not known"
    return number(float(run.excess[-1] / run.excess[0])) if run.excess[0] else "0"


def mean_rate(run: Trajectory) -> str:
    """The mean rate seen, until when, and of what."""
    rate = run.rate_seen
    if rate is None:
        return f"not known: {_no_rate(run)}"
    until = "" if run.resolved_until is None else f" until t = {run.resolved_until:.4g}"
    return f"{rate:.4g}" + ("" if minimum_of(run.problem.loss) is not None else ", of L itself") + until


def _no_rate(run: Trajectory) -> str:
    if run.time[-1] <= 0:
        return "no step was taken"
    if run.resolved_until == 0:
        return "the first step ends within the tolerance of the minimum"
    return "L - f* is not positive"


def certified(run: Trajectory, best: Certificate | None, unknown: bool) -> str:
    """The best certified rate, its certificate and law, or why there is none."""
    if unknown:
        return "not known: the file does not hold the loss"
    if not run.motion.is_plain:
        return f"none: no theorem is on {obeyed(run)}"
    if best is None or best.rate is None:
        return "none applies" if best is None else f"none: {best.reason}"
    if best.rate == 0:
        return "none: the certificates that apply are 0"
    law = "" if best.law == "exponential" else ", hyperbolic"
    return f"{best.rate:.4g} ({best.name}{law})"


def compression_error(run: Trajectory) -> str:
    """The estimated error of the weights, absolute and over their change."""
    estimate, change = float(run.error_estimate[-1]), run.weights_change
    if run.reduction.network is None and estimate == 0:
        return "none: the full weights were integrated"
    if estimate == 0 or change == 0:
        return number(estimate)
    return f"{estimate:.2g}, relative to the weights' change {estimate / change:.2g}"


def obeyed(run: Trajectory) -> str:
    """What the weights obey, in words."""
    decay = f", weight decay {run.problem.weight_decay:g}" if run.problem.weight_decay else ""
    return f"{run.dynamics}{decay}"


def drifts(run: Trajectory) -> str:
    """The greatest residuals of the laws that the run should obey, but for round-off and the errors of its steps."""
    found, of = [], " of the flow" if run.method.kind.discrete else ""
    if run.dynamics.keeps_imbalance:
        about = "about " if run.drift_is_estimated else ""
        found.append(f"imbalance {about}{number(float(run.imbalance_drift.max()))}")
    ends = laws_of_the_dynamics(run)
    found += [f"{name} {number(residual)}" for name, residual in ends.items()]
    method = run.method
    another = method.kind.recorded or method.carries or method.stochastic  # what is lost is another sum
    if run.motion.has_energy and not another:
        found.append(f"energy{of} {np.abs(run.energy_residual).max():.3g}")
    return ", ".join(found)


def laws_of_the_dynamics(run: Trajectory) -> dict[str, float]:
    """name -> the greatest residual over layers and checkpoints of what the dynamics itself tells of (M_l, say)."""
    greatest: dict[str, float] = {}
    for place, t in enumerate(run.checkpoints.times):
        for (name, _), residual in run.simulated_motion.residuals(float(t), run.checkpoints.whole(place)).items():
            kind = name.rsplit(" ", 1)[0]
            greatest[kind] = max(greatest.get(kind, 0.0), residual)
    return greatest


def tail(run: Trajectory) -> str | None:
    """What is proved of the rest of a run that ended well, where that is known in a moment."""
    dims = run.problem.network.dims
    if not (run.motion.is_plain or run.method.kind.recorded):
        return None  # no theorem is on it
    if run.exit_code or dims[0] * dims[-1] > DENSE_LIMIT or isinstance(run.problem.loss, UnknownLoss):
        return None
    compressed = run.reduction.network
    flow = "of the flow, " if run.method.kind.recorded else ""
    return flow + run.certify_tail().words() + ("" if compressed is None or compressed.exact else " (as compressed)")
