"""What a report says of a run, as rows of a name and a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.laws import Diagnosis, diagnose
from flowsim.losses import UnknownLoss
from flowsim.rates import Certificates
from flowsim.runs import words
from flowsim.runs.trajectory import Trajectory
from flowsim.runs.words import number
from flowsim.sweeps.store import flat
from flowsim.values import Json

MOST_WORK = 3e10
"""Operations, a few seconds: the laws are not checked here where that takes more, for it repeats the run."""
OVERHEAD = 2e5
"""Operations that take as long as what a right-hand side costs beside its products."""
OF_RUN, EACH = 8, 40
"""A diagnosis takes about so many times the right-hand sides of the run, and so many more for each checkpoint."""
Rows = list[tuple[str, str]]
STATISTICS = {
    "steps": "accepted steps",
    "rhs_evaluations": "right-hand sides",
    "rejected_steps": "rejected steps",
    "jacobians": "Jacobians",
    "seconds": "seconds, compilation apart",
    "compile_seconds": "seconds of compilation",
}


def summary(trajectory: Trajectory, certificates: Certificates) -> Rows:
    """The run in a dozen lines; its status apart."""
    compressed = trajectory.reduction.network
    unknown = isinstance(trajectory.problem.loss, UnknownLoss)
    return [
        ("method", str(trajectory.method)),
        *([] if trajectory.motion.is_plain else [("what the weights obey", words.obeyed(trajectory))]),
        ("widths, full", "-".join(map(str, trajectory.problem.network.dims))),
        ("widths, as integrated", "full" if compressed is None else "-".join(map(str, compressed.core.dims))),
        ("estimated compression error", words.compression_error(trajectory)),
        ("time reached", number(float(trajectory.time[-1]))),
        ("final loss L", words.final_loss(trajectory, unknown)),
        ("(L − f*) at the end / at t = 0", words.ratio(trajectory)),
        ("mean rate seen", words.mean_rate(trajectory)),
        ("best certified rate", words.certified(trajectory, certificates.best, unknown)),
        *([] if (tail := words.tail(trajectory)) is None else [("the rest of it", tail)]),
        ("greatest residuals", words.drifts(trajectory) or "no law is known"),
        ("steps", number(trajectory.stats.get("steps"))),
        ("seconds", number(trajectory.stats.get("seconds"))),
    ]


def laws_of(trajectory: Trajectory) -> Diagnosis | str:
    """The laws, or in a sentence why they were not checked."""
    network, stats = trajectory.simulated.network, trajectory.stats
    of_run = (stats.get("rhs_evaluations") or stats["steps"]) + 2 * network.size * (stats.get("jacobians") or 0)
    evaluations = OF_RUN * of_run + EACH * len(trajectory.checkpoints.times)
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


TOLD = ("weight_decay", "dynamics", "method", "step_size", "rtol", "atol", "loss")
"""Options that the problem and the method say themselves."""


def configuration(trajectory: Trajectory) -> Json:
    """The problem, the method, and the other options as they were stored with the run, if any were."""
    stored = trajectory.provenance.get("configuration", {})
    network, loss = trajectory.problem.network, trajectory.problem.loss
    name = "a loss of the user's own, not in the file" if isinstance(loss, UnknownLoss) else type(loss).__name__
    return {
        "loss": name,
        "loss.shape": "x".join(map(str, loss.shape)),
        "network": {"dims": list(network.dims), "scale": network.scale, "origin": dict(network.origin)},
        "method": trajectory.method.describe(),
        "dynamics": trajectory.dynamics.describe(),
        "weight_decay": trajectory.problem.weight_decay,
        "options": {name: value for name, value in stored.items() if name not in TOLD},
    }


def provenance(trajectory: Trajectory) -> Json:
    """Versions, platform and whatever else was stored with the run."""
    return {key: value for key, value in trajectory.provenance.items() if key != "configuration"}


def rows(record: Mapping[str, Any]) -> Rows:
    """Nested mappings as rows, their keys joined by dots; what is None is left out."""
    told = {key: value for key, value in flat(record).items() if value is not None}
    return [(k, ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v)) for k, v in told.items()]
