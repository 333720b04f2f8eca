"""Many members side by side in lanes: their losses, cores and surroundings, and what is told of their states.

A member's state is a column of (size, B).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

from flowsim.losses import StackedLoss
from flowsim.methods.jax_support import LossArgument, Tree
from flowsim.network import backpropagate, changed, probed_change, product
from flowsim.network.lanes import Lanes, lanes_of


class Together(NamedTuple):
    """Members with cores of the same dims: the losses, one a lane; scale (B,); start: W_l(0) in the coordinates that
    the defect and the imbalance live in, (rows, columns, B), the core in their corner; probes: of imbalance_change."""

    loss: LossArgument
    scale: Tree
    start: Sequence[Tree]
    probes: Sequence[Tree] | None


class Shape(NamedTuple):
    """Of members: dims, of their cores; halo: of the coordinates that the defect lives in; fewer: dims and halo with
    one Krylov step fewer, for what the defect would be then. halo and fewer are None where nothing is lost."""

    dims: tuple[int, ...]
    halo: tuple[int, ...] | None = None
    fewer: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def size(self) -> int:
        """The number of a core's weights."""
        return sum(rows * columns for rows, columns in pairwise(self.dims))


class LossInLanes:
    """The members' losses, on lanes of products."""

    def __init__(self, argument: LossArgument) -> None:
        self.argument, self.shape = argument, argument.loss.shape

    def gradient(self, W: Lanes) -> Lanes:
        """grad f(W)."""
        import jax

        return Lanes(jax.vmap(lambda a, P: a.loss.gradient(P), -1, -1)(self.argument, W.values))

    def excess(self, W: Lanes) -> Tree:
        """f(W) - f* (B,)."""
        import jax

        return jax.vmap(lambda a, P: a.loss.excess(P), -1)(self.argument, W.values)


class Equations:
    """Gradient flow of members' cores, and what is told of their states (size, B)."""

    def __init__(self, together: Together, dims: Sequence[int], halo: Sequence[int] | None) -> None:
        self.loss, self.scale, self.dims, self.probes = together.loss, together.scale, dims, together.probes
        self.start = [Lanes(V) for V in _cut(together.start, halo or dims)]
        self.core = [Lanes(V) for V in _cut(together.start, dims)]

    @property
    def initial(self) -> Tree:
        """The states to start from."""
        return flat(self.core)

    def gradients(self, weights: Sequence[Lanes]) -> list[Lanes]:
        """dL/dW_l."""
        return self.backpropagated(weights)[1]

    def backpropagated(self, weights: Sequence[Lanes]) -> tuple[Lanes, list[Lanes]]:
        """W and dL/dW_l."""
        return backpropagate(cast(StackedLoss, LossInLanes(self.loss)), weights, self.scale)

    def velocity(self, states: Tree) -> Tree:
        """-grad L."""
        return -flat(self.gradients(lanes_of(states, self.dims)))

    def excess(self, states: Tree) -> Tree:
        """L - f* (B,)."""
        return LossInLanes(self.loss).excess(product(lanes_of(states, self.dims), self.scale))

    def changes(self, states: Tree) -> list[Lanes]:
        """W_l - W_l(0), padded to the size of `start`."""
        now = lanes_of(states, self.dims)
        return [_padded(W - V, S.shape) for W, V, S in zip(now, self.core, self.start, strict=True)]

    def defect(self, states: Tree) -> Tree:
        """||F(lifted state) - lifted F(core's state)||_F, as CompressedNetwork.defect (B,)."""
        lifted = [V + C for V, C in zip(self.start, self.changes(states), strict=True)]
        both = zip(self.gradients(lifted), self.gradients(lanes_of(states, self.dims)), strict=True)
        return sum((G - _padded(H, G.shape)).square() for G, H in both) ** 0.5

    def drift(self, states: Tree) -> Tree:
        """||D_l - D_l(0)||_F (L-1, B)."""
        import jax.numpy as jnp

        C, V = self.changes(states), self.start
        squares = []
        for layer in range(len(V) - 1):
            pair = V[layer], C[layer], V[layer + 1], C[layer + 1]
            if self.probes is None:
                squares.append(changed(*pair).square())
            else:
                Z = Lanes(self.probes[layer][..., None])
                squares.append(probed_change(*pair, Z).square() / Z.shape[1])
        return jnp.sqrt(jnp.stack(squares))


class Defects:
    """The defect of members, and how it would be with one Krylov step fewer, along nodes."""

    def __init__(self, together: Together, shape: Shape) -> None:
        self.equations = Equations(together, shape.dims, shape.halo)
        self.exact, self.fewer = shape.halo is None, None
        if shape.fewer is not None:
            self.fewer = Equations(together, *shape.fewer)

    def at(self, states: Tree) -> tuple[Tree, Tree, Tree]:
        """The two, and how far the states are from the start (B,)."""
        moved = norm(states - self.equations.initial)
        if self.exact:
            return 0.0 * moved, 0.0 * moved, moved
        cut = states
        if self.fewer is not None:
            weights = (W.values for W in lanes_of(states, self.equations.dims))
            cut = self.fewer.defect(flat([Lanes(W) for W in _cut(list(weights), self.fewer.dims)]))
        return self.equations.defect(states), 0.0 * moved if self.fewer is None else cut, moved


def _cut(matrices: Sequence[Tree], dims: Sequence[int]) -> list[Tree]:
    """Their corners, of layers with the dims."""
    return [W[:rows, :columns] for W, (rows, columns) in zip(matrices, pairwise(dims), strict=True)]


class Told(NamedTuple):
    """L - f* (..., B), ||grad L||_F (..., B), ||D_l - D_l(0)||_F (..., L-1, B)."""

    excess: Tree
    gradient_norm: Tree
    drift: Tree


def flat(weights: Sequence[Lanes]) -> Tree:
    import jax.numpy as jnp

    return jnp.concatenate([W.values.reshape(-1, W.values.shape[-1]) for W in weights])


def _padded(block: Lanes, shape: tuple[int, int]) -> Lanes:
    """The block as the leading part of larger matrices, zero elsewhere."""
    import jax.numpy as jnp

    room = [(0, size - had) for size, had in zip(shape, block.shape, strict=True)]
    return Lanes(jnp.pad(block.values, [*room, (0, 0)]))


def norm(states: Tree) -> Tree:
    """The norms of the columns."""
    return (states * states).sum(0) ** 0.5


def with_row(all_: Tree, k: Tree, new: Tree) -> Tree:
    import jax

    return jax.tree.map(lambda old, here: old.at[k].set(here), all_, new)


class Groups:
    """A function of groups of lanes, one group after the other in one compiled call; compiled once for all threads."""

    def __init__(self, function: Callable[..., Any], grouped: int) -> None:
        import jax

        def of_groups(*arguments: Tree) -> Tree:
            shared = arguments[grouped:]
            return jax.lax.map(lambda of_one: function(*of_one, *shared), arguments[:grouped])

        self.jitted, self.known, self.lock = jax.jit(of_groups), dict[Any, Any](), threading.Lock()

    def __call__(self, *arguments: Tree) -> Tree:
        import jax

        leaves, structure = jax.tree.flatten(arguments)
        key = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        with self.lock:
            if key not in self.known:
                self.known[key] = self.jitted.lower(*arguments).compile()
        return self.known[key](*arguments)
