"""Gradient descent W_l <- W_l - eta dL/dW_l, with or without momentum: a NumPy loop, or a compiled scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.losses import Loss
from flowsim.losses.samples import Batches, Drawn
from flowsim.methods.jax_support import LossArgument, Tree, as_argument, float64
from flowsim.methods.steps import Counts, Segment
from flowsim.network import flatten, unflatten
from flowsim.problem import Problem, gradients
from flowsim.values import Array

if TYPE_CHECKING:
    from flowsim.methods.descent import GradientDescent

SEGMENT_BYTES = 2**25
"""A segment keeps the weights after each of its steps; it is as long as this many bytes allow."""
LONGEST_SEGMENT = 1024
States = Callable[[np.ndarray], np.ndarray]


def segment_length(size: int) -> int:
    """How many steps of a state of that size a segment holds."""
    return max(1, min(LONGEST_SEGMENT, SEGMENT_BYTES // (8 * size)))


def batches_of(method: GradientDescent, loss: Loss, seed: int | None = None) -> Batches:
    """What the steps are given; seed: in the place of the method's. Raises InputError where the loss has no samples."""
    own = method.seed if seed is None else seed
    return Batches(loss, method.batch_size, method.label_noise, own, method.independent_batches)


class Descent:
    """Gradient descent from (t, state), t the time of one of its steps."""

    def __init__(self, problem: Problem, method: GradientDescent, t: float, state: np.ndarray, t1: float) -> None:
        self.problem, self.method, self.clock = problem, method, method.clock
        self.first, self.done, self.steps = int(self.clock.nearest(t)), 0, self.clock.count(t, t1)
        dims, size = problem.network.dims, problem.network.size
        self.weights: Sequence[Array] = unflatten(np.array(state[:size]), dims)
        self.momentum, self.nesterov = method.momentum, method.nesterov
        self.carried: Sequence[Array] = []
        if self.momentum:
            beside = state[size:] if state.size > size else np.zeros(size)
            self.carried = unflatten(np.array(beside), dims)
        self.longest = segment_length(size + sum(V.size for V in self.carried))
        self.counts = Counts(rhs_evaluations=0, rejected_steps=0)
        self.batches: Batches | None = None
        if method.stochastic:
            self.batches = batches_of(method, problem.loss)
        _, self.gradients = self.realised(self.first, self.weights)

    @property
    def t(self) -> float:
        """The time reached."""
        return float(self.clock.times(self.first + self.done, 0)[0])

    @property
    def t1(self) -> float:
        """The time of the last step."""
        return float(self.clock.times(self.first + self.steps, 0)[0])

    def realised(self, k: int, weights: Sequence[Array]) -> tuple[Array, list[Array]]:
        """The product, and the gradients that step k takes, of its batch and with its noise; with weight decay."""
        loss = self.problem.stacked_loss if self.batches is None else self.batches.at(k).loss(self.batches.kind)
        return gradients(loss, weights, self.problem.network.scale, self.problem.weight_decay)

    def advance(self) -> Segment:
        """As many steps as a segment holds."""
        count = min(self.longest, self.steps - self.done)
        first = self.first + self.done
        products, dissipated, states = self._descend(first, self.clock.sizes(first, count))
        self.done += count
        self.counts.rhs_evaluations = self.done
        times = self.clock.times(first, count)
        return Segment(times, products, dissipated, _Polygon(times, states), discrete=True)

    def _descend(self, first: int, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, States]:
        """(products, dissipated, states) of the steps from number `first` on: states(k) are those after the numbers k
        of them, 0 .. count."""
        weights, carried, found = self.weights, self.carried, self.gradients
        path, products, dissipated = [[*weights, *carried]], [], []
        with np.errstate(over="ignore", invalid="ignore"):
            for k, eta in enumerate(sizes.tolist(), first + 1):
                dissipated.append(eta * sum(np.vdot(G, G) for G in found))
                carried, steps = _steps(carried, found, self.momentum, self.nesterov)
                weights = [W - eta * step for W, step in zip(weights, steps, strict=True)]
                P, found = self.realised(k, weights)
                products.append(P)
                path.append([*weights, *carried])
        self.weights, self.carried, self.gradients = weights, carried, found
        return np.array(products), np.array(dissipated), lambda steps: np.array([flatten(path[k]) for k in steps])


def _steps(carried: Tree, gradients: Tree, momentum: float, nesterov: bool) -> tuple[Tree, Tree]:
    """(V, what the weights go by over eta): V <- mu V + G, and V, or G + mu V with nesterov; G without momentum."""
    if not len(carried):
        return carried, gradients
    carried = [momentum * V + G for V, G in zip(carried, gradients, strict=True)]
    ahead = [G + momentum * V for V, G in zip(carried, gradients, strict=True)]
    return carried, ahead if nesterov else carried


class CompiledDescent(Descent):
    """The same steps by a jitted jax.lax.scan in float64."""

    def _descend(self, first: int, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, States]:
        before, count = flatten([np.asarray(W) for W in (*self.weights, *self.carried)]), len(sizes)
        etas = np.zeros(self.longest)
        etas[:count] = sizes  # a step of size 0 changes nothing: one compiled length serves every remainder
        problem, decay = self.problem, self.problem.weight_decay
        loss, scale = as_argument(problem.stacked_loss), problem.network.scale
        mus = np.where(etas > 0, self.momentum, 1.0)  # and keeps the momentum
        arguments = loss, list(self.weights), list(self.carried), list(self.gradients), scale, np.array(decay)
        with float64():
            scan = _compiled_scan(self.nesterov, decay > 0, None if self.batches is None else self.batches.kind)
            steps = etas, mus, self._drawn(first + 1, count)
            (self.weights, self.carried, self.gradients), record = scan(*arguments, steps)
            layers, products, dissipated = ([np.asarray(x) for x in record[0]], *map(np.asarray, record[1:]))

        def states(steps: np.ndarray) -> np.ndarray:
            picked = np.concatenate([layer[steps - 1].reshape(len(steps), -1) for layer in layers], axis=1)
            picked[steps == 0] = before
            return picked

        return products[:count], dissipated[:count], states

    def _drawn(self, first: int, count: int) -> Tree:
        """The batches of steps first, first + 1, ..., stacked; those beyond `count` are never used."""
        if self.batches is None:
            return ()
        drawn = [self.batches.at(k) for k in range(first, first + count)]
        parts = {name: np.stack([one.parts[name] for one in drawn]) for name in drawn[0].parts}
        found = Drawn(parts, np.stack([one.factor for one in drawn]))
        rest = self.longest - count
        if not rest:
            return found
        repeated = {name: np.concatenate([x, np.repeat(x[-1:], rest, axis=0)]) for name, x in found.parts.items()}
        return Drawn(repeated, np.append(found.factor, np.repeat(found.factor[-1:], rest)))


@cache
def _compiled_scan(nesterov: bool, decays: bool, kind: Any) -> Callable[..., Tree]:
    """The steps of a segment; kind: of the losses of batches, None where each step has the whole loss."""
    import jax
    import jax.numpy as jnp

    def scan(
        argument: LossArgument, weights: Tree, carried: Tree, found: Tree, scale: Tree, decay: Tree, steps: Tree
    ) -> Tree:
        def step(carry: Tree, now: Tree) -> Tree:
            weights, carried, found = carry
            eta, mu, drawn = now
            loss = argument.loss if kind is None else drawn.loss(kind)
            dissipated = eta * sum(jnp.vdot(G, G) for G in found)
            given = [jnp.where(eta > 0, G, 0.0) for G in found] if carried else found
            carried, ahead = _steps(carried, given, mu, nesterov)
            weights = [W - eta * V for W, V in zip(weights, ahead, strict=True)]
            P, following = gradients(loss, weights, scale, decay if decays else 0.0)
            found = [jnp.where(eta > 0, new, old) for new, old in zip(following, found, strict=True)]
            return (weights, carried, found), ([*weights, *carried], P, dissipated)

        return jax.lax.scan(step, (weights, carried, found), steps)

    return jax.jit(scan)


class _Polygon:
    """The weights at any t: straight lines between the steps."""

    def __init__(self, times: np.ndarray, states: States) -> None:
        self.times, self.states = times, states

    def __call__(self, t: np.ndarray) -> np.ndarray:
        left = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 2)
        share = ((t - self.times[left]) / (self.times[left + 1] - self.times[left]))[:, None]
        near = self.states(left + (share[:, 0] == 1.0))
        inside = np.flatnonzero((share > 0) & (share < 1))
        near[inside] += share[inside] * (self.states(left[inside] + 1) - near[inside]) if len(inside) else 0.0
        return near
