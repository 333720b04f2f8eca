"""ensemble: many members of one shape at once, statistics of their loss curves, a row of scalars for each."""

from __future__ import annotations

import time as clock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from flowsim.checks import as_choice, as_count, as_number
from flowsim.compression.control import Model, choose_model
from flowsim.display import Shown, Table
from flowsim.dynamics import Dynamics, Motion, as_dynamics
from flowsim.errors import FlowsimError, InputError
from flowsim.losses import minimum_of
from flowsim.methods import Diffrax, Method, as_method
from flowsim.methods.guard import MEMBER_FAILURES
from flowsim.problem import Problem
from flowsim.progress import Count, counting
from flowsim.runs.derived import scalars
from flowsim.runs.members import certified, column
from flowsim.runs.paths import Result
from flowsim.runs.record import exit_code_of
from flowsim.runs.simulation import simulate
from flowsim.runs.stopping import save_times
from flowsim.values import Json

if TYPE_CHECKING:
    import xarray

Draw = Callable[[np.random.SeedSequence], Problem]
BATCH = 1024
"""So many members are drawn, and taken side by side, at a time."""
THREADS = 2
"""Batches that are integrated at the same time, while this thread draws the next ones."""
AHEAD = THREADS + 1
"""At most so many batches are under way."""
INTERRUPTED: Json = {"status": "interrupted", "reason": "Ctrl-C came before this member was finished"}


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
        return np.flatnonzero([exit_code_of(status) != 0 for status in self.scalars["status"]])

    def quantiles(self, q: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95), relative: bool = True) -> np.ndarray:
        """(len(q), S): quantiles over the members of L - f* (relative: over its start) at each time."""
        curves = self.excess / self.excess[:, :1] if relative else self.excess
        return np.nanquantile(curves, q, axis=0)

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """Scalars (member), loss curves (member, time)."""
        import xarray

        variables: dict[str, object] = {name: ("member", values) for name, values in self.scalars.items()}
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
    dynamics: Dynamics | str | None = None,
    save_points: int | Sequence[float] | np.ndarray = 33,
    stop_loss: float | None = None,
    max_steps: int = 100_000,
    certificates: Literal["all", "cheap", "none"] = "none",
    seed: int = 0,
    progress: Count | bool | None = None,
) -> Ensemble:
    """Gradient flow (or descent) of many members: member k starts from draw(SeedSequence(seed).spawn(members)[k]).

    method: Diffrax("Dopri8") by default. An explicit method of diffrax, or gradient descent with backend "jax", takes
    BATCH members side by side, each with its own steps, on a GPU where jax has one, while the next are drawn; the width
    is compressed, a member whose estimated error exceeds the tolerance is taken again with more of it, and one that
    fails is simulated again by itself. What is compiled is kept for later processes, in the folder FLOWSIM_CACHE (an
    empty one: nowhere). Other methods
    simulate one member after the other; with a handful of members that is quicker, for nothing is compiled. Members may
    have targets of their own; those of another shape than their neighbours are simulated by themselves.

    One member's failure never spoils the others: its row has its status and the reason; after Ctrl-C no more are drawn,
    and the rows of those that were not finished say so. progress(done, members) is called after each batch; True shows
    a bar. save_points (33 times, evenly; beyond the end of a member that stopped there is NaN), t1, stop_loss,
    max_steps as for simulate. certificates: which of `certify`'s go into the rows, all, cheap (a few products with the
    layers) or none. dynamics: as for simulate; other ones than gradient flow, and weight decay, are simulated one
    member after the other. Gradient descent with batches or label noise has the seed method.seed + k in member k.
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
    settings = _Settings(method, as_dynamics(dynamics), end, grid, level, limit, certificates)
    begun, excess, rows = clock.perf_counter(), np.full((count, len(grid)), np.nan), []
    with counting(progress) as tell:
        for block, results in _batches(draw, seed, count, settings):
            for k, (curve, row) in zip(block, results, strict=True):
                excess[k] = curve
                rows.append(row)
            if tell is not None:
                tell(block.stop, count)
    rows += [INTERRUPTED] * (count - len(rows))
    names = dict.fromkeys(name for row in rows for name in row)
    scalars = {name: column(name, [row.get(name) for row in rows]) for name in names}
    return Ensemble(grid, excess, scalars, method, clock.perf_counter() - begun)


@dataclass(frozen=True)
class _Settings:
    method: Method
    dynamics: Dynamics
    t1: float
    times: np.ndarray
    stop_loss: float | None
    max_steps: int
    certificates: str

    @property
    def walk(self) -> tuple[Method, float, np.ndarray, float | None, int]:
        """What members that are taken side by side share."""
        return self.method, self.t1, self.times, self.stop_loss, self.max_steps


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


def _batches(draw: Draw, seed: int, count: int, settings: _Settings) -> Iterator[tuple[range, list[Result]]]:
    """The results batch by batch, in order. After Ctrl-C those that are drawn are finished, and no others drawn; after
    another one none are finished."""
    blocks = (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
    pool, under_way = ThreadPoolExecutor(THREADS), deque[_Batch]()
    try:
        with suppress(KeyboardInterrupt):
            for block in blocks:
                problems = [_drawn(draw, seed, k) for k in block]
                under_way.append(_Batch(block, problems, pool.submit(_told, problems, settings)))
                if len(under_way) == AHEAD:
                    yield under_way[0].block, under_way[0].results(settings)
                    under_way.popleft()
        with suppress(KeyboardInterrupt):
            for batch in under_way:
                yield batch.block, batch.results(settings)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Batch:
    """Members under way."""

    block: range
    problems: Sequence[Problem | str]
    told: Future[list[Result | None]]

    def results(self, settings: _Settings) -> list[Result]:
        """Theirs, in order; those of which nothing is told are simulated by themselves."""
        drawn = zip(self.problems, self.block, self.told.result(), strict=True)
        with np.errstate(over="ignore", invalid="ignore"):  # a member that diverges is a row, not a warning
            return [_result(*member, settings) for member in drawn]


def _told(problems: Sequence[Problem | str], settings: _Settings) -> list[Result | None]:
    """Of the members that can be taken side by side; a member whose compression is too coarse is taken again."""
    results: list[Result | None] = [None] * len(problems)
    if not settings.method.side_by_side:
        return results
    from flowsim.runs.side_by_side import kind_of, side_by_side

    with np.errstate(over="ignore", invalid="ignore"), suppress(*MEMBER_FAILURES):  # each by itself then
        models = {k: model for k, p in enumerate(problems) if (model := _model(p, settings)) is not None}
        while models:
            alike: dict[object, list[int]] = {}
            for k, model in models.items():
                alike.setdefault(kind_of(model), []).append(k)
            finer = {}
            for members in alike.values():
                if len(members) == 1:
                    continue
                chosen = [p for k in members if isinstance(p := problems[k], Problem)]
                outcomes = side_by_side(chosen, [models[k] for k in members], *settings.walk)
                for k, outcome in zip(members, outcomes, strict=True):
                    if isinstance(outcome, tuple):
                        results[k] = outcome
                    elif outcome is not None:
                        finer[k] = outcome
            models = finer
    return results


def _model(problem: Problem | str, settings: _Settings) -> Model | None:
    """What simulate would integrate, where a level of L - f* makes sense; None for a member that simulate refuses."""
    if isinstance(problem, str) or (settings.stop_loss is not None and minimum_of(problem.loss) is None):
        return None
    try:
        motion = Motion(problem, settings.dynamics)
        return choose_model(motion, settings.method, "auto") if motion.is_plain else None
    except MEMBER_FAILURES:
        return None


def _result(problem: Problem | str, k: int, told: Result | None, settings: _Settings) -> Result:
    """The loss curve on the grid, its last value held beyond the end, and the scalars: as told, or by simulate."""
    if isinstance(problem, str):
        return np.full(len(settings.times), np.nan), {"status": "failed", "reason": problem}
    try:
        curve, row = told or _alone(problem, k, settings)
        return curve, {**row, **certified(problem, settings.certificates, settings.dynamics)}
    except MEMBER_FAILURES as error:
        reason = str(error) or type(error).__name__
        return np.full(len(settings.times), np.nan), {"status": "failed", "reason": reason}


def _alone(problem: Problem, k: int, settings: _Settings) -> Result:
    record = simulate(
        problem,
        settings.method.for_member(k),
        dynamics=settings.dynamics,
        t1=settings.t1,
        save_points=settings.times,
        stop_loss=settings.stop_loss,
        max_steps=settings.max_steps,
    )
    return np.interp(settings.times, record.time, record.excess), scalars(record)
