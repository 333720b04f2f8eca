"""Gradient descent of many members in one compiled loop."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

from flowsim.methods.jax_support import Tree
from flowsim.network.lanes import lanes_of
from flowsim.runs.together import Defects, Equations, Groups, LossInLanes, Shape, Together, Told, flat, norm, with_row


class Descended(NamedTuple):
    """What descent did: excess, spent (K+1, B): L - f* before each step and at the end, and what each dissipated; at
    the nodes (N, ...) the defect, how far the weights are, and what is saved; steps (B,): taken, -1 without a stop;
    final (size, B)."""

    excess: Tree
    spent: Tree
    defect: Tree
    moved: Tree
    saved: Told
    stopped: Tree
    final: Tree


def _descend(
    together: Together,
    alive: Tree,
    nodes: Tree,
    low: Tree | None,
    eta: Tree,
    *,
    shape: Shape,
    longest: int,
) -> Descended:
    """Steps 0 .. nodes[-1] of the members, told at the nodes; one with L - f* <= low (L(0) - f*) stays where it is."""
    import jax.numpy as jnp
    from jax import lax

    equations, defects = Equations(together, shape.dims, shape.halo), Defects(together, shape)
    y, first = equations.initial, equations.excess(equations.initial)
    level = jnp.full_like(first, -jnp.inf) if low is None else low * first

    def step(k: Tree, carry: Tree) -> Tree:
        y, stopped, excess, spent = carry
        W, gradients = equations.backpropagated(lanes_of(y, shape.dims))
        gradient, now = flat(gradients), LossInLanes(together.loss).excess(W)
        stopped = jnp.where((stopped < 0) & (now <= level), k, stopped)
        moving = jnp.where(stopped < 0, eta, 0.0)
        spent = spent.at[k + 1].set(moving * (gradient * gradient).sum(0))
        return y - moving * gradient, stopped, excess.at[k].set(now), spent

    def to_node(i: Tree, carry: Tree) -> Tree:
        walking, told = carry
        walking = lax.fori_loop(nodes[jnp.maximum(i - 1, 0)], nodes[i], step, walking)
        y = walking[0]
        defect, _, moved = defects.at(y)
        here = defect, moved, Told(equations.excess(y), norm(equations.velocity(y)), equations.drift(y))
        return walking, with_row(told, i, here)

    none, column = jnp.zeros((longest + 1, len(alive))), jnp.zeros((len(nodes), len(alive)))
    drift = jnp.zeros((len(nodes), len(shape.dims) - 2, len(alive)))
    begun = y, jnp.full(len(alive), -1), none, none
    told = column, column, Told(column, column, drift)
    walking, (defect, moved, saved) = lax.fori_loop(0, jnp.where(alive.any(), len(nodes), 0), to_node, (begun, told))
    y, stopped, excess, spent = walking
    now = equations.excess(y)
    stopped = jnp.where((stopped < 0) & (now <= level), nodes[-1], stopped)
    excess = jnp.where(jnp.arange(longest + 1)[:, None] >= nodes[-1], now, excess)
    return Descended(excess, spent, defect, moved, saved, stopped, y)


@cache
def descending(shape: Shape, longest: int) -> Groups:
    """_descend for groups: arguments members and alive are grouped."""
    return Groups(partial(_descend, shape=shape, longest=longest), 2)
