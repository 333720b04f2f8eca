"""How far a run is from the exact flow: the global error of its weights and of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from flowsim.display import Shown, Table
from flowsim.errors import InputError
from flowsim.losses import UnknownLoss, excess
from flowsim.methods.steps import IntegrationFailure
from flowsim.progress import Progress, following
from flowsim.runs.tight import Deadline, Tight, WallLimit, distance
from flowsim.threads import threads_for
from flowsim.values import Json

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory


@dataclass(frozen=True, eq=False, repr=False)
class GlobalError(Shown):
    """The estimated distance of a run from the exact flow with the same start, at the times of its checkpoints.

    time (C): these times; all saved ones, unless the run's weights at all of them exceed 64 MiB.
    weights (C): ||W(t) - W*(t)||_F over all layers, the error of compression included; loss (C): |L(t) - L*(t)|.
    tolerance: rtol of the run; size: the greatest ||W(t)||_F met.
    status: "completed", or what ended the work early ("wall_limit", "interrupted", "diverged"): then the arrays end
    where it ended.

    A tolerance bounds the error of one step; what they come to in the end depends on the flow:

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1e-3]], [[1e-3]])))
    >>> error = fs.simulate(problem, "rk45", t1=8.0, save_points=9).global_error()
    >>> error.status, bool(1e-8 < error.weights.max() < 1e-5), bool(error.weights[-1] < error.weights[4])
    ('completed', True, True)
    """

    time: np.ndarray
    weights: np.ndarray
    loss: np.ndarray
    tolerance: float | None
    size: float
    status: str = "completed"

    @property
    def greatest(self) -> float:
        """The greatest error of the weights, relative to the greatest ||W(t)||_F."""
        return float(self.weights.max()) / (self.size or 1.0)

    def words(self) -> str:
        """In one sentence."""
        place = int(np.argmax(self.weights))
        until = "" if self.status == "completed" else f" (until t = {self.time[-1]:.4g}: {self.status})"
        allowed = "" if not self.tolerance else f", {self.greatest / self.tolerance:.3g} times rtol"
        return (
            f"weights off by about {self.weights[place]:.2g} at most, at t = {self.time[place]:.4g}"
            f" ({self.greatest:.2g} of their norm{allowed}); loss by {float(self.loss.max()):.2g}{until}"
        )

    def shown(self) -> Table:
        """The greatest errors, and those at the end."""
        at_end = f"weights {self.weights[-1]:.3g}, loss {self.loss[-1]:.3g} at t = {self.time[-1]:.6g}"
        return Table([("global error", self.words()), ("at the end", at_end), ("status", self.status)])

    def to_json(self) -> Json:
        """The object under `global_error` that `flowsim simulate --global-error --json` prints."""
        return {
            "status": self.status,
            "time": self.time.tolist(),
            "weights": self.weights.tolist(),
            "loss": self.loss.tolist(),
            "relative": self.greatest,
        }


def global_error(
    run: Trajectory, progress: Progress | bool | None = None, wall_limit: float | None = None
) -> GlobalError:
    """Of a run of an ODE method: see Trajectory.global_error."""
    if run.method.kind.discrete:
        raise InputError(
            "The run must be a flow: gradient descent is its own recurrence, and its steps have no error; what"
            " compression costs is `error_estimate`, how far it is from the flow `flowsim compare` shows."
        )
    if isinstance(run.problem.loss, UnknownLoss):
        raise InputError("The run was loaded without its own loss; pass it to load(path, loss=...).")
    deadline, problem, kept = Deadline(wall_limit), run.simulated, run.checkpoints
    tight, state, status = Tight(run), kept.whole(0), "completed"
    compressed = np.interp(kept.times, run.time, run.error_estimate)
    weights, losses = [float(compressed[0])], [0.0]
    with following(progress, float(kept.times[-1])) as tell, threads_for(max(problem.network.dims)):
        try:
            for place, (start, stop) in enumerate(pairwise(kept.times.tolist()), 1):
                state = tight.end(start, state, stop, deadline)
                reached = state[: problem.network.size]
                products = problem.products(np.stack([kept.states[place], reached]))
                own, true = (float(excess(problem.loss, W)) for W in products)
                weights.append(distance(reached, kept.states[place]) + float(compressed[place]))
                losses.append(abs(own - true))
                if tell is not None:
                    tell(stop, own, float(run.excess[0]))
        except KeyboardInterrupt:
            status = "interrupted"
        except WallLimit:
            status = "wall_limit"
        except IntegrationFailure:
            status = "diverged"
    tolerance = getattr(run.method.settings, "rtol", None)
    fixed = getattr(run.method.settings, "step_size", None) is not None
    size = float(np.linalg.norm(kept.states, axis=1).max())
    times = kept.times[: len(weights)]
    return GlobalError(times, np.array(weights), np.array(losses), None if fixed else tolerance, size, status)
