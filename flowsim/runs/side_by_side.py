"""Many networks of one shape at once: diffrax's solvers under vmap, and gradient descent as one scan over a stack.

Every member has its own steps and its own end; what happens to one does not touch the others. What it leaves is a
Record, as that of a run of its own, from which the same numbers are derived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np

from flowsim.compression.control import WATCHED, CompressedModel, Model
from flowsim.dynamics import GradientFlow
from flowsim.losses import StackedLoss
from flowsim.losses import excess as excess_of
from flowsim.methods import Diffrax, GradientDescent, Method
from flowsim.methods.descent_steps import segment_length
from flowsim.methods.diffrax_steps import Traced, compiled, controller_of, solver_of
from flowsim.methods.jax_support import Tree, as_argument, float64
from flowsim.methods.steps import Segment
from flowsim.network import backpropagate, flatten, unflatten
from flowsim.problem import Problem
from flowsim.runs.record import Checkpoints, Record, Reduction, Steps, Work
from flowsim.runs.recorder import BELOW, growth_limit

STEPS_AT_ONCE = 32
CROSSINGS = 12
"""At most so many iterations locate where a member's loss crosses its level, within one step."""
LOCATED = 1e-12
"""Relative: a crossing is located where an iteration moves it by less, the noise of the loss."""
EVALUATED_AT_ONCE = 256
PATH_BYTES = 2**29
"""The states after all steps of a batch take at most about this much memory; so do the losses of its descent."""
DESCENT_AT_ONCE = 64
TINY = np.finfo(float).tiny
SAVED = 1 + 1e-14
"""A time that exceeds the end by rounding is the end."""


@dataclass(frozen=True)
class Paths:
    """What B members did.

    time, dissipated (B, K): 0 and the ends of the steps, the integral of ||grad L||_F^2 up to then; a member's own are
    the first steps (B) + 1, the others repeat its last; excess (B, K): L - f* there, None where the states tell it;
    segments, watched: where segments of steps begin, after which steps the error of the compression is taken; nodes
    (J): the steps after which the states are kept, watched ones among them; state (B, J, size); saved (B, S, size):
    those at the times asked for, NaN beyond a member's end; end (B), final (B, size): where a member ends, its state
    there; partial (B): the integral of ||grad L||_F^2 of the last step up to there; healthy (B): no step was refused
    for good; below (B):
    whether the level of the loss was reached, at `end`.
    """

    time: np.ndarray
    dissipated: np.ndarray
    excess: np.ndarray | None
    segments: np.ndarray
    watched: np.ndarray
    nodes: np.ndarray
    state: np.ndarray
    saved: np.ndarray
    end: np.ndarray
    final: np.ndarray
    partial: np.ndarray
    steps: np.ndarray
    healthy: np.ndarray
    below: np.ndarray


def side_by_side(
    problems: Sequence[Problem],
    models: Sequence[Model],
    method: Method,
    t1: float,
    times: np.ndarray,
    stop_loss: float | None,
    most_steps: int,
    batch: int,
) -> list[Record | None]:
    """The records of up to `batch` members (for which it is compiled) whose models' problems are of one kind; None for
    those that have to be simulated by themselves: they failed, or their compression exceeds its tolerance."""
    cores = [model.problem for model in models]
    filled = [*cores, *([cores[-1]] * (batch - len(cores)))]
    states = np.stack([core.initial_state for core in filled])
    scales = np.array([core.network.scale for core in filled])
    levels = None
    if stop_loss is not None:
        levels = stop_loss * np.array([p.initial_excess for p in [*problems, *filled[len(problems) :]]])
    together = [core.stacked_loss for core in filled], scales, cores[0].network.dims, states
    walk: Callable[..., Paths] = descent if method.kind.discrete else flow
    paths = walk(*together, method, t1, times, levels, most_steps)
    return [
        _record(problem, model, method, times, paths, k) if paths.healthy[k] else None
        for k, (problem, model) in enumerate(zip(problems, models, strict=True))
    ]


def _record(problem: Problem, model: Model, method: Method, times: np.ndarray, paths: Paths, k: int) -> Record | None:
    """The record of member k; None where it diverged, or where its model is too coarse."""
    core, count, end = model.problem, int(paths.steps[k]), float(paths.end[k])
    when = np.append(paths.time[k, :count], end)
    kept = paths.nodes[: int((paths.nodes < count).sum())]
    walked = np.concatenate([paths.state[k, : len(kept)], paths.final[k, None]])
    excess = core.excess(core.products(walked)) if paths.excess is None else paths.excess[k, : count + 1]
    if not (excess <= growth_limit(problem)).all():
        return None
    dissipated = np.append(paths.dissipated[k, :count], paths.dissipated[k, max(count - 1, 0)] + paths.partial[k])
    at = np.append(when[kept], end)
    for first, last in pairwise(np.append(paths.segments[paths.segments < count], count)):
        inner = paths.watched[(paths.watched >= first) & (paths.watched < last)]
        nodes = np.append(when[inner], when[last])
        none = np.zeros(0)
        segment = Segment(nodes, none, none, lambda t: walked[np.searchsorted(at, t)], method.kind.discrete)
        if model.watch(segment, len(inner), float(nodes[-1])) is not None:
            return None
    inside = times <= end * SAVED
    saved, states = times[inside], paths.saved[k, inside]
    if saved[-1] < end:
        saved, states = np.append(saved, end), np.concatenate([states, paths.final[k, None]])
    losses, norms, drift, error = model.diagnose(saved, states)
    compressed = model.network if isinstance(model, CompressedModel) else None
    return Record(
        problem=problem,
        method=method,
        status="converged" if paths.below[k] else "completed",
        detail="",
        time=saved,
        excess=losses,
        gradient_norm=norms,
        imbalance_change=drift,
        steps=Steps(when, excess, dissipated),
        checkpoints=Checkpoints(saved[[0, -1]], states[[0, -1]]),
        reduction=Reduction(compressed, error, model.reason),
        stats=cast(Work, {**dict.fromkeys(Work.__annotations__), "steps": count}),  # the rest is told of all together
    )


def flow(
    losses: Sequence[StackedLoss],
    scales: np.ndarray,
    dims: Sequence[int],
    states: np.ndarray,
    method: Diffrax,
    t1: float,
    times: np.ndarray,
    levels: np.ndarray | None,
    most_steps: int,
) -> Paths:
    """The flow from states (B, size) to t1, or until L - f* <= levels (B), by an explicit method of diffrax under vmap.

    losses: one a member, all of one kind and shape; times: where to save, ascending. A member that needs more than
    most_steps accepted steps, or than fit into PATH_BYTES for each, is not healthy; the others do not notice.
    """
    import jax
    import jax.numpy as jnp

    many, B = _compiled_many(), len(states)
    limit = min(most_steps, max(STEPS_AT_ONCE, PATH_BYTES // states.nbytes))
    with float64():
        solver, controller = solver_of(method), controller_of(method)
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *map(as_argument, losses))
        args = Traced(stacked, jnp.asarray(scales, float), 0.0, GradientFlow(), len(dims) - 1)
        end, low = jnp.asarray(t1, float), None if levels is None else jnp.asarray(levels, float)
        step = None if method.step_size is None else jnp.asarray(min(method.step_size, t1), float)
        weights = [jnp.asarray(W) for W in unflatten(states, dims)]
        carry = many.begin(solver, controller, jnp.zeros(()), end, weights, step, args)
        clock, path, energy = [np.zeros((B, 1))], [states[:, None]], [np.zeros((B, 1))]
        saved = np.full((B, len(times), states.shape[1]), np.nan)
        steps, healthy = np.zeros(B, int), np.ones(B, bool)
        while True:
            carry, record, accepted, _, sound = many.segment(solver, controller, carry, end, args, STEPS_AT_ONCE, low)
            count = np.asarray(accepted)
            if not count.any():
                break
            # a member that took fewer steps repeats its last one
            held = np.minimum(np.arange(STEPS_AT_ONCE), np.maximum(count - 1, 0)[:, None])
            rows = np.arange(B)[:, None]
            t, y = np.asarray(record["t"])[rows, held], np.asarray(record["state"])[rows, held]
            spent = np.where(np.arange(STEPS_AT_ONCE) < count[:, None], np.asarray(record["energy"]), 0.0)
            idle = count == 0
            t[idle], y[idle] = clock[-1][idle, -1:], path[-1][idle, -1:]
            clock.append(t)
            path.append(y)
            energy.append(energy[-1][:, -1:] + np.cumsum(spent, axis=1))
            steps = steps + count
            healthy &= np.asarray(sound) | idle
            if ((count == 0) | (steps >= limit)).all():
                break
        whole = np.concatenate(clock, 1), np.concatenate(path, 1), np.concatenate(energy, 1)
        healthy &= steps <= limit
        return _finished(many, solver, args, dims, whole, times, saved, levels, t1, steps, healthy)


def descent(
    losses: Sequence[StackedLoss],
    scales: np.ndarray,
    dims: Sequence[int],
    states: np.ndarray,
    method: GradientDescent,
    t1: float,
    times: np.ndarray,
    levels: np.ndarray | None,
    most_steps: int,
) -> Paths:
    """Gradient descent from states (B, size) to times[-1], or to the first step with L - f* <= levels (B), as one loop
    over the stack. times: whole steps, 0 first; states are kept at these and where simulate watches its compression.

    More steps than whose losses fit into PATH_BYTES make no member healthy.
    """
    import jax
    import jax.numpy as jnp

    eta, B = method.step_size, len(states)
    wanted = np.round(times / eta).astype(int)
    count = min(int(wanted[-1]), most_steps, PATH_BYTES // (16 * B))
    segments = np.arange(0, count, segment_length(states.shape[1]))
    pieces = [np.linspace(a, b, WATCHED + 1).astype(int) for a, b in pairwise((*segments, count))]
    watched = np.unique(np.concatenate(pieces))
    nodes = np.union1d(wanted[wanted <= count], watched)
    with float64():
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *map(as_argument, losses))
        arguments = stacked, jnp.asarray(scales, float)
        low = jnp.asarray(np.full(B, -np.inf) if levels is None else levels)
        carry: Tree = [jnp.asarray(W) for W in unflatten(states, dims)], jnp.full(B, -1)
        path, excess, spent = [states], [], [np.zeros((B, 1))]
        for start, end in pairwise(nodes):
            for first in range(start, end, DESCENT_AT_ONCE):
                last = min(first + DESCENT_AT_ONCE, end)
                carry, (before, lost) = _compiled_descent()(arguments, carry, low, eta, first, last)
                excess.append(np.asarray(before)[:, : last - first])
                spent.append(np.asarray(lost)[:, : last - first])
            path.append(flatten([np.asarray(W) for W in carry[0]]))
        final = np.asarray(_compiled_many().excess(path[-1], tuple(dims), arguments))
    stopped = np.asarray(carry[1])
    stopped = np.where((stopped < 0) & (final <= np.asarray(low)), count, stopped)
    below = stopped >= 0
    steps = np.where(below, stopped, count)
    state = np.stack(path, axis=1)
    saved = np.full((B, len(times), states.shape[1]), np.nan)
    held = np.searchsorted(nodes, wanted[wanted <= count])
    saved[:, : len(held)] = np.where((wanted[: len(held)] <= steps[:, None])[..., None], state[:, held], np.nan)
    losses_of = np.concatenate([*excess, final[:, None]], axis=1)  # a member that has stopped repeats its last
    dissipated = np.cumsum(np.concatenate(spent, axis=1), axis=1)
    rows, before = np.arange(B), np.maximum(steps - 1, 0)
    partial = dissipated[rows, steps] - dissipated[rows, before]
    healthy = np.isfinite(final) & (below | (count == wanted[-1]))
    time = eta * np.minimum(np.arange(count + 1), steps[:, None])
    kept = segments, watched, nodes, state, saved
    return Paths(time, dissipated, losses_of, *kept, eta * steps, path[-1], partial, steps, healthy, below)


@cache
def _compiled_descent() -> Callable[..., Tree]:
    """Steps start .. end - 1 of every member, DESCENT_AT_ONCE of them at most, with L - f* before each and what it
    dissipates; one that has reached its level stays where it is."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def one(args: Tree, carry: Tree, low: Tree, eta: Tree, start: Tree, end: Tree) -> Tree:
        loss, scale = args[0].loss, args[1]

        def step(carry: Tree, k: Tree) -> Tree:
            weights, stopped = carry
            W, gradients = backpropagate(loss, weights, scale)
            excess = excess_of(loss, W)
            stopped = jnp.where((stopped < 0) & (k < end) & (excess <= low), k, stopped)
            moving = jnp.where((stopped < 0) & (k < end), eta, 0.0)
            spent = moving * sum(jnp.vdot(G, G) for G in gradients)
            return ([V - moving * G for V, G in zip(weights, gradients, strict=True)], stopped), (excess, spent)

        return lax.scan(step, carry, start + jnp.arange(DESCENT_AT_ONCE))

    return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None, None, None)))


class Many(NamedTuple):
    """The pieces of one trajectory, compiled for a batch."""

    begin: Callable[..., Tree]
    segment: Callable[..., Tree]
    excess: Callable[..., Tree]
    excess_at: Callable[..., Tree]
    states_at: Callable[..., Tree]
    ends: Callable[..., Tree]


def _finished(
    many: Many,
    solver: Tree,
    args: Tree,
    dims: Sequence[int],
    whole: tuple[np.ndarray, np.ndarray, np.ndarray],
    times: np.ndarray,
    saved: np.ndarray,
    levels: np.ndarray | None,
    t1: float,
    steps: np.ndarray,
    healthy: np.ndarray,
) -> Paths:
    """Locate the crossings of the level, and evaluate the states at the times and at the ends."""
    clock, path, energy = whole
    B, rows = len(clock), np.arange(len(clock))
    last = np.minimum(steps, clock.shape[1] - 1)
    end, final, below = clock[rows, -1].copy(), path[:, -1].copy(), np.zeros(B, bool)
    before = np.maximum(last - 1, 0)
    partial = energy[rows, last] - energy[rows, before]
    start, first = clock[rows, before], path[rows, before]
    if levels is not None:
        excess = np.asarray(many.excess(path[:, -1], dims, args))
        below = (excess <= levels) & (steps > 0)

        def above(t: np.ndarray) -> np.ndarray:
            values = np.asarray(many.excess_at(solver, first, start, t, dims, args))
            return np.log(np.maximum(values, TINY) / (levels * BELOW))

        end = np.where(below, _roots(above, start, end), end)
    states = _States(many, solver, args, dims, clock, path, before)
    if below.any():
        reached, spent = map(np.asarray, many.ends(solver, first, start, end, dims, args))
        final[below], partial[below] = reached[below], spent[below]
    member, point = np.nonzero(np.broadcast_to(times, (B, len(times))) <= end[:, None] * SAVED)
    saved[member, point] = states(member, np.minimum(times[point], clock[member, -1]))
    healthy = healthy & ((end >= t1) | below)
    nodes = np.arange(clock.shape[1])
    kept = np.zeros(1, int), nodes, nodes, path, saved
    return Paths(clock, energy, None, *kept, end, final, partial, steps, healthy, below)


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last until there are `count`: one shape, compiled once."""
    return np.concatenate([values, np.repeat(values[-1:], count - len(values), axis=0)])


@dataclass(frozen=True)
class _States:
    """The states of members at any times of their own, EVALUATED_AT_ONCE together; at the ends of steps as computed."""

    many: Many
    solver: Tree
    args: Tree
    dims: Sequence[int]
    clock: np.ndarray
    path: np.ndarray
    before: np.ndarray

    def __call__(self, member: np.ndarray, t: np.ndarray) -> np.ndarray:
        """(P, size) of members (P) at times (P)."""
        index = np.array([np.searchsorted(self.clock[k], u, side="right") - 1 for k, u in zip(member, t, strict=True)])
        found = self.path[member, index]
        inner = np.flatnonzero(self.clock[member, index] != t)
        for first in range(0, len(inner), EVALUATED_AT_ONCE):
            some = inner[first : first + EVALUATED_AT_ONCE]
            k = _padded(member[some], EVALUATED_AT_ONCE)
            place, when = _padded(index[some], EVALUATED_AT_ONCE), _padded(t[some], EVALUATED_AT_ONCE)
            begun = self.path[k, place], self.clock[k, place]
            states = self.many.states_at(self.solver, *begun, when, self.dims, _of(self.args, k))
            found[some] = np.asarray(states)[: len(some)]
        return found


def _of(args: Tree, members: np.ndarray) -> Tree:
    import jax

    return jax.tree.map(lambda part: part[members] if hasattr(part, "shape") else part, args)


def _roots(above: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where each of many falling functions crosses 0 between low and high: regula falsi, Illinois variant."""
    a, b, fa, fb, side = low.copy(), high.copy(), above(low), above(high), np.zeros(len(low))
    before = high
    for _ in range(CROSSINGS):
        with np.errstate(invalid="ignore", divide="ignore"):
            c = np.where(fa > fb, (a * fb - b * fa) / (fb - fa), b)
        fc = above(c)
        if (np.abs(c - before) <= LOCATED * high).all():
            return c
        before = c
        right = fc <= 0
        fa, fb = np.where(right & (side == 1), 0.5 * fa, fa), np.where(~right & (side == -1), 0.5 * fb, fb)
        a, fa = np.where(right, a, c), np.where(right, fa, fc)
        b, fb = np.where(right, c, b), np.where(right, fc, fb)
        side = np.where(right, 1, -1)
    return b


@cache
def _compiled_many() -> Many:
    """The compiled pieces of one trajectory, mapped over a batch."""
    import equinox as eqx

    from flowsim.network import product

    one = compiled()
    each = eqx.if_array(0)

    def excess(state: Tree, dims: Sequence[int], args: Tree) -> Tree:
        return excess_of(args[0].loss, product(unflatten(state, dims), args[1]))

    def at(solver: Tree, state: Tree, start: Tree, t: Tree, dims: Sequence[int], args: Tree) -> Tree:
        return one.shorter(solver, state, start, t, dims, args)[0]

    def excess_at(solver: Tree, state: Tree, start: Tree, t: Tree, dims: Sequence[int], args: Tree) -> Tree:
        return excess(at(solver, state, start, t, dims, args), dims, args)

    row = (None, 0, 0, 0, None, each)
    return Many(
        eqx.filter_jit(eqx.filter_vmap(one.begin, in_axes=(None, None, None, None, each, None, each))),
        eqx.filter_jit(eqx.filter_vmap(one.segment, in_axes=(None, None, each, None, each, None, each))),
        eqx.filter_jit(eqx.filter_vmap(excess, in_axes=(0, None, each))),
        eqx.filter_jit(eqx.filter_vmap(excess_at, in_axes=row)),
        eqx.filter_jit(eqx.filter_vmap(at, in_axes=row)),
        eqx.filter_jit(eqx.filter_vmap(one.shorter, in_axes=row)),
    )
