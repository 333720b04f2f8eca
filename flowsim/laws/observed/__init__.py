"""The rate that a simulated flow shows: lambda_min(T) along the trajectory, and the bound that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from flowsim.checks import as_number
from flowsim.display import Shown, Table
from flowsim.errors import InputError
from flowsim.laws.observed.descent import Steps
from flowsim.laws.observed.eigenvalues import loss_of_eigenvalue
from flowsim.laws.observed.path import Path
from flowsim.laws.observed.quadrature import Integral
from flowsim.losses import constants_of
from flowsim.methods.steps import IntegrationFailure
from flowsim.progress import Progress, following
from flowsim.runs import words
from flowsim.runs.tight import Deadline, WallLimit
from flowsim.runs.trajectory import Trajectory, as_trajectory
from flowsim.threads import threads_for

if TYPE_CHECKING:
    import xarray

STEPS, MOST_PANELS = 4, 24
"""The integral begins with panels of so many steps of the run, so many at most."""


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorRate(Shown):
    """lambda_min(T(t)) along a flow or gradient descent. Ours, not in [MVM23].

    law: exponential or hyperbolic, as in Certificate; status: completed, or what ended it early.

    time (S): the trajectory's saved times; lambda_min_T (S): from below, less what rounding may have added;
    integral (S): of lambda_min(T) from 0 to each; error (S): the estimated error of that integral for the exact flow;
    least: the least value met, the best constant lower bound on the way.
    bound (S): L(t) - f* <= (L(0) - f*) exp(-gamma (integral - error)) under A1, and
    (L(0) - f*) / (1 + (L(0) - f*) gamma^2 (integral - error)) under A1'; None where the loss obeys neither. It holds
    for the exact flow from the trajectory's start: of what error consists, see a_posteriori.

    Scalar weights 3 and 1 on the way to their product 2: T = w_1^2 + w_2^2 falls, and w_1^2 - w_2^2 = 8 keeps it above.

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> rate = fs.a_posteriori(fs.simulate(problem, t1=2.0))
    >>> rate.lambda_min_T[0].round(6).item(), round(rate.least, 6), round((64 + 16) ** 0.5, 6)
    (10.0, 8.944272, 8.944272)
    """

    trajectory: Trajectory
    lambda_min_T: np.ndarray
    integral: np.ndarray
    error: np.ndarray
    least: float
    law: Literal["exponential", "hyperbolic"] | None
    bound: np.ndarray | None
    status: str = "completed"

    def shown(self) -> Table:
        """The mean rate, the least lambda_min(T), and what is left between loss and bound."""
        rows = [
            ("lambda_min(T)", f"{self.lambda_min_T[0]:.6g} at t = 0, least {self.least:.6g}, mean {self.alpha:.6g}"),
            ("integral", f"{self.integral[-1]:.6g}, error at most about {self.error[-1]:.2g}"),
            ("law", "none: the loss obeys neither A1 nor A1'" if self.law is None else self.law),
        ]
        if self.bound is not None:
            rows.append(("at the end", f"L - f* = {self.trajectory.excess[-1]:.6g}, bound {self.bound[-1]:.6g}"))
        if self.status != "completed":
            rows.append(("status", f"{self.status}: lambda_min(T) counts as 0 where it was not computed"))
        return Table(rows)

    @property
    def time(self) -> np.ndarray:
        """The trajectory's saved times."""
        return self.trajectory.time

    @property
    def alpha(self) -> float:
        """The mean of lambda_min(T) over the trajectory, less the error: what a constant bound could have been."""
        return max(float((self.integral[-1] - self.error[-1]) / self.time[-1]), 0.0)

    @property
    def dataset(self) -> xarray.Dataset:
        """The trajectory's dataset with lambda_min(T), its integral, the integral's error, and the bound."""
        columns = {
            "lambda_min_T": (self.lambda_min_T, "least eigenvalue of T(t)"),
            "lambda_min_T_integral": (self.integral, "integral of the least eigenvalue of T from 0 to t"),
            "quadrature_error": (self.error, "estimated error of that integral"),
        }
        if self.bound is not None:
            columns["a_posteriori_bound"] = (self.bound, "upper bound on L(t) - f* from that integral, less its error")
        return self.trajectory.dataset.assign(
            {name: ("time", values, {"long_name": words}) for name, (values, words) in columns.items()}
        )


def a_posteriori(
    trajectory: Trajectory,
    *,
    rtol: float = 1e-8,
    progress: Progress | bool | None = None,
    wall_limit: float | None = None,
) -> PosteriorRate:
    """lambda_min(T(t)) along a flow or gradient descent, its integral, and a bound on the loss of the exact one.

    trajectory: a run of `simulate`. Of gradient descent, for a loss whose smoothness K is known, see the end.

    The flow is solved again from the run's start, in the compressed form that it was simulated in, by a method fit for
    the problem at 1/100 of the run's tolerance or less (`runs.tight.Tight`). Every value of lambda_min(T) is a lower
    bound: computed, less what rounding may have added (`Certain`). It is integrated through interpolants at 5, 9 or 17
    Chebyshev points on panels that are halved until the error is about rtol times the whole integral, or cannot be made
    so small: the tight solve's tolerance and rounding make lambda_min(T) rough.

    error, which the bound takes off the integral, is the sum of an estimate for that quadrature and of one for the
    weights: |sqrt(lambda_min(T)) - sqrt(lambda_min(T*))| <= kappa delta for weights a distance delta apart, kappa from
    the norms of products of layers. delta is the distance of the run from the tight solve, which is nearer to the exact
    flow than the run is, plus the estimated error of the compression.

    progress(t, excess, initial_excess) is called at the saved times as they are passed; True shows a bar. wall_limit:
    seconds. Where it, Ctrl-C or a failure of the tight solve ends the work early, PosteriorRate.status is "wall_limit",
    "interrupted" or "diverged"; from the saved time reached on lambda_min(T) counts as 0, the bound stays level and
    holds.

    Gradient descent takes its steps again. Each shrinks the excess by at least what `laws.observed.descent` proves of a
    step of that size, and `integral` is -log of the product of these factors over gamma: as if it were a flow's. Steps
    beyond 2 / |T|, which may raise the loss, raise the bound; where the work ends early it is inf from there on.

    Raises InputError for a run without a step, one that was loaded without its loss, one with weight decay or under
    another dynamics, gradient descent on a loss of unknown smoothness, and for an argument out of range.

    For n = m = 1 the operator T is a number, and the bound is the loss itself; a certificate knows T(0) at best:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    >>> flow = fs.simulate(problem, t1=1.0, save_points=5)
    >>> found = fs.a_posteriori(flow)
    >>> np.allclose(found.bound / flow.excess, 1.0, atol=1e-5)
    True
    >>> round(fs.certify(problem).best.alpha, 6), round(found.least, 6), found.alpha > found.least
    (1.25, 1.25, True)
    """
    as_number(rtol, "rtol", above=0.0, most=1.0)
    if as_trajectory(trajectory).time[-1] == 0.0:
        raise InputError("Argument `trajectory` must have taken a step; its end is at t = 0.")
    deadline = Deadline(None if wall_limit is None else as_number(wall_limit, "wall_limit", above=0.0))
    network, end = trajectory.simulated.network, float(trajectory.time[-1])
    if trajectory.method.kind.recorded:
        raise InputError(
            "Argument `trajectory` must not be recorded elsewhere: what its steps should have done is not known."
        )
    if not trajectory.motion.is_plain:
        raise InputError(
            "Argument `trajectory` must be of gradient flow or descent without weight decay: A1 bounds the fall of L by"
            f" its own gradient, and no bound along {words.obeyed(trajectory)} is known."
        )
    if trajectory.method.kind.discrete and trajectory.method.plain_step_size is None:
        raise InputError(
            "Argument `trajectory` must be of plain gradient descent, without momentum, schedule, batches and noise: no"
            " bound on its steps is known."
        )
    if trajectory.method.kind.discrete:
        return _of_descent(trajectory, deadline, progress)
    with following(progress, end) as tell, threads_for(max(*network.dims, network.dims[0] * network.dims[-1])):
        path = Path(trajectory, deadline)
        integral, status = _integrated(path, rtol, tell)
        found, values, error = _padded(path, integral, len(trajectory.time))
    law, bound = _bound(trajectory, np.maximum(found - error, 0.0))
    return PosteriorRate(trajectory, values, found, error, float(values.min(initial=path.least)), law, bound, status)


def _integrated(path: Path, rtol: float, tell: Progress | None) -> tuple[Integral, str]:
    """The integral of lambda_min(T) along the tight flow, as far as it got, and why it ended."""
    run, end = path.run, float(path.run.time[-1])
    mean, greatest, norm = path.typical()
    wiggle = path.tight.method.rtol * float(np.linalg.norm(path.states[0]))
    rough = float(loss_of_eigenvalue(np.array(greatest), path.sensitivity(0.0), np.array(wiggle)))

    def passed(times: np.ndarray, reached: float) -> None:
        path.passed(times, reached)
        if tell is not None and len(times):
            tell(float(times[-1]), float(np.interp(times[-1], run.time, run.excess)), float(run.excess[0]))

    integral = Integral(path.least_eigenvalue, rough + path.rounding(norm), passed)
    edges = _panels(run)
    try:
        for start, stop in pairwise(edges.tolist()):
            wanted = run.time[(run.time > start) & (run.time <= stop)]
            integral.add(start, stop, rtol * mean * end / (len(edges) - 1), wanted)
    except KeyboardInterrupt:
        return integral, "interrupted"
    except WallLimit:
        return integral, "wall_limit"
    except IntegrationFailure:
        return integral, "diverged"
    return integral, "completed"


def _padded(path: Path, integral: Integral, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The integral, lambda_min(T), and the integral's error at all saved times: level, and 0, beyond the last one."""
    reached = min(len(path.saved), len(integral.at) + 1)
    beyond = count - reached
    values = np.pad(np.array(path.saved[:reached]), (0, beyond))
    found = np.pad([0.0, *integral.at[: reached - 1]], (0, beyond), mode="edge")
    quadrature = np.pad([0.0, *integral.errors[: reached - 1]], (0, beyond), mode="edge")
    flow = _flow_error(path, values)
    return found, values, quadrature + np.minimum(flow, flow[reached - 1])


def _panels(trajectory: Trajectory) -> np.ndarray:
    """Where panels begin and end: STEPS of the run's steps in each, or MOST_PANELS with as many steps in each."""
    times = trajectory.step_time
    count = min(max((len(times) - 1) // STEPS, 1), MOST_PANELS)
    return times[np.unique(np.linspace(0, len(times) - 1, count + 1).astype(int))]


def _of_descent(run: Trajectory, deadline: Deadline, progress: Progress | bool | None) -> PosteriorRate:
    constants = constants_of(run.problem.loss)
    if constants is None or not constants.K or not constants.gamma:
        raise InputError(
            "The loss of a run of gradient descent must have constants gamma and K: how much a step lowers it depends"
            " on its smoothness; a flow needs gamma alone."
        )
    steps, status = Steps(run, constants, deadline), "completed"
    saved = np.round(run.time / steps.eta).astype(int)
    values, found, certain = np.zeros((3, len(saved)))
    least, reached = np.inf, 0
    with following(progress, float(run.time[-1])) as tell, threads_for(max(run.simulated.network.dims)):
        try:
            for k, (value, exponent, sure) in enumerate(steps):
                least = min(least, value)
                if k == saved[reached]:
                    values[reached], found[reached], certain[reached] = value, exponent, sure
                    if tell is not None:
                        tell(float(run.time[reached]), float(run.excess[reached]), float(run.excess[0]))
                    reached += 1
        except KeyboardInterrupt:
            status = "interrupted"
        except WallLimit:
            status = "wall_limit"
    for array in (found, certain):
        array[reached:] = array[max(reached - 1, 0)]
    law, bound = _bound(run, certain)
    if bound is not None:
        bound[reached:] = np.inf  # a step that was not looked at may raise the loss
    least = least if status == "completed" else 0.0
    return PosteriorRate(run, values, found, found - certain, least, law, bound, status)


def _flow_error(path: Path, values: np.ndarray) -> np.ndarray:
    """What the integral up to each saved time may lose to the errors of the weights, the compression's among them.

    The distance from the tight solve at the ends of an interval between checkpoints, the greater, counts all along it.
    """
    run, kept = path.run, path.run.checkpoints.times
    apart = np.pad(path.distances, (0, len(kept) - len(path.distances)), mode="edge")
    distance = np.interp(kept, run.time, run.error_estimate) + apart
    kappa = path.sensitivity(float(distance.max()))
    lost = loss_of_eigenvalue(np.interp(kept, run.time, values), kappa, distance)
    steps = np.diff(kept) * np.maximum(lost[1:], lost[:-1])
    return np.interp(run.time, kept, np.append(0.0, np.cumsum(steps)))


def _bound(
    trajectory: Trajectory, certain: np.ndarray
) -> tuple[Literal["exponential", "hyperbolic"] | None, np.ndarray | None]:
    constants, first = constants_of(trajectory.problem.loss), trajectory.excess[0]
    if constants is None or constants.gamma is None or constants.dominance is None:
        return None, None
    if constants.dominance == "quadratic":
        return "exponential", first * np.exp(-constants.gamma * certain)
    return "hyperbolic", first / (1 + first * constants.gamma**2 * certain)
