"""ensemble: many members of one shape at once, statistics of their loss curves, a row of scalars for each."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowsim.checks import as_choice, as_count, as_number
from flowsim.display import Shown, Table
from flowsim.errors import FlowsimError, InputError
from flowsim.integrators import MEMBER_FAILURES
from flowsim.losses import is_built_in, minimum_of
from flowsim.methods import Diffrax, GradientDescent, Method, as_method, step_tolerance
from flowsim.model import tolerances
from flowsim.network import flatten, imbalance_change, product, unflatten
from flowsim.problem import Problem
from flowsim.progress import Count, counting
from flowsim.rates import certify
from flowsim.reduction import CompressedNetwork, compress
from flowsim.simulation import save_times, simulate
from flowsim.trajectory import EXIT_CODES, Trajectory
from flowsim.trajectory.resolution import rate_seen, resolved_until, rounding_of

if TYPE_CHECKING:
    import xarray

Draw = Callable[[np.random.SeedSequence], Problem]
INTERRUPTED = {"status": "interrupted", "reason": "Ctrl-C came before this member was finished"}
BATCH = 256
"""Members that are integrated side by side."""


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Shown):
    """What many members did.

    time (S): the common grid; excess (M, S): L - f* of each member; from where a member stopped (at its level, or
    because it failed) its last value is held, so that quantiles above the stopping level are exact. scalars: name ->
    array (M), as in `flowsim sweep`'s table; status and reason are words. rate_seen is Trajectory's, up to where the
    loss is last resolved (of descent side by side: of the times that it records, `time` among them). seconds: of the
    whole call.

    >>> import flowsim as fs
    >>> def draw(seed):
    ...     return fs.Problem(fs.SquaredLoss([[1.0]]), fs.fan_out((1, 8, 8, 1), seed=seed))
    >>> many = fs.ensemble(draw, 5, t1=0.1, method=fs.Scipy("RK45"), certificates="all")
    >>> many.quantiles([0.0, 1.0]).shape, many.failed.size, dict(many.dataset.sizes)
    ((2, 33), 0, {'member': 5, 'time': 33})
    >>> bool((many.scalars["certified_rate"] <= many.scalars["rate_seen"]).all())
    True
    """

    time: np.ndarray
    excess: np.ndarray
    scalars: dict[str, np.ndarray]
    method: Method
    seconds: float

    def __len__(self) -> int:
        return len(self.excess)

    @property
    def failed(self) -> np.ndarray:
        """Indices of the members that did not end well."""
        return np.flatnonzero([EXIT_CODES.get(status, 3) != 0 for status in self.scalars["status"]])

    def quantiles(self, q: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95), relative: bool = True) -> np.ndarray:
        """(len(q), S): quantiles over the members of L - f* (relative: over its start) at each time."""
        curves = self.excess / self.excess[:, :1] if relative else self.excess
        return np.nanquantile(curves, q, axis=0)

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """Scalars (member), loss curves (member, time)."""
        import xarray

        variables: dict[str, Any] = {name: ("member", values) for name, values in self.scalars.items()}
        variables["excess_loss"] = (("member", "time"), self.excess, {"long_name": "L(t) - f*"})
        return xarray.Dataset(variables, {"time": self.time, "member": np.arange(len(self))})

    def shown(self) -> Table:
        """How many ended how, and what the curves and the invariants did."""
        words, counts = np.unique(self.scalars["status"].astype(str), return_counts=True)
        known = np.isfinite(self.excess[:, -1])
        ends = " ".join(f"{end:.3g}" for end in self.quantiles()[:, -1]) if known.any() else "none"
        drift = self.scalars.get("drift", np.full(len(self), np.nan))
        return Table(
            [
                ("members", f"{len(self)}: " + ", ".join(f"{n} {word}" for word, n in zip(words, counts, strict=True))),
                ("method", f"{self.method}"),
                ("work", f"{self.seconds:.3g} s, {len(self) / self.seconds:.3g} members a second"),
                ("loss", f"(L - f*) / (L(0) - f*) at the end, quantiles 5 25 50 75 95 %: {ends}"),
                ("drift", f"at most {np.nanmax(drift, initial=0.0):.2g}"),
                ("memory", f"{self.excess.nbytes / 2**20:.3g} MiB of loss curves"),
            ]
        )


def ensemble(
    draw: Draw,
    members: int,
    *,
    t1: float,
    method: Method | str | None = None,
    save_points: int | Sequence[float] | np.ndarray = 33,
    stop_loss: float | None = None,
    max_steps: int = 100_000,
    certificates: Literal["all", "cheap", "none"] = "none",
    seed: int = 0,
    progress: Count | bool | None = None,
) -> Ensemble:
    """Gradient flow (or descent) of many members: member k starts from draw(SeedSequence(seed).spawn(members)[k]).

    method: Diffrax("Dopri8") by default. An explicit method of diffrax, or gradient descent with backend "jax", takes
    BATCH members side by side, each with its own steps, on a GPU where jax has one; the width is compressed, and a
    member whose estimated error exceeds the tolerance, or that fails, is simulated again by itself. Other methods
    simulate one member after the other; with a handful of members that is quicker, for nothing is compiled. Members may
    have targets of their own; those of another shape than their neighbours are simulated by themselves.

    One member's failure never spoils the others: its row has its status and the reason; after Ctrl-C the rows of those
    that were not finished say so. progress(done, members) is called after each batch; True shows a bar. save_points
    (33 times, evenly; beyond the end of a member that stopped there is NaN), t1, stop_loss, max_steps as for simulate.
    Raises InputError for arguments out of range.

    Member k has a seed of its own and is the same whatever the number of members (here by compiled gradient descent):

    >>> import numpy as np
    >>> import flowsim as fs
    >>> def draw(seed):
    ...     return fs.Problem(fs.SquaredLoss([[1.0]]), fs.sample_compressed("fan_out", (1, 10**6, 10**6, 1), seed=seed))
    >>> method = fs.GradientDescent(1e-8, backend="jax")
    >>> few, more = (fs.ensemble(draw, count, t1=1e-6, method=method) for count in (2, 3))
    >>> np.allclose(few.excess, more.excess[:2]), len(set(more.scalars["final_excess"]))
    (True, 3)
    """
    if not callable(draw):
        raise InputError(
            f"Argument `draw` must be a function of a seed that returns a Problem, but it is a {type(draw).__name__}."
        )
    method = Diffrax("Dopri8") if method is None else as_method(method)
    end = as_number(t1, "t1", above=0.0)
    grid = save_times(method, end, save_points)
    count, limit = as_count(members, "members"), as_count(max_steps, "max_steps")
    level = None if stop_loss is None else as_number(stop_loss, "stop_loss", above=0.0)
    as_choice(certificates, "certificates", ("all", "cheap", "none"))
    settings = _Settings(method, end, grid, level, limit, certificates)
    begun, excess, rows = clock.perf_counter(), np.full((count, len(grid)), np.nan), []
    with counting(progress) as tell:
        for first in range(0, count, BATCH):
            block = range(first, min(first + BATCH, count))
            results = _results(draw, seed, block, settings)
            for k, (curve, row) in zip(block, results, strict=True):
                excess[k] = curve
                rows.append(row)
            if any(row["status"] == "interrupted" for row in rows[first:]):
                break
            if tell is not None:
                tell(block.stop, count)
    rows += [INTERRUPTED] * (count - len(rows))
    names = dict.fromkeys(name for row in rows for name in row)
    scalars = {name: column(name, [row.get(name) for row in rows]) for name in names}
    return Ensemble(grid, excess, scalars, method, clock.perf_counter() - begun)


@dataclass(frozen=True)
class _Settings:
    method: Method
    t1: float
    times: np.ndarray
    stop_loss: float | None
    max_steps: int
    certificates: str


Result = tuple[np.ndarray, dict[str, Any]]
"""A member's loss curve and its scalars."""


def _drawn(draw: Draw, seed: int, k: int) -> Problem | str:
    """Member k, or why there is none."""
    try:
        problem = draw(np.random.SeedSequence(seed, spawn_key=(k,)))
    except FlowsimError as error:
        return str(error)
    except Exception as error:
        return f"draw raised {type(error).__name__}: {error}"
    if not isinstance(problem, Problem):
        raise InputError(f"Argument `draw` must return a Problem, but it returns a {type(problem).__name__}.")
    return problem


def _results(draw: Draw, seed: int, block: range, settings: _Settings) -> list[Result]:
    """Those of a batch; after Ctrl-C rows that say so."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a member that diverges is a row, not a warning
            return _block([_drawn(draw, seed, k) for k in block], settings)
    except KeyboardInterrupt:
        return [(np.full(len(settings.times), np.nan), INTERRUPTED)] * len(block)


def _block(problems: Sequence[Problem | str], settings: _Settings) -> list[Result]:
    """The results of a batch, in order."""
    results: list[Result | None] = [None] * len(problems)
    method = settings.method
    if _stands_side_by_side(method):
        cores = {k: _core(p) for k, p in enumerate(problems) if isinstance(p, Problem) and _can_stop(p, settings)}
        kinds = [_kind(core) for core in cores.values()]
        usual = max(set(kinds), key=kinds.count) if kinds else None
        alike = [k for k, kind in zip(cores, kinds, strict=True) if kind == usual]
        if len(alike) > 1:
            chosen = [problems[k] for k in alike]
            with suppress(*MEMBER_FAILURES):  # each by itself then, and what fails is a row
                for k, result in zip(alike, _side_by_side(chosen, [cores[k] for k in alike], settings), strict=True):
                    results[k] = result
    return [result or _alone(problem, settings) for result, problem in zip(results, problems, strict=True)]


def _stands_side_by_side(method: Method) -> bool:
    if isinstance(method, GradientDescent):
        return method.backend == "jax"
    return isinstance(method, Diffrax) and method.kind.explicit


def _can_stop(problem: Problem, settings: _Settings) -> bool:
    """A level of L - f* needs a loss that declares f*."""
    return settings.stop_loss is None or minimum_of(problem.loss) is not None


def _core(problem: Problem) -> Problem:
    """What is integrated: the core of the compressed network where that is smaller, else the problem itself."""
    network = problem.network
    if isinstance(network, CompressedNetwork):
        return network.problem(problem.loss)
    compressed = compress(network)
    return problem if 2 * compressed.core.size > network.size else compressed.problem(problem.loss)


def _kind(problem: Problem) -> tuple[Any, ...]:
    """Members of one kind can stand side by side."""
    loss, compressed = problem.stacked_loss, getattr(problem, "compressed", None)
    same: Any = id(loss)
    if is_built_in(loss):
        same = type(loss), *(np.shape(part) for part in loss.parts().values())
    return same, problem.network.dims, compressed is None


def _side_by_side(problems: Sequence[Any], cores: Sequence[Problem], settings: _Settings) -> list[Result | None]:
    """Members of one shape under vmap; None for those that have to be simulated by themselves."""
    from flowsim.integrators.batched import descent, flow

    method = settings.method
    rtol, atol = tolerances(method)
    filled = [*cores, *([cores[-1]] * (BATCH - len(cores)))]
    states = np.stack([core.initial_state for core in filled])
    first = np.array([core.initial_excess for core in filled])
    levels = None if settings.stop_loss is None else settings.stop_loss * first
    scales = np.array([core.network.scale for core in filled])
    dims = cores[0].network.dims
    start = [core.stacked_loss for core in filled], scales, dims, states
    if isinstance(method, GradientDescent):
        paths = descent(*start, method, settings.times, levels, settings.max_steps)
    else:
        assert isinstance(method, Diffrax)
        paths = flow(*start, method, settings.t1, settings.times, levels, settings.max_steps)
    results: list[Result | None] = []
    for k, (problem, core) in enumerate(zip(problems, cores, strict=True)):
        taken = slice(0, int(paths.nodes[k]))
        walked, when = paths.state[k, taken], np.minimum(paths.time[k, taken], paths.end[k])
        compressed = getattr(core, "compressed", None)
        error = _compression_error(compressed, core, when, walked)
        allowed = rtol * float(np.linalg.norm(walked[-1] - walked[0])) + atol
        if not paths.healthy[k] or error > allowed:
            results.append(None)
            continue
        curve = core.excess(product(unflatten(paths.saved[k], dims), core.network.scale))
        ends = core.excess(product(unflatten(walked, dims), core.network.scale))
        beyond = paths.below[k] and isinstance(method, Diffrax)  # the last step goes on beyond the crossing
        last = float(levels[k]) if levels is not None and beyond else float(ends[-1])
        until = -2 if beyond else -1
        spent, lost = float(paths.dissipated[k, taken][until]), float(ends[0] - ends[until])
        steepness = float(np.linalg.norm(core.velocity(walked[-1])))
        fallen = np.append(ends[:-1], last)
        tolerance = step_tolerance(method, float(np.linalg.norm(walked[-1])), walked.shape[1])
        rounding = rounding_of(core.loss)
        floor = resolved_until(when, fallen, paths.dissipated[k, taken], steepness, tolerance, rounding)
        drift = _drift(compressed, core, walked) / np.maximum(1.0, problem.network.imbalance_norms)
        row = {
            "status": "converged" if paths.below[k] else "completed",
            "reason": None,
            "initial_loss": float(first[k]) + (minimum_of(core.loss) or 0.0),
            "final_excess": last,
            "time_reached": float(paths.end[k]),
            "rate_seen": rate_seen(when, fallen, floor),
            "drift": float(drift.max()),
            "energy_residual": abs(lost - spent) / (float(first[k]) or 1.0),
            "error_estimate": error,
            "steps": int(paths.steps[k]),
            "core_width": None if compressed is None else max(core.network.dims[1:-1]),
            **certified(problem, settings.certificates),
        }
        results.append((np.where(np.isnan(curve), last, curve), row))
    return results


def _compression_error(compressed: Any, core: Problem, times: np.ndarray, states: np.ndarray) -> float:
    """The integral of the defect by the trapezoidal rule over the steps, as simulate takes it."""
    if compressed is None or compressed.exact:
        return 0.0
    defects = compressed.defect(core.stacked_loss, states)
    return float(0.5 * np.diff(times) @ (defects[1:] + defects[:-1]))


def _drift(compressed: Any, core: Problem, states: np.ndarray) -> np.ndarray:
    """||D_l(t) - D_l(0)||_F at the states: (count, L - 1)."""
    if compressed is not None:
        return imbalance_change(compressed.surroundings, compressed.changes(states))
    initial = core.network.weights
    return imbalance_change(initial, unflatten(states - flatten(initial), core.network.dims))


def _alone(problem: Problem | str, settings: _Settings) -> Result:
    """One member by simulate."""
    times = settings.times
    if isinstance(problem, str):
        return np.full(len(times), np.nan), {"status": "failed", "reason": problem}
    try:
        run = simulate(
            problem,
            settings.method,
            t1=settings.t1,
            save_points=times,
            stop_loss=settings.stop_loss,
            max_steps=settings.max_steps,
        )
        row = {**scalars_of(run), **certified(problem, settings.certificates)}
        return np.interp(times, run.time, run.excess), row
    except MEMBER_FAILURES as error:
        return np.full(len(times), np.nan), {"status": "failed", "reason": str(error) or type(error).__name__}


def scalars_of(run: Trajectory) -> dict[str, Any]:
    """What is kept of one member."""
    return {
        "status": run.status,
        "reason": None if run.exit_code == 0 else run.message,
        "initial_loss": float(run.loss[0]),
        "final_excess": float(run.excess[-1]),
        "time_reached": float(run.time[-1]),
        "rate_seen": run.rate_seen,
        "drift": float(run.imbalance_drift.max()),
        "energy_residual": float(np.abs(run.energy_residual).max()),
        "error_estimate": float(run.error_estimate[-1]),
        "steps": run.stats["steps"],
        "rhs_evaluations": run.stats["rhs_evaluations"],
        "core_width": None if run.reduction.network is None else max(run.reduction.network.widths[1:-1]),
    }


def alpha_of(name: str) -> str:
    """What a certificate's alpha is called among the scalars: theorem_2_alpha for theorem-2."""
    return f"{name.replace('-', '_')}_alpha"


def certified(problem: Problem, which: str) -> dict[str, Any]:
    """What the theorems say of one member."""
    if which == "none":
        return {}
    found = certify(problem, cheap=which == "cheap")
    best = found.best
    alphas = {alpha_of(entry.name): entry.alpha if entry.applies else None for entry in found}
    return {
        "lambda_min_T": found.lambda_min_T,
        **alphas,
        "best_certificate": None if best is None else best.name,
        "best_alpha": None if best is None else best.alpha,
        "certified_rate": None if best is None else best.rate,
    }


WORDS = {"dims", "scheme", "method", "status", "reason", "best_certificate"}
"""Scalars that are words."""


def column(name: str, values: list[Any]) -> np.ndarray:
    """One scalar of all members: words, or numbers with NaN for what is not known."""
    if name in WORDS:
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=float)
