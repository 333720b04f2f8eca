"""simulate, resume: the one place that composes problem, method, saving, stopping and width compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from flowsim.checks import as_choice, as_count, as_number
from flowsim.dynamics import Dynamics, Motion, as_dynamics
from flowsim.errors import InputError
from flowsim.losses import UnknownLoss
from flowsim.methods import ATOL, RTOL, Method, as_method, method_named
from flowsim.problem import Problem
from flowsim.progress import Progress, following
from flowsim.runs.provenance import provenance_of, versions
from flowsim.runs.recorder import Recorder
from flowsim.runs.stopping import check_steps, largest_order, save_times, stopping_of
from flowsim.runs.trajectory import Trajectory, as_trajectory
from flowsim.threads import threads_for

__all__ = ["resume", "save_times", "simulate"]


def simulate(
    problem: Problem,
    method: Method | str | None = None,
    *,
    t1: float,
    dynamics: Dynamics | str | None = None,
    save_points: int | Sequence[float] | np.ndarray = 101,
    stop_loss: float | None = None,
    stop_gradient: float | None = None,
    max_steps: int | None = None,
    wall_limit: float | None = None,
    reduce: Literal["auto", "always", "never"] = "auto",
    progress: Progress | bool | None = None,
) -> Trajectory:
    """Gradient flow dW_l/dt = -dL/dW_l (or gradient descent) from problem.network's weights at t = 0 to t1.

    method: Auto(rtol=1e-8, atol=1e-10) by default, which is DOP853 and, while the problem is stiff, krylov-bdf; another
    object that carries its tolerances or step size (Scipy, Diffrax, GaussLegendre, KrylovBDF, RKC, Projected,
    GradientDescent), or a name that `flowsim methods` lists. t1: in the flow's own unit;
    1 / certify(problem).best.rate is a time in which L - f* falls by a factor e or more.
    dynamics: what the weights obey: GradientFlow() by default, HeavyBall(friction), Nesterov(), ModifiedFlow(step_size)
    or one's own (`Dynamics`). A method that is not made for it refuses it.
    save_points: how many times to save, evenly, both ends included, or the times themselves (0 and the end are added).
    stop_loss: stop when L - f* <= stop_loss (L(0) - f*); the flow's time of crossing is located, and where it comes
    long before t1 few of the times to save come before it (Trajectory.step_time and steps have every step).
    stop_gradient: stop when ||grad L||_F <= stop_gradient, located alike (a step at whose end it is higher is passed).
    Both are looked at before the first step; gradient descent stops at the end of a step. max_steps, wall_limit
    (seconds): stop after that many accepted steps or that long. progress(t, excess, initial_excess) is called after
    every segment; True shows a bar. Ctrl-C returns what there is.

    reduce: "auto" simulates the network in compressed form where that pays, with as many Krylov steps as keep the
    estimated error of the weights within the method's tolerance (rtol ||W(t) - W(0)||_F + atol; for gradient
    descent 1e-8 and 1e-10), and more when the estimate grows; Trajectory.reduction says what was done and why. "always"
    compresses even where it does not pay, "never" integrates the full weights.

    Gradient descent takes round(t1 / step_size) steps, saves at the nearest steps and reports the times it reached.
    Numerical failure never raises: see Trajectory.status, and Trajectory.detail, which says where the numbers of a run
    are not to be trusted. A run whose loss no longer falls, and which would need more than 1e12 steps to t1, ends with
    status "step_limit". Raises InputError for arguments out of range, where the full weights would be needed but the
    network has none, and where the loss or its gradient is not finite at the start.

    One unit a layer, balanced: the product is a Saxe mode.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    >>> flow = fs.simulate(problem, t1=3.0, save_points=4)
    >>> np.allclose(flow.products.ravel(), fs.exact.saxe_mode(flow.time, s=2.0, u0=0.01), atol=1e-7)
    True
    >>> fs.simulate(problem, t1=30.0, stop_loss=1e-6).status
    'converged'
    """
    if not isinstance(problem, Problem):
        raise InputError(
            f"Argument `problem` must be a Problem(loss, network), but it is of type {type(problem).__name__}."
        )
    method, motion = as_method(method), Motion(problem, as_dynamics(dynamics))
    t1 = as_number(t1, "t1", above=0.0)
    as_choice(reduce, "reduce", ("auto", "always", "never"))
    stopping = stopping_of(problem, stop_loss, stop_gradient, max_steps, wall_limit)
    check_steps(method, t1, stopping)
    with following(progress, t1) as tell, threads_for(largest_order(problem, method)):
        run = Recorder(motion, method, save_times(method, t1, save_points), stopping, tell)
        found = run.to_end(t1, lambda: run.begin(reduce))
    settings: dict[str, Any] = {"save_points": save_points, "stop_loss": stop_loss, "stop_gradient": stop_gradient}
    settings |= {"dynamics": str(motion.dynamics)} if dynamics is not None else {}
    settings |= {"max_steps": max_steps, "wall_limit": wall_limit, "reduce": reduce}
    return replace(found, provenance=provenance_of(method, t1=t1, **settings))


def resume(
    trajectory: Trajectory,
    *,
    t1: float,
    method: Method | str | None = None,
    save_points: int | Sequence[float] | np.ndarray = 101,
    stop_loss: float | None = None,
    stop_gradient: float | None = None,
    max_steps: int | None = None,
    wall_limit: float | None = None,
    progress: Progress | bool | None = None,
) -> Trajectory:
    """The same simulation gone on with, from where the trajectory ends to t1: one trajectory from 0 to t1.

    The loss, the width compression with its error estimate and, unless another is given, the method are the
    trajectory's; save_points are those after its end. A level of stop_loss stays relative to L(0), max_steps and
    wall_limit count from here. An adaptive method looks for its step size anew.
    method: another one to go on with, by itself or by name (then at the trajectory's tolerances), where the problem
    has turned stiff. It stands for the whole run from then on: it must be controlled by tolerances as the first one
    is, no tighter than that, and must not promise to keep invariants that the first did not.
    stop_gradient, progress: as for simulate.
    Raises InputError for arguments out of range, a t1 that is not beyond the end, a method that cannot stand for the
    whole run, a trajectory that has diverged, or one that was loaded without what it takes to go on (its own loss; a
    generator's draw in compressed form).

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> half = fs.simulate(problem, fs.GradientDescent(1e-3), t1=0.1)
    >>> whole, both = fs.simulate(problem, fs.GradientDescent(1e-3), t1=0.2), fs.resume(half, t1=0.2)
    >>> bool((both.step_loss == whole.step_loss).all())
    True
    """
    begun, t1 = float(as_trajectory(trajectory).time[-1]), as_number(t1, "t1", above=float(trajectory.time[-1]))
    problem = trajectory.problem
    if trajectory.status == "diverged":
        raise InputError(
            "Argument `trajectory` must not have diverged; simulate again with a smaller step or tolerance."
        )
    if trajectory.method.kind.recorded:
        raise InputError(
            "Argument `trajectory` was recorded elsewhere, and what trained it is not known;"
            " simulate(Problem(loss, trajectory.network_at(trajectory.time[-1]))) goes on from its end."
        )
    if isinstance(problem.loss, UnknownLoss):
        raise InputError("Argument `trajectory` was loaded without its own loss; pass it to load(path, loss=...).")
    method = _successor(trajectory, method)
    if np.ndim(save_points) == 0:
        save_points = np.linspace(begun, t1, as_count(save_points, "save_points", least=2))
    times = save_times(method, t1, save_points)
    stopping = stopping_of(problem, stop_loss, stop_gradient, max_steps, wall_limit, trajectory.stats["steps"])
    with following(progress, t1) as tell, threads_for(largest_order(problem, method)):
        run = Recorder(trajectory.motion, method, times[times > begun], stopping, tell)
        longer = run.to_end(t1, lambda: run.resume(trajectory))
    configuration = {**trajectory.provenance.get("configuration", {}), "t1": t1}
    if method != trajectory.method:
        configuration |= provenance_of(method)["configuration"]
    provenance = {**trajectory.provenance, **versions(), "configuration": configuration}
    before = trajectory.methods if method != trajectory.method or trajectory.before else ()
    return replace(longer, provenance=provenance, restarts=(*trajectory.restarts, begun), before=before)


def _successor(trajectory: Trajectory, method: Method | str | None) -> Method:
    """The method that goes on with a trajectory. Raises InputError where it cannot stand for the whole run."""
    first = trajectory.method
    if method is None:
        return first
    if isinstance(method, str):
        rtol, atol = first.tolerances or (RTOL, ATOL)
        method = method_named(method, rtol=rtol, atol=atol)
    method = as_method(method)
    if method == first:
        return first
    if first.tolerances is None or method.tolerances is None:
        which = first if first.tolerances is None else method
        raise InputError(
            f"Argument `method` must be controlled by tolerances, as what it goes on from, but {which.name} is not;"
            " simulate from the end, fs.Problem(loss, run.network_at(run.time[-1])), instead."
        )
    if any(new < old for new, old in zip(method.tolerances, first.tolerances, strict=True)):
        raise InputError(
            f"Argument `method` must be no tighter than the run that it goes on with, rtol {first.tolerances[0]:g} and"
            f" atol {first.tolerances[1]:g}, whose errors stay, but it is {method}."
        )
    if method.kind.keeps_invariants and not first.kind.keeps_invariants:
        raise InputError(
            f"Argument `method` must not promise more than the run that it goes on with: {method.name} keeps every D_l"
            f" to round-off, {first.name} does not."
        )
    return method
