"""Many networks of one shape at once: diffrax's solvers under vmap, and gradient descent as one scan over a stack.

Every member has its own steps and its own end; what happens to one does not touch the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from flowsim.integrators.diffrax_steps import compiled, controller_of, solver_of
from flowsim.integrators.jax_support import as_argument, float64
from flowsim.losses import excess as excess_of
from flowsim.methods import Diffrax, GradientDescent
from flowsim.network import backpropagate, flatten, unflatten

STEPS_AT_ONCE = 32
CROSSINGS = 12
"""At most so many iterations locate where a member's loss crosses its level, within one step."""
EVALUATED_AT_ONCE = 256
PATH_BYTES = 2**29
"""The states after all steps of a batch take at most about this much memory."""
NODES = 32
"""Gradient descent records its states on so many intervals besides the saved ones, for its compression error."""
TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Paths:
    """What B members did.

    time (B, K): 0 and the ends of their steps (of descent some of them), of which the first `nodes` (B) are a member's
    own and the others repeat its last; state (B, K, size);
    dissipated (B, K): the integral of ||grad L||_F^2 up to then; saved (B, S, size): the states at the times asked for,
    NaN beyond a member's end; end (B); steps (B), accepted; healthy (B): no step was refused for good; below (B):
    whether the level of the loss was reached, at `end`.
    """

    time: np.ndarray
    nodes: np.ndarray
    state: np.ndarray
    dissipated: np.ndarray
    saved: np.ndarray
    end: np.ndarray
    steps: np.ndarray
    healthy: np.ndarray
    below: np.ndarray


def flow(
    losses: Sequence[Any],
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
        args = stacked, jnp.asarray(scales, float)
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
        return _finished(many, solver, args, dims, whole, times, saved, levels, t1, steps, healthy & (steps <= limit))


def descent(
    losses: Sequence[Any],
    scales: np.ndarray,
    dims: Sequence[int],
    states: np.ndarray,
    method: GradientDescent,
    times: np.ndarray,
    levels: np.ndarray | None,
    most_steps: int,
) -> Paths:
    """Gradient descent from states (B, size) to times[-1], or to the first step with L - f* <= levels (B), as one loop
    over the stack. times: whole steps, 0 first; recorded are these and NODES more, evenly."""
    import jax
    import jax.numpy as jnp

    eta, B = method.step_size, len(states)
    wanted = np.round(times / eta).astype(int)
    count = min(int(wanted[-1]), most_steps)
    nodes = np.union1d(wanted[wanted <= count], np.linspace(0, count, NODES + 1).astype(int))
    with float64():
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *map(as_argument, losses))
        arguments = stacked, jnp.asarray(scales, float)
        low = jnp.asarray(np.full(B, -np.inf) if levels is None else levels)
        carry = [jnp.asarray(W) for W in unflatten(states, dims)], jnp.zeros(B), jnp.full(B, -1)
        path, spent = [states], [np.zeros(B)]
        for start, end in pairwise(nodes):
            carry = _compiled_descent()(arguments, carry, low, eta, start, end)
            path.append(flatten([np.asarray(W) for W in carry[0]]))
            spent.append(np.asarray(carry[1]))
        final = np.asarray(_compiled_many().excess(path[-1], tuple(dims), arguments))
    stopped = np.asarray(carry[2])
    stopped = np.where((stopped < 0) & (final <= np.asarray(low)), count, stopped)
    below = stopped >= 0
    steps = np.where(below, stopped, count)
    state = np.stack(path, axis=1)
    saved = np.full((B, len(times), states.shape[1]), np.nan)
    held = np.searchsorted(nodes, wanted[wanted <= count])
    saved[:, : len(held)] = np.where((wanted[: len(held)] <= steps[:, None])[..., None], state[:, held], np.nan)
    healthy = np.isfinite(final) & (below | (count == wanted[-1]))
    own = np.minimum((nodes <= steps[:, None]).sum(1) + (~np.isin(steps, nodes)), len(nodes))
    time = eta * np.minimum(nodes, steps[:, None])
    return Paths(time, own, state, np.stack(spent, axis=1), saved, eta * steps, steps, healthy, below)


@cache
def _compiled_descent() -> Any:
    """From step `start` to step `end` of every member; one that has reached its level stays where it is."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def one(args: Any, carry: Any, low: Any, eta: Any, start: Any, end: Any) -> Any:
        loss, scale = args[0].loss, args[1]

        def step(k: Any, carry: Any) -> Any:
            weights, spent, stopped = carry
            W, gradients = backpropagate(loss, weights, scale)
            stopped = jnp.where((stopped < 0) & (excess_of(loss, W) <= low), k, stopped)
            moving = jnp.where(stopped < 0, eta, 0.0)
            spent += moving * sum(jnp.vdot(G, G) for G in gradients)
            return [V - moving * G for V, G in zip(weights, gradients, strict=True)], spent, stopped

        return lax.fori_loop(start, end, step, carry)

    return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None, None, None)))


def _finished(
    many: Any,
    solver: Any,
    args: Any,
    dims: Sequence[int],
    whole: tuple[np.ndarray, np.ndarray, np.ndarray],
    times: np.ndarray,
    saved: np.ndarray,
    levels: np.ndarray | None,
    t1: float,
    steps: np.ndarray,
    healthy: np.ndarray,
) -> Paths:
    """Locate the crossings of the level, and evaluate the states at the times."""
    import jax

    clock, path, energy = whole
    B, rows = len(clock), np.arange(len(clock))
    last = np.minimum(steps, clock.shape[1] - 1)
    end, below = clock[rows, -1].copy(), np.zeros(B, bool)
    before = np.maximum(last - 1, 0)
    if levels is not None:
        excess = np.asarray(many.excess(path[:, -1], dims, args))
        below = (excess <= levels) & (steps > 0)
        first = path[rows, before], clock[rows, before]

        def above(t: np.ndarray) -> np.ndarray:
            values = np.asarray(many.excess_at(solver, *first, t, dims, args))
            return np.log(np.maximum(values, TINY) / levels)

        end = np.where(below, _roots(above, first[1], end), end)
    where = np.broadcast_to(times, (B, len(times)))
    inside = where <= end[:, None] * (1 + 1e-12)
    member, point = np.nonzero(inside)
    for start in range(0, len(member), EVALUATED_AT_ONCE):
        k, t = member[start : start + EVALUATED_AT_ONCE], times[point[start : start + EVALUATED_AT_ONCE]]
        index = np.minimum((clock[k] <= t[:, None]).sum(1) - 1, before[k])
        filled = np.pad(np.stack([k, index]), ((0, 0), (0, EVALUATED_AT_ONCE - len(k))), "edge")
        late = np.pad(t, (0, EVALUATED_AT_ONCE - len(t)), "edge")
        theirs = jax.tree.map(lambda part, chosen=filled[0]: part[chosen], args)
        found = many.states_at(solver, path[filled[0], filled[1]], clock[filled[0], filled[1]], late, dims, theirs)
        saved[k, point[start : start + EVALUATED_AT_ONCE]] = np.asarray(found)[: len(k)]
    return Paths(clock, steps + 1, path, energy, saved, end, steps, healthy & ((end >= t1) | below), below)


def _roots(above: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where each of many falling functions crosses 0 between low and high: regula falsi, Illinois variant."""
    a, b, fa, fb, side = low.copy(), high.copy(), above(low), above(high), np.zeros(len(low))
    for _ in range(CROSSINGS):
        with np.errstate(invalid="ignore", divide="ignore"):
            c = np.where(fa > fb, (a * fb - b * fa) / (fb - fa), b)
        fc = above(c)
        if np.abs(c - np.where(fc > 0, a, b)).max() <= 1e-13 * np.abs(high).max():
            return c
        right = fc <= 0
        fa, fb = np.where(right & (side == 1), 0.5 * fa, fa), np.where(~right & (side == -1), 0.5 * fb, fb)
        a, fa = np.where(right, a, c), np.where(right, fa, fc)
        b, fb = np.where(right, c, b), np.where(right, fc, fb)
        side = np.where(right, 1, -1)
    return b


@cache
def _compiled_many() -> Any:
    """The compiled pieces of one trajectory, mapped over a batch."""
    from typing import NamedTuple

    import equinox as eqx

    from flowsim.network import product

    one = compiled()
    each = eqx.if_array(0)

    class Many(NamedTuple):
        begin: Any
        segment: Any
        excess: Any
        excess_at: Any
        states_at: Any

    def excess(state: Any, dims: Any, args: Any) -> Any:
        return excess_of(args[0].loss, product(unflatten(state, dims), args[1]))

    def at(solver: Any, state: Any, start: Any, t: Any, dims: Any, args: Any) -> Any:
        return one.shorter(solver, state, start, t, dims, args)

    def excess_at(solver: Any, state: Any, start: Any, t: Any, dims: Any, args: Any) -> Any:
        return excess(at(solver, state, start, t, dims, args), dims, args)

    row = (None, 0, 0, 0, None, each)
    return Many(
        eqx.filter_jit(eqx.filter_vmap(one.begin, in_axes=(None, None, None, None, each, None, each))),
        eqx.filter_jit(eqx.filter_vmap(one.segment, in_axes=(None, None, each, None, each, None, each))),
        eqx.filter_jit(eqx.filter_vmap(excess, in_axes=(0, None, each))),
        eqx.filter_jit(eqx.filter_vmap(excess_at, in_axes=row)),
        eqx.filter_jit(eqx.filter_vmap(at, in_axes=row)),
    )
