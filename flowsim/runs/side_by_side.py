"""Many networks of one shape at once: their cores are integrated together, in lanes of one compiled loop.

Every member has its own steps and its own end; what happens to one does not touch the others. What they leave are
Paths, from which the numbers of their Records are derived for all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flowsim.compression.control import WATCHED, CompressedModel, FullModel, Model
from flowsim.losses import is_built_in
from flowsim.methods import Diffrax, GradientDescent, Method
from flowsim.methods.descent_steps import segment_length
from flowsim.methods.diffrax_steps import segment_steps
from flowsim.methods.jax_support import LossArgument, Tree, as_argument, float64
from flowsim.network import Network
from flowsim.problem import Problem
from flowsim.runs.descending import descending
from flowsim.runs.paths import Paths, Result, told
from flowsim.runs.recorder import GROWTH_LIMIT, growth_limit
from flowsim.runs.together import Shape, Together, Told
from flowsim.runs.walking import Settings, Walked, tableau_of, walking

TOGETHER, LANES = 256, 16
"""So many members are integrated by one compiled call, in groups of LANES, whose numbers fit into a fast cache; on a
GPU in one group."""
CALL_BYTES = 2**29
"""What a call returns takes at most about this much memory; so do the losses of its descent."""


Outcome = Result | Model | None
"""Its result; the finer model that the member needs; None for a member that has to be simulated by itself."""


def kind_of(model: Model) -> tuple[object, ...]:
    """Members of one kind can stand side by side."""
    loss = model.whole.problem.stacked_loss
    same: object = id(loss)
    if is_built_in(loss):
        same = type(loss), *(np.shape(part) for part in loss.parts().values())
    return same, _shape(model), getattr(model, "refinements", None), *(W.shape for W in _surroundings(model))


def side_by_side(
    problems: Sequence[Problem],
    models: Sequence[Model],
    method: Method,
    t1: float,
    times: np.ndarray,
    stop_loss: float | None,
    most_steps: int,
) -> list[Outcome]:
    """What becomes of members whose models are of one kind, started from t = 0.

    None for those that failed, or whose compression exceeds its tolerance later than in their first steps.
    """
    walk = descent if method.kind.discrete else flow
    outcomes: list[Outcome] = []
    for first in range(0, len(models), TOGETHER):
        some = slice(first, first + TOGETHER)
        paths = walk(models[some], method, t1, times, stop_loss, most_steps)
        outcomes += _outcomes(problems[some], models[some], method, times, paths)
    return outcomes


def _outcomes(
    problems: Sequence[Problem], models: Sequence[Model], method: Method, times: np.ndarray, paths: Paths
) -> list[Outcome]:
    some, errors, refused = models[0], np.zeros_like(paths.defect), np.zeros(len(models), bool)
    if isinstance(some, CompressedModel) and not some.network.exact:
        errors = some.estimate(paths.time[:, paths.watched], paths.defect)
        refused = np.asarray((errors > some.allowed(paths.moved))[:, 1:].any(1))
    results = told(problems, models, method, times, paths, errors[:, -1])
    bounded = np.all(paths.excess <= GROWTH_LIMIT * paths.excess[:, :1], axis=1)
    found: list[Outcome] = []
    for k, (problem, model) in enumerate(zip(problems, models, strict=True)):
        if not (paths.healthy[k] and (bounded[k] or (paths.excess[k] <= growth_limit(problem)).all())):
            found.append(None)
        elif refused[k]:
            found.append(_finer(model, paths, k) if isinstance(model, CompressedModel) else None)
        else:
            found.append(results[k])
    return found


def _finer(model: CompressedModel, paths: Paths, k: int) -> Model | None:
    """The model that simulate would start anew with, after it has watched the first segment of steps; None where the
    error exceeds its tolerance later, or the full weights are needed."""
    rows = slice(int(paths.segment[k]))
    nodes, defect, fewer, moved = (part[k, rows] for part in (paths.time, paths.defect, paths.fewer, paths.moved))
    if not (model.estimate(nodes, defect) > model.allowed(moved))[1:].any():
        return None
    finer = model.finer(nodes, defect, fewer, float(moved[-1]))
    return finer if isinstance(finer, CompressedModel) else None


# ------------------------------------------------------------------------------------------------------- into lanes


def _shape(model: Model) -> Shape:
    if not isinstance(model, CompressedModel):
        return Shape(model.problem.network.dims)
    network = model.network
    sizes, beyond = network.bases.sizes, network.steps + network.halo
    if network.exact:
        return Shape(network.widths)
    fewer = (sizes(network.steps - 1), sizes(beyond - 1)) if network.steps else None
    return Shape(network.widths, sizes(beyond), fewer)


def _surroundings(model: Model) -> Sequence[np.ndarray]:
    """W_l(0) in the coordinates that the defect and the imbalance live in."""
    if isinstance(model, CompressedModel):
        return model.network.bases.coordinates(model.network.steps + model.network.halo)
    return model.problem.network.weights


@dataclass(frozen=True)
class _Lanes:
    """How members are laid out: (count groups, `width` lanes); the last are empty."""

    members: int
    count: int
    width: int

    @property
    def alive(self) -> np.ndarray:
        """(groups, lanes): where there is a member."""
        return np.arange(self.count * self.width).reshape(self.count, -1) < self.members

    def put(self, stack: np.ndarray) -> np.ndarray:
        """(B, ...) as (groups, ..., lanes)."""
        filled = np.concatenate([stack, np.repeat(stack[-1:], self.count * self.width - len(stack), axis=0)])
        return np.ascontiguousarray(np.moveaxis(filled.reshape(self.count, self.width, *stack.shape[1:]), 1, -1))

    def take(self, lanes: Tree) -> np.ndarray:
        """(groups, ..., lanes) as (B, ...)."""
        moved = np.moveaxis(np.asarray(lanes), -1, 1)
        return moved.reshape(-1, *moved.shape[2:])[: self.members]


def _lanes_for(models: Sequence[Model], numbers: int) -> _Lanes:
    """The layout, where a call returns `numbers` for each member."""
    import jax

    width = LANES if jax.default_backend() == "cpu" else TOGETHER
    fitting = max(1, CALL_BYTES // (8 * numbers * width))
    return _Lanes(len(models), max(-(-len(models) // width), min(TOGETHER // width, fitting)), width)


def _together(models: Sequence[Model], lanes: _Lanes) -> Together:
    """The members, group by group."""
    layers = zip(*map(_surroundings, models), strict=True)
    start = [lanes.put(np.stack(matrices)) for matrices in layers]
    scales = np.array([_network(model).scale for model in models])
    probes = models[0].probes if isinstance(models[0], FullModel) else None
    together = None if probes is None else [np.broadcast_to(Z, (lanes.count, *Z.shape)) for Z in probes]
    return Together(_losses(models, lanes), lanes.put(scales), start, together)


def _network(model: Model) -> Network:
    return model.network if isinstance(model, CompressedModel) else model.problem.network


def _losses(models: Sequence[Model], lanes: _Lanes) -> LossArgument:
    """Their parts, (groups, ..., lanes)."""
    import jax

    losses = [model.whole.problem.stacked_loss for model in models]
    if all(loss is losses[0] for loss in losses):
        losses = losses[:1]
    return jax.tree.map(lambda *parts: lanes.put(np.stack(parts)), *map(as_argument, losses))


def flow(
    models: Sequence[Model],
    method: Method,
    t1: float,
    times: np.ndarray,
    stop_loss: float | None,
    most_steps: int,
) -> Paths:
    """The flow to t1, or until L - f* <= stop_loss (L(0) - f*), by an explicit method of diffrax.

    times: where to save, ascending. A member that needs more than most_steps accepted steps, or than whose records fit
    into CALL_BYTES, is not healthy; the others do not notice.
    """
    assert isinstance(method, Diffrax)
    shape = _shape(models[0])
    longest = segment_steps(shape.size)
    lanes = _lanes_for(models, 8 * (longest + len(times)))
    limit = min(most_steps, max(longest, CALL_BYTES // (64 * TOGETHER)))
    walk = walking(shape, tableau_of(method.name), longest)
    with float64():
        settings, together = _settings(method, t1), _together(models, lanes)
        low = None if stop_loss is None else np.array(stop_loss)
        alive, carry, healthy = lanes.alive, None, np.ones(len(models), bool)
        calls: list[Walked] = []
        steps = np.zeros(alive.shape, int)
        while alive.any():
            walked = walk(together, alive, carry, times, low, settings)
            calls.append(walked)
            carry, steps = walked.carry, steps + np.asarray(walked.steps)
            stuck = alive & (np.asarray(walked.idle) | ~np.asarray(carry.sound) | (steps > limit))
            healthy &= ~lanes.take(stuck)
            alive = alive & ~stuck & np.asarray(walked.going) & (steps < limit)
        return _joined(lanes, calls, lanes.take(steps), healthy, t1, longest)


def _settings(method: Diffrax, t1: float) -> Settings:
    size = None if method.step_size is None else np.array(min(method.step_size, t1))
    coefficients = [np.array(c, float) for c in (method.pcoeff, method.icoeff, method.dcoeff)]
    return Settings(np.array(method.rtol), np.array(method.atol), coefficients, size, np.array(t1))


def _joined(
    lanes: _Lanes,
    calls: Sequence[Walked],
    steps: np.ndarray,
    healthy: np.ndarray,
    t1: float,
    longest: int,
) -> Paths:
    """What the calls did, one after the other; each begins where the one before ended."""

    def rows(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([parts[0], *(part[:, 1:] for part in parts[1:])], axis=1)

    def known(parts: Sequence[np.ndarray]) -> np.ndarray:
        found = parts[0]
        for part in parts[1:]:
            found = np.where(np.isnan(part), found, part)
        return found

    taken = [lanes.take(walked.steps) for walked in calls]
    last = calls[-1].carry  # a member that was not alive stays as it was
    columns = ("time", "spent", "excess", "defect", "fewer", "moved")
    found = (rows([lanes.take(getattr(w, name)) for w in calls]) for name in columns)
    time, spent, excess, defect, fewer, moved = found
    kept = rows([(np.arange(longest + 1) > 0) & (np.arange(longest + 1) <= count[:, None]) for count in taken])
    saved = [known([lanes.take(getattr(w.saved, name)) for w in calls]) for name in Told._fields]
    below, end = lanes.take(last.located), lanes.take(last.end)
    whole = (taken[0] == longest) | (steps == taken[0])
    return Paths(
        time,
        spent,
        excess,
        kept,
        np.arange(time.shape[1]),
        defect,
        fewer,
        moved,
        tuple(saved),
        end,
        lanes.take(last.final[0]),
        steps,
        healthy & ((end >= t1) | below),
        below,
        np.where(whole, taken[0] + 1, 0),
    )


def descent(
    models: Sequence[Model],
    method: Method,
    t1: float,
    times: np.ndarray,
    stop_loss: float | None,
    most_steps: int,
) -> Paths:
    """Gradient descent to times[-1], or to the first step with L - f* <= stop_loss (L(0) - f*).

    times: whole steps, 0 first; told of are these, and where simulate watches its compression. More steps than whose
    losses fit into CALL_BYTES make no member healthy.
    """
    assert isinstance(method, GradientDescent)
    shape, eta = _shape(models[0]), method.step_size
    wanted = np.round(times / eta).astype(int)
    count = min(int(wanted[-1]), most_steps, CALL_BYTES // (16 * TOGETHER))
    segments = np.arange(0, count, segment_length(shape.size))
    pieces = [np.linspace(a, b, WATCHED + 1).astype(int) for a, b in pairwise((*segments, count))]
    watched = np.unique(np.concatenate(pieces))
    wanted = wanted[wanted <= count]
    nodes = np.union1d(wanted, watched)
    longest = 1 << count.bit_length()
    lanes = _lanes_for(models, 2 * longest)
    with float64():
        low = None if stop_loss is None else np.array(stop_loss)
        found = descending(shape, longest)(_together(models, lanes), lanes.alive, nodes, low, np.array(eta))
        stopped, final = lanes.take(found.stopped), lanes.take(found.final)
        excess, spent = lanes.take(found.excess)[:, : count + 1], lanes.take(found.spent)[:, : count + 1]
        defect, moved = lanes.take(found.defect), lanes.take(found.moved)
        told = [lanes.take(part) for part in found.saved]
    below = stopped >= 0
    steps = np.where(below, stopped, count)
    saves, taken = np.searchsorted(nodes, wanted), np.arange(count + 1)
    places = np.append(np.pad(saves, (0, len(times) - len(saves)), constant_values=-1), -1)
    at = np.searchsorted(nodes, watched)
    return Paths(
        eta * np.minimum(taken, steps[:, None]),
        spent,
        excess,
        (taken > 0) & (taken <= steps[:, None]),
        watched,
        defect[:, at],
        0 * defect[:, at],
        moved[:, at],
        tuple(part[:, places] for part in told),
        eta * steps,
        final,
        steps,
        np.isfinite(excess[:, -1]) & (below | (count == round(times[-1] / eta))),
        below,
        np.zeros(len(models), int),
    )
