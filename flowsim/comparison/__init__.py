"""compare: work against precision of several methods on one problem, against a reference that is checked itself."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from flowsim.checks import as_choice, as_count, as_number, check_memory
from flowsim.comparison.reference import REFERENCE_SHARE, Reference, solve_reference, weights_of
from flowsim.comparison.result import Comparison, Row
from flowsim.dynamics import Dynamics, Motion, as_dynamics
from flowsim.errors import InputError
from flowsim.methods import METHODS, Method, method_named
from flowsim.methods.guard import MEMBER_FAILURES
from flowsim.named_problems import NamedProblem, problem_named
from flowsim.problem import Problem
from flowsim.runs.derived import scalars
from flowsim.runs.simulation import simulate
from flowsim.runs.trajectory import Trajectory
from flowsim.threads import threads_for

__all__ = ["Comparison", "Reference", "Row", "compare", "solve_reference"]

Reduce = Literal["auto", "always", "never"]
RTOLS = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
DEFAULT_METHODS = ("auto", "dop853", "rk45", "lsoda", "rkc", "gauss-legendre-4")
ATOL_SHARE = 1e-2
"""atol = ATOL_SHARE rtol in the runs that a comparison makes up from names."""
COPIES = 3
"""How often the weights at a time of comparison are kept at once."""
QUICK = 0.5
"""A run that takes longer than this many seconds is timed once."""


def compare(
    subject: Problem | NamedProblem | str,
    methods: Iterable[str | Method] | str | Method = DEFAULT_METHODS,
    *,
    t1: float | None = None,
    rtols: Sequence[float] = RTOLS,
    step_sizes: Sequence[float] = (),
    times: int = 11,
    repeats: int = 3,
    time_limit: float = 60.0,
    reduce: Reduce = "auto",
    dynamics: Dynamics | str | None = None,
    note: Callable[[str], None] | None = None,
) -> Comparison:
    """Work against precision: every method at every tolerance, from problem.network's weights at t = 0 to t1.

    subject: a Problem, or a named one (`problem_named`, or its name: PROBLEMS lists them).
    methods: names of `flowsim methods` (each run at every rtol, with atol = rtol / 100, or, where it has no error
    estimate, at every step size in step_sizes), or methods with their settings. times: at how many times, evenly,
    errors and drift are taken. repeats: how often a quick run is timed after a warm-up. time_limit: seconds for one
    run; the reference may take ten times as long. t1: may be left out for a named problem. note: called with each
    method as it begins.

    A method that fails gives a row with its status and reason; Ctrl-C ends with the rows so far. The reference is
    DOP853 at rtol 1e-13 on the full weights (on the core of a network that has no others); Gauss-Legendre collocation
    checks it (Radau where the dynamics is neither a gradient flow nor has momentum).
    reduce, dynamics: as for simulate. Methods that are not made for the dynamics give rows that say so.
    Raises InputError for arguments out of range and for a t1 that the reference does not reach in its time,
    NumericalFailure where no reference can be had.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0))
    >>> comparison = fs.compare(problem, ["rk45", "gauss-legendre-2"], t1=1.0, rtols=(1e-4, 1e-6), repeats=1)
    >>> [(row.method, row.rtol, row.error_worst < 10 * row.rtol, row.drift < 1e-12) for row in comparison.rows]
    [('rk45', 0.0001, True, False), ('rk45', 1e-06, True, False),
     ('gauss-legendre-2', 0.0001, True, True), ('gauss-legendre-2', 1e-06, True, True)]
    """
    if isinstance(subject, str):
        subject = problem_named(subject)
    name, problem = (subject.name, subject.problem) if isinstance(subject, NamedProblem) else ("", subject)
    if not isinstance(problem, Problem):
        raise InputError(
            f"Argument `subject` must be a Problem or the name of one, but it is of type {type(problem).__name__}."
        )
    if t1 is None and isinstance(subject, NamedProblem):
        t1 = subject.t1
    if t1 is None:
        raise InputError("Argument `t1` must be given, the time to simulate to.")
    end = as_number(t1, "t1", above=0.0)
    count = as_count(times, "times", least=2)
    kept = problem.network.size if getattr(problem.network, "is_dense", False) else 1
    check_memory(COPIES * 8 * count * kept, "times", "as many as that", "ask for fewer")
    grid = np.linspace(0.0, end, count)
    methods = [methods] if isinstance(methods, (str, Method)) else list(methods)
    runs = [run for method in methods for run in _expanded(method, rtols, step_sizes)]
    if not runs:
        raise InputError("Argument `methods` must name at least one method.")
    limits = as_count(repeats, "repeats"), as_number(time_limit, "time_limit", above=0.0)
    motion = Motion(problem, as_dynamics(dynamics))
    as_choice(reduce, "reduce", ("auto", "always", "never"))
    with threads_for(max(problem.network.dims)):
        reference, rows = solve_reference(motion, grid, REFERENCE_SHARE * limits[1]), []
        for method in runs:
            if note is not None:
                setting = method.tolerances[0] if method.tolerances else method.settings.step_size
                note(f"{method.key} at {setting:g}")
            rows.append(_row(name, motion, method, reference, *limits, reduce))
            if rows[-1].status == "interrupted":
                break
    return Comparison(tuple(rows), reference, end)


def _expanded(method: str | Method, rtols: Sequence[float], step_sizes: Sequence[float]) -> list[Method]:
    if not isinstance(method, str):
        return [method]
    key = as_choice(method.lower(), "methods", METHODS)
    if not METHODS[key].kind.adaptive:
        if not len(step_sizes):
            raise InputError(f"Argument `step_sizes` must be given for {key}, which has no error estimate.")
        return [method_named(key, step_size=float(step)) for step in step_sizes]
    return [method_named(key, rtol=float(rtol), atol=ATOL_SHARE * float(rtol)) for rtol in rtols]


def _row(
    name: str, motion: Motion, method: Method, reference: Reference, repeats: int, time_limit: float, reduce: Reduce
) -> Row:
    rtol, atol = method.tolerances or (None, None)
    settings = name, method.key, rtol, atol, method.settings.step_size
    try:
        run, seconds = _timed(motion, method, reference.times, repeats, time_limit, reduce)
        if run.status != "completed":
            return Row(*settings, run.status, reason=run.message, seconds=seconds)
        errors = reference.errors(weights_of(run))
    except MEMBER_FAILURES as error:
        return Row(*settings, "failed", reason=str(error) or type(error).__name__)
    compressed, stats, seen = run.reduction.network, run.stats, scalars(run)
    return Row(
        *settings,
        run.status,
        error_t1=float(errors[-1]),
        error_worst=float(errors.max()),
        drift=seen["drift"],
        energy_residual=seen["energy_residual"],
        rhs_evaluations=seen["rhs_evaluations"],
        steps=seen["steps"],
        rejected_steps=stats["rejected_steps"],
        jacobians=stats["jacobians"],
        seconds=seconds,
        compile_seconds=stats["compile_seconds"],
        widths=None if compressed is None else str(compressed.core.dims),
        reason="below the reference's uncertainty" if errors.max() < reference.uncertainty else None,
    )


def _timed(
    motion: Motion, method: Method, times: np.ndarray, repeats: int, limit: float, reduce: Reduce
) -> tuple[Trajectory, float]:
    """(the first run, with its compile time; the least seconds of the later ones, or its own where it is slow)."""
    deadline = clock.perf_counter() + limit
    first, fastest = None, np.inf
    for _ in range(repeats + 1):
        left = max(deadline - clock.perf_counter(), 1e-3)
        run = simulate(
            motion.problem,
            method,
            t1=float(times[-1]),
            dynamics=motion.dynamics,
            save_points=times,
            wall_limit=left,
            reduce=reduce,
        )
        if run.status == "interrupted":
            return run, float(run.stats["seconds"])
        if first is None:
            first = run
            if run.status != "completed" or run.stats["seconds"] > QUICK:
                return run, float(run.stats["seconds"])
        elif run.status == "completed":
            fastest = min(fastest, float(run.stats["seconds"]))
    assert first is not None
    return first, fastest if np.isfinite(fastest) else float(first.stats["seconds"])
