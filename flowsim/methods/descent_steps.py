"""Gradient descent W_l <- W_l - eta dL/dW_l, with or without momentum: a NumPy loop, or a compiled scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from flowsim.errors import InputError
from flowsim.methods.jax_support import LossArgument, Tree, as_argument, float64
from flowsim.methods.steps import Counts, Segment
from flowsim.network import backpropagate, flatten, unflatten
from flowsim.problem import Problem
from flowsim.values import Array

if TYPE_CHECKING:
    from flowsim.methods.descent import GradientDescent

SEGMENT_BYTES = 2**25
"""A segment keeps the weights after each of its steps; it is as long as this many bytes allow."""
LONGEST_SEGMENT = 1024
MOST_STEPS = 2**53
"""Beyond, the times of successive steps are no longer told apart."""

States = Callable[[np.ndarray], np.ndarray]


def count_steps(step_size: float, span: float) -> int:
    """round(span / step_size), at least one. Raises InputError when the span is shorter than half a step."""
    ratio = span / step_size
    if ratio > MOST_STEPS:
        raise InputError(
            f"Argument `step_size` must be at least t1 / {MOST_STEPS:.3g}, but it is {step_size:g}; raise it."
        )
    steps = round(ratio)
    if steps < 1:
        raise InputError(
            f"Argument `t1` must be at least one step of {step_size:g}, but it is {span:g}; lower step_size."
        )
    return steps


def segment_length(size: int) -> int:
    """How many steps of a state of that size a segment holds."""
    return max(1, min(LONGEST_SEGMENT, SEGMENT_BYTES // (8 * size)))


class Descent:
    """Gradient descent from (t, state), t a whole number of steps; after k steps in all the time is k step_size."""

    def __init__(self, problem: Problem, method: GradientDescent, t: float, state: np.ndarray, t1: float) -> None:
        self.problem, self.step_size = problem, method.step_size
        self.first, self.done, self.steps = round(t / method.step_size), 0, count_steps(method.step_size, t1 - t)
        dims, size = problem.network.dims, problem.network.size
        self.weights: Sequence[Array] = unflatten(np.array(state[:size]), dims)
        self.momentum, self.nesterov = method.momentum, method.nesterov
        self.carried: Sequence[Array] = []
        if self.momentum:
            beside = state[size:] if state.size > size else np.zeros(size)
            self.carried = unflatten(np.array(beside), dims)
        self.longest = segment_length(size + sum(V.size for V in self.carried))
        self.counts = Counts(rhs_evaluations=0, rejected_steps=0)
        _, self.gradients = problem.gradients(list(self.weights))

    @property
    def t(self) -> float:
        """The time reached."""
        return (self.first + self.done) * self.step_size

    @property
    def t1(self) -> float:
        """The time of the last step."""
        return (self.first + self.steps) * self.step_size

    def advance(self) -> Segment:
        """As many steps as a segment holds."""
        count = min(self.longest, self.steps - self.done)
        first = self.first + self.done
        products, dissipated, states = self._descend(count)
        self.done += count
        self.counts.rhs_evaluations = self.done
        times = self.step_size * np.arange(first, first + count + 1)
        return Segment(times, products, dissipated, _Polygon(times, states), discrete=True)

    def _descend(self, count: int) -> tuple[np.ndarray, np.ndarray, States]:
        """(products, dissipated, states): states(k) are those after the numbers k of steps, 0 .. count."""
        problem, eta = self.problem, self.step_size
        weights, carried, gradients = self.weights, self.carried, self.gradients
        path, products, dissipated = [[*weights, *carried]], [], []
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(count):
                dissipated.append(eta * sum(np.vdot(G, G) for G in gradients))
                carried, steps = _steps(carried, gradients, self.momentum, self.nesterov)
                weights = [W - eta * step for W, step in zip(weights, steps, strict=True)]
                P, gradients = backpropagate(problem.stacked_loss, weights, problem.network.scale)
                products.append(P)
                path.append([*weights, *carried])
        self.weights, self.carried, self.gradients = weights, carried, gradients
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

    def _descend(self, count: int) -> tuple[np.ndarray, np.ndarray, States]:
        before = flatten([np.asarray(W) for W in (*self.weights, *self.carried)])
        etas = np.zeros(self.longest)
        etas[:count] = self.step_size  # a step of size 0 changes nothing: one compiled length serves every remainder
        loss, scale = as_argument(self.problem.stacked_loss), self.problem.network.scale
        mus = np.where(etas > 0, self.momentum, 1.0)  # and keeps the momentum
        arguments = loss, list(self.weights), list(self.carried), list(self.gradients), scale
        with float64():
            scan = _compiled_scan(self.nesterov)
            (self.weights, self.carried, self.gradients), record = scan(*arguments, (etas, mus))
            layers, products, dissipated = ([np.asarray(x) for x in record[0]], *map(np.asarray, record[1:]))

        def states(steps: np.ndarray) -> np.ndarray:
            picked = np.concatenate([layer[steps - 1].reshape(len(steps), -1) for layer in layers], axis=1)
            picked[steps == 0] = before
            return picked

        return products[:count], dissipated[:count], states


@cache
def _compiled_scan(nesterov: bool) -> Callable[..., Tree]:
    import jax
    import jax.numpy as jnp

    def scan(argument: LossArgument, weights: Tree, carried: Tree, gradients: Tree, scale: Tree, steps: Tree) -> Tree:
        def step(carry: Tree, now: Tree) -> Tree:
            weights, carried, gradients = carry
            eta, mu = now
            dissipated = eta * sum(jnp.vdot(G, G) for G in gradients)
            given = [jnp.where(eta > 0, G, 0.0) for G in gradients] if carried else gradients
            carried, ahead = _steps(carried, given, mu, nesterov)
            weights = [W - eta * V for W, V in zip(weights, ahead, strict=True)]
            P, gradients = backpropagate(argument.loss, weights, scale)
            return (weights, carried, gradients), ([*weights, *carried], P, dissipated)

        return jax.lax.scan(step, (weights, carried, gradients), steps)

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
