"""compare: work against precision of several methods on one problem, against a reference that is checked itself."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowsim.checks import as_choice, as_count, as_number, check_memory
from flowsim.display import Shown, Table
from flowsim.errors import FlowsimError, InputError, NumericalFailure
from flowsim.integrators import start
from flowsim.methods import METHODS, GaussLegendre, Method, Scipy, method_named
from flowsim.network import unflatten
from flowsim.problem import Problem
from flowsim.problems import NamedProblem, problem_named
from flowsim.simulation import simulate
from flowsim.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas
    import xarray

Reduce = Literal["auto", "always", "never"]
RTOLS = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
DEFAULT_METHODS = ("dop853", "rk45", "lsoda", "rkc", "gauss-legendre-4")
REFERENCE = Scipy("DOP853", 1e-13, 1e-15)
CHECK = GaussLegendre(4, 1e-12, 1e-14)
ATOL_SHARE = 1e-2
"""atol = ATOL_SHARE rtol in the runs that a comparison makes up from names."""
COPIES = 3
"""How often the weights at a time of comparison are kept at once."""
REFERENCE_SHARE = 10
"""A comparison's reference may take as long as this many of its runs."""
QUICK = 0.5
"""A run that takes longer than this many seconds is timed once."""


@dataclass(frozen=True)
class Reference:
    """The weights at the times of comparison, from a far tighter solve, and how far a second method is from it.

    uncertainty: the greatest ||W - V||_F over the times, over the change of the weights.
    """

    times: np.ndarray
    weights: list[list[np.ndarray]]
    change: float
    uncertainty: float

    def errors(self, weights_at: Callable[[float], list[np.ndarray]]) -> np.ndarray:
        """||W(t) - W_ref(t)||_F over all layers, over the change of the weights, at each time."""
        return np.array(
            [
                _distance(weights_at(float(t)), true) / self.change
                for t, true in zip(self.times, self.weights, strict=True)
            ]
        )


@dataclass(frozen=True)
class Row:
    """One method at one setting on one problem.

    error_t1, error_worst: ||W - W_ref||_F over the change of the weights, at t1 and the greatest over the times of
    comparison; drift: the greatest imbalance drift; seconds: the least wall time of several runs after a warm-up,
    compilation apart; reason: why there is no result, or what limits it.
    """

    problem: str
    method: str
    rtol: float | None
    atol: float | None
    step_size: float | None
    status: str
    error_t1: float | None = None
    error_worst: float | None = None
    drift: float | None = None
    energy_residual: float | None = None
    rhs_evaluations: int | None = None
    steps: int | None = None
    rejected_steps: int | None = None
    jacobians: int | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    widths: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Shown):
    """All rows of a comparison, and the reference they were measured against.

    Against the number of fixed steps the error falls with the order of the method:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0))
    >>> methods = [fs.Scipy("RK23", step_size=1 / steps) for steps in (32, 64, 128)]
    >>> comparison = fs.compare(problem, methods, t1=1.0, repeats=1)
    >>> round(comparison.slopes()["rk23"]), len(comparison.table), comparison.reference.uncertainty < 1e-10
    (-3, 3, True)
    """

    rows: tuple[Row, ...]
    reference: Reference
    t1: float

    @cached_property
    def table(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """The rows as an xarray Dataset with dimension `run`."""
        import xarray

        table = self.table.astype({name: float for name, kind in Row.__annotations__.items() if "str" not in kind})
        dataset = xarray.Dataset.from_dataframe(table.fillna({"widths": "", "reason": ""}).rename_axis("run"))
        attributes = {"t1": self.t1, "reference": repr(REFERENCE), "uncertainty": self.reference.uncertainty}
        return dataset.assign_attrs(attributes)

    def curves(self, x: str, y: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """method -> (values of column x, values of column y) of the runs that ended well, in their order."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in dict.fromkeys(row.method for row in self.rows):
            pairs = [(getattr(r, x), getattr(r, y)) for r in self.rows if r.method == name and r.status == "completed"]
            pairs = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0 and b > 0]
            if pairs:
                columns = np.array(pairs)
                found[name] = columns[:, 0], columns[:, 1]
        return found

    def slopes(self, x: str = "steps", y: str = "error_worst") -> dict[str, float]:
        """method -> d log(error) / d log(work), by least squares, over errors above ten times the uncertainty.

        Against steps it is minus the order that the method shows.
        """
        slopes = {}
        for name, (work, error) in self.curves(x, y).items():
            clear = error > 10 * self.reference.uncertainty
            if clear.sum() >= 2 and np.ptp(np.log(work[clear])) > 0:
                slopes[name] = float(np.polyfit(np.log(work[clear]), np.log(error[clear]), 1)[0])
        return slopes

    def to_json(self) -> dict[str, Any]:
        """The object that `flowsim compare --json` prints."""
        return {
            "t1": self.t1,
            "reference": {"method": repr(REFERENCE), "check": repr(CHECK), "uncertainty": self.reference.uncertainty},
            "rows": [asdict(row) for row in self.rows],
            "slopes": self.slopes(),
        }

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.rows[-1].status == "interrupted"

    def shown(self) -> Table:
        """A row a run, the reference below."""
        heads = ("method", "rtol/step", "error(t1)", "worst", "drift", "rhs", "steps", "rejected", "seconds", "compile")
        rows = []
        for r in self.rows:
            setting = r.rtol if r.step_size is None else r.step_size
            numbers = setting, r.error_t1, r.error_worst, r.drift, r.rhs_evaluations, r.steps, r.rejected_steps
            remark = "" if r.status == "completed" else f"{r.status}: {r.reason}"
            rows.append((r.method, *(_cell(x) for x in (*numbers, r.seconds, r.compile_seconds)), remark))
        foot = f"reference: {REFERENCE}; a second method differs from it by {self.reference.uncertainty:.1e}"
        return Table(rows, (*heads, "remark"), foot=foot)


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
    checks it.
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
    as_choice(reduce, "reduce", ("auto", "always", "never"))
    reference, rows = solve_reference(problem, grid, REFERENCE_SHARE * limits[1]), []
    for method in runs:
        if note is not None:
            setting = getattr(method, "rtol", None) or getattr(method, "step_size", None)
            note(f"{method.name.lower()} at {setting:g}")
        rows.append(_row(name, problem, method, reference, *limits, reduce))
        if rows[-1].status == "interrupted":
            break
    return Comparison(tuple(rows), reference, end)


def _expanded(method: str | Method, rtols: Sequence[float], step_sizes: Sequence[float]) -> list[Method]:
    if not isinstance(method, str):
        return [method]
    key = as_choice(method.lower(), "methods", METHODS)
    if key == "gd" or key.removeprefix("projected-") == "euler":
        if not len(step_sizes):
            raise InputError(f"Argument `step_sizes` must be given for {key}, which has no error estimate.")
        return [method_named(key, step_size=float(step)) for step in step_sizes]
    return [method_named(key, rtol=float(rtol), atol=ATOL_SHARE * float(rtol)) for rtol in rtols]


def solve_reference(problem: Problem, times: np.ndarray, time_limit: float = np.inf) -> Reference:
    """The weights at the times (the first 0) by DOP853 at rtol 1e-13, on the full weights where there are any; their
    uncertainty from a second method.

    Every time is the end of a step: dense output is less accurate than steps are where stability limits these.
    Raises InputError where either method needs more than time_limit seconds, NumericalFailure where one breaks down.
    """
    check = _weights_at(_solved(problem, CHECK, times, time_limit))
    if getattr(problem.network, "is_dense", False):
        weights = _landed(problem, times, time_limit)
    else:
        found = _weights_at(_solved(problem, REFERENCE, times, time_limit))
        weights = [found(float(t)) for t in times]
    change = _distance(weights[-1], weights[0]) or 1.0
    gaps = [_distance(check(float(t)), W) / change for t, W in zip(times, weights, strict=True)]
    return Reference(times, weights, change, max(gaps))


def _solved(problem: Problem, method: Method, times: np.ndarray, time_limit: float) -> Trajectory:
    limit = None if np.isinf(time_limit) else time_limit
    run = simulate(problem, method, t1=float(times[-1]), save_points=times, wall_limit=limit)
    if run.status == "interrupted":
        raise KeyboardInterrupt
    if run.status == "wall_limit":
        raise _too_far(times, run.time[-1], time_limit)
    if run.status != "completed":
        raise NumericalFailure(f"There is no reference to compare with: {method} {run.status}. {run.message}")
    return run


def _too_far(times: np.ndarray, reached: float, time_limit: float) -> InputError:
    return InputError(
        f"Argument `t1` must be a time that the reference reaches within {time_limit:g} s, but of t1 = {times[-1]:g} "
        f"it had got to {reached:.3g}; lower t1 or raise time_limit, of which the reference may take {REFERENCE_SHARE}."
    )


def _landed(problem: Problem, times: np.ndarray, time_limit: float) -> list[list[np.ndarray]]:
    """The weights at the times, each the end of a step of REFERENCE."""
    states, deadline = [problem.initial_state], clock.perf_counter() + time_limit
    for t, end in pairwise(times):
        integrator = start(problem, REFERENCE, float(t), states[-1], float(end))
        while integrator.t < integrator.t1:
            if clock.perf_counter() > deadline:
                raise _too_far(times, integrator.t, time_limit)
            segment = integrator.advance()
        states.append(segment.evaluate(segment.times[-1:])[0])
    return [unflatten(state, problem.network.dims) for state in states]


def _weights_at(run: Trajectory) -> Callable[[float], list[np.ndarray]]:
    """The full weights at a time, or the core's where there are no others."""
    try:
        run.weights_at(0.0)
    except InputError:
        return lambda t: list(run.core_at(t).weights)
    return run.weights_at


def _row(
    name: str, problem: Problem, method: Method, reference: Reference, repeats: int, time_limit: float, reduce: Reduce
) -> Row:
    settings = (
        name,
        method.name.lower(),
        getattr(method, "rtol", None),
        getattr(method, "atol", None),
        getattr(method, "step_size", None),
    )
    try:
        run, seconds = _timed(problem, method, reference.times, repeats, time_limit, reduce)
        if run.status != "completed":
            return Row(*settings, run.status, reason=run.message, seconds=seconds)
        errors = reference.errors(_weights_at(run))
    except (FlowsimError, MemoryError) as error:
        return Row(*settings, "failed", reason=str(error) or type(error).__name__)
    compressed, stats = run.reduction.network, run.stats
    return Row(
        *settings,
        run.status,
        error_t1=float(errors[-1]),
        error_worst=float(errors.max()),
        drift=float(run.imbalance_drift.max()),
        energy_residual=float(np.abs(run.energy_residual).max()),
        rhs_evaluations=stats["rhs_evaluations"],
        steps=stats["steps"],
        rejected_steps=stats["rejected_steps"],
        jacobians=stats["jacobians"],
        seconds=seconds,
        compile_seconds=stats["compile_seconds"],
        widths=None if compressed is None else str(compressed.core.dims),
        reason="below the reference's uncertainty" if errors.max() < reference.uncertainty else None,
    )


def _timed(
    problem: Problem, method: Method, times: np.ndarray, repeats: int, limit: float, reduce: Reduce
) -> tuple[Trajectory, float]:
    """(the first run, with its compile time; the least seconds of the later ones, or its own where it is slow)."""
    deadline = clock.perf_counter() + limit
    first, fastest = None, np.inf
    for _ in range(repeats + 1):
        left = max(deadline - clock.perf_counter(), 1e-3)
        run = simulate(problem, method, t1=float(times[-1]), save_points=times, wall_limit=left, reduce=reduce)
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


def _distance(one: Sequence[Any], other: Sequence[Any]) -> float:
    return float(np.sqrt(sum(np.linalg.norm(W - V) ** 2 for W, V in zip(one, other, strict=True))))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"
