"""What a report says of a run, as rows of a name and a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowsim.diagnosis import Diagnosis, diagnose
from flowsim.errors import FlowsimError
from flowsim.losses import minimum_of
from flowsim.methods import GradientDescent, describe
from flowsim.rates import Certificate, Certificates
from flowsim.store import flat
from flowsim.trajectory import Trajectory, UnknownLoss

MOST_WORK = 3e10
"""Operations, a few seconds: the laws are not checked here where that takes more, for it repeats the run."""
OVERHEAD = 2e5
"""Operations that take as long as what a right-hand side costs beside its products."""
RESTART = 100
"""Right-hand sides of a tight solve from one checkpoint to the next, at least."""
Rows = list[tuple[str, str]]
STATISTICS = {
    "steps": "accepted steps",
    "rhs_evaluations": "right-hand sides",
    "rejected_steps": "rejected steps",
    "jacobians": "Jacobians",
    "seconds": "seconds, compilation apart",
    "compile_seconds": "seconds of compilation",
}


def number(value: Any) -> str:
    """Four significant digits; "not known" for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "not known"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary(trajectory: Trajectory, certificates: Certificates) -> Rows:
    """The run in a dozen lines; its status apart."""
    compressed = trajectory.reduction.network
    known = minimum_of(trajectory.problem.loss) is not None
    return [
        ("method", str(trajectory.method)),
        ("widths, full", "-".join(map(str, trajectory.problem.network.dims))),
        ("widths, as integrated", "full" if compressed is None else "-".join(map(str, compressed.core.dims))),
        ("estimated compression error", _error(trajectory)),
        ("time reached", number(float(trajectory.time[-1]))),
        ("final loss L", _final_loss(trajectory)),
        ("(L − f*) at the end / at t = 0", _ratio(trajectory) if known else "f* is not known"),
        ("mean rate seen", _mean_rate(trajectory, known)),
        ("best certified rate", _certified(trajectory, certificates.best)),
        ("greatest relative drift of Dₗ", number(float(trajectory.imbalance_drift.max()))),
        ("steps", number(trajectory.stats.get("steps"))),
        ("seconds", number(trajectory.stats.get("seconds"))),
    ]


def _error(trajectory: Trajectory) -> str:
    estimate, change = float(trajectory.error_estimate[-1]), trajectory.weights_change
    if trajectory.reduction.network is None and estimate == 0:
        return "none: the full weights were integrated"
    if estimate == 0 or change == 0:
        return number(estimate)
    return f"{estimate:.2g}, relative to the weights' change {estimate / change:.2g}"


def _final_loss(trajectory: Trajectory) -> str:
    if isinstance(trajectory.problem.loss, UnknownLoss) and trajectory.excess[-1] >= 0:
        return f"{number(float(trajectory.excess[-1]))} above f*, if the loss declares f*"
    return number(float(trajectory.loss[-1]))


def _ratio(trajectory: Trajectory) -> str:
    return number(float(trajectory.excess[-1] / trajectory.excess[0])) if trajectory.excess[0] else "0"


def _mean_rate(trajectory: Trajectory, known: bool) -> str:
    rate = trajectory.rate_seen
    if rate is None:
        return "not known: " + ("no step was taken" if trajectory.time[-1] <= 0 else "L − f* is not positive")
    until = "" if trajectory.resolved_until is None else f" until t = {trajectory.resolved_until:.4g}"
    return f"{rate:.4g}" + ("" if known else ", of L itself") + until


def _certified(trajectory: Trajectory, best: Certificate | None) -> str:
    if isinstance(trajectory.problem.loss, UnknownLoss):
        return "not known: the file does not hold the loss"
    if best is None or best.rate is None:
        return "none applies" if best is None else f"none: {best.reason}"
    if best.rate == 0:
        return "none: the certificates that apply are 0"
    law = "" if best.law == "exponential" else ", hyperbolic"
    return f"{best.rate:.4g} ({best.name}{law})"


def laws_of(trajectory: Trajectory) -> Diagnosis | str:
    """The laws, or in a sentence why they were not checked."""
    network = trajectory.simulated.network
    evaluations = 3 * (trajectory.stats.get("rhs_evaluations") or trajectory.stats["steps"])
    if not isinstance(trajectory.method, GradientDescent):
        evaluations += RESTART * len(trajectory.checkpoints.times)
    if evaluations * (6 * min(network.dims[0], network.dims[-1]) * network.size + OVERHEAD) > MOST_WORK:
        return (
            f"Not checked here: that takes about {evaluations} evaluations of the gradient of {network.size} weights."
            " Use flowsim report --laws always, or flowsim diagnose."
        )
    try:
        return diagnose(trajectory)
    except FlowsimError as error:
        return f"Not checked: {error}"


def statistics(trajectory: Trajectory) -> Rows:
    """Counts and seconds; the sizes of the steps; what is stored."""
    rows = [(STATISTICS.get(name, name), number(value)) for name, value in trajectory.stats.items()]
    sizes = np.diff(trajectory.step_time)
    if len(sizes):
        rows.append(("step sizes", f"{sizes.min():.3g} to {sizes.max():.3g}"))
    rows.append(("saved times", str(len(trajectory.time))))
    rows.append(("checkpoints of the weights", str(len(trajectory.checkpoints.times))))
    rows.append(("width", trajectory.reduction.reason))
    return rows


TOLD = ("method", "step_size", "rtol", "atol", "loss")
"""Options that the problem and the method say themselves."""


def configuration(trajectory: Trajectory) -> dict[str, Any]:
    """The problem, the method, and the other options as they were stored with the run, if any were."""
    stored = trajectory.provenance.get("configuration", {})
    network, loss = trajectory.problem.network, trajectory.problem.loss
    name = "a loss of the user's own, not in the file" if isinstance(loss, UnknownLoss) else type(loss).__name__
    return {
        "loss": name,
        "loss.shape": "x".join(map(str, loss.shape)),
        "network": {"dims": list(network.dims), "scale": network.scale, "origin": dict(network.origin)},
        "method": describe(trajectory.method),
        "options": {name: value for name, value in stored.items() if name not in TOLD},
    }


def provenance(trajectory: Trajectory) -> dict[str, Any]:
    """Versions, platform and whatever else was stored with the run."""
    return {key: value for key, value in trajectory.provenance.items() if key != "configuration"}


def rows(record: Mapping[str, Any]) -> Rows:
    """Nested mappings as rows, their keys joined by dots; what is None is left out."""
    told = {key: value for key, value in flat(record).items() if value is not None}
    return [(k, ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v)) for k, v in told.items()]
