"""A problem under a dynamics, as one ordinary differential equation dy/dt = F(t, y): what methods integrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from flowsim.dynamics.base import Dynamics, LawResiduals
from flowsim.dynamics.flows import GradientFlow
from flowsim.errors import FlowsimError, InputError, NumericalFailure
from flowsim.network import flatten, unflatten
from flowsim.problem import Problem
from flowsim.values import Array

DIFFERENCE = float(np.finfo(float).eps) ** (1 / 3)
"""Of the size of a state: the step of central differences, of least error."""


class Motion:
    """dy/dt = F(t, y) of a problem's weights, y all weights as one vector, and behind them their velocities if any.

    Where the problem is that of a compressed network's core, y is the core's.
    """

    def __init__(self, problem: Problem, dynamics: Dynamics | None = None) -> None:
        self.problem = problem
        self.dynamics = GradientFlow() if dynamics is None else dynamics

    def check(self) -> None:
        """Refuse a dynamics of one's own whose answers at the start are not what they have to be. Raises InputError."""
        if self.dynamics.built_in:
            return
        state = self.initial_state
        try:
            found = self.velocity(0.0, state)
            self.power(0.0, found)
            self.stored(np.zeros(1), state[None])
            self.residuals(0.0, state)
        except NumericalFailure as failure:
            raise InputError(f"Argument `dynamics` must answer for the weights at the start: {failure}") from failure
        self.remaining(0.0)
        if not np.isfinite(found).all():
            raise InputError(f"Argument `dynamics` must be finite at the start, but {self.dynamics.name} is not.")

    def _ask(self, what: str, *arguments: Any) -> Any:
        """A function of the dynamics. Raises NumericalFailure where one of one's own raises an exception."""
        function = getattr(self.dynamics, what)
        if self.dynamics.built_in:
            return function(*arguments)
        try:
            return function(*arguments)
        except FlowsimError:
            raise
        except Exception as error:
            raise NumericalFailure(
                f"The {what} of {self.dynamics.name} raised {type(error).__name__}: {error}"
            ) from error

    def _joined(self, found: Any, state: Sequence[np.ndarray]) -> np.ndarray:
        """The arrays for those of a state as one vector. Raises NumericalFailure where they are of other shapes."""
        if not self.dynamics.built_in:
            shapes = [np.shape(V) for V in found] if isinstance(found, (list, tuple)) else type(found).__name__
            kinds = {np.asarray(V).dtype.kind for V in found} if isinstance(shapes, list) else set()
            if shapes != [V.shape for V in state] or not kinds <= set("fiu"):
                raise NumericalFailure(
                    f"The velocity of {self.dynamics.name} must be a list of real arrays of the shapes"
                    f" {[V.shape for V in state]}, as the state is, but it has {shapes}, dtypes {sorted(kinds)}."
                )
        return np.asarray(flatten([np.asarray(V, float) for V in found]))

    @property
    def size(self) -> int:
        """The number of weights, without velocities."""
        return self.problem.network.size

    @cached_property
    def initial_state(self) -> np.ndarray:
        """y at t = 0: from rest."""
        weights = self.problem.initial_state
        return np.concatenate([weights, np.zeros_like(weights)]) if self.dynamics.second_order else weights

    @property
    def is_plain(self) -> bool:
        """Whether it is gradient flow without weight decay: what the theorems are on."""
        return isinstance(self.dynamics, GradientFlow) and not self.problem.weight_decay

    @property
    def structure(self) -> str:
        """Dynamics.structure."""
        return self.dynamics.structure

    @property
    def autonomous(self) -> bool:
        """Whether F does not depend on t, as far as is known."""
        return self.structure == "gradient"

    @property
    def has_energy(self) -> bool:
        """Whether the dynamics knows of an energy and how it falls."""
        return self._ask("power", np.zeros(())) is not None

    @property
    def stores(self) -> bool:
        """Whether there is energy beyond L - f*."""
        return not self.is_plain

    def split(self, states: np.ndarray) -> list[np.ndarray]:
        """[W_1, ..., W_L] and the velocities behind them, as views; of a stack of states, stacks."""
        return split(states, self.problem.network.dims)

    def velocity(self, t: float | np.ndarray, states: np.ndarray) -> np.ndarray:
        """F(t, y) at a state (size), or at a stack (..., size), t one number or an array (...)."""
        if self.is_plain:
            return self.problem.velocity(states)
        state = self.split(states)
        return self._joined(self._ask("velocity", self.problem, np.asarray(t), state), state)

    def jacobian_product(self, t: float, state: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The derivative of F at (t, y) along directions (..., size), by differences where the dynamics does not tell.

        Raises NumericalFailure where it is not finite.
        """
        along = self.split(directions)
        found = self._ask("jacobian_product", self.problem, t, self.split(state), along)
        result = self._difference(t, state, directions) if found is None else self._joined(found, along)
        if not np.isfinite(result).all():
            raise NumericalFailure("The Hessian of the loss is not finite at a state that the method came to.")
        return result

    def jacobian(self, t: float, state: np.ndarray) -> np.ndarray:
        """dF/dy as a matrix."""
        return self.jacobian_product(t, state, np.eye(state.size)).T

    def _difference(self, t: float, state: np.ndarray, directions: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(directions, axis=-1, keepdims=True)
        h = DIFFERENCE * (np.linalg.norm(state) or 1.0) / np.where(length > 0, length, 1.0)
        ahead, behind = (self.velocity(t, state + sign * h * directions) for sign in (1, -1))
        return (ahead - behind) / (2 * h)

    def products(self, states: np.ndarray) -> np.ndarray:
        """W of a state, or of a stack of states."""
        return self.problem.products(states[..., : self.size])

    def power(self, t: float | np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """What the energy falls by, b(t) ||dW/dt||_F^2, from F (..., size) at the times t (...); 0 where not known."""
        b = self._ask("power", np.asarray(t))
        moved = slopes[..., : self.size]
        return np.zeros(slopes.shape[:-1]) if b is None else b * np.einsum("...i,...i->...", moved, moved)

    def stored(self, t: np.ndarray, states: np.ndarray) -> np.ndarray:
        """(K): the energy beyond L - f* at states (K, size) at the times t (K): weight decay's, and the dynamics'."""
        weights = states[:, : self.size]
        decay = 0.5 * self.problem.weight_decay * np.einsum("ki,ki->k", weights, weights)
        return np.asarray(decay + self._ask("stored", self.problem, t, self.split(states)))

    def remaining(self, t: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, q') at the times: what is left of weights that the loss does not reach, and how fast that changes."""
        q, slope = self._ask("remaining", self.problem.weight_decay, np.asarray(t, float))
        return q, slope

    def residuals(self, t: float, state: np.ndarray) -> LawResiduals:
        """Dynamics.residuals at a state."""
        found: LawResiduals = self._ask("residuals", self.problem, t, self.split(state), self.split(self.initial_state))
        return found

    def radius(
        self, t: float, state: np.ndarray, spectral_norm: Callable[[Callable[[np.ndarray], np.ndarray], int], float]
    ) -> float:
        """About the greatest |eigenvalue| of dF/dy, of those of -Hess by `spectral_norm`(product, size)."""
        if self.structure == "inertial":
            hessian = spectral_norm(lambda v: self.problem.jacobian_product(state[: self.size], v), self.size)
            return float(np.sqrt(hessian) + self.dynamics.damping(np.asarray(t)))
        return spectral_norm(lambda v: self.jacobian_product(t, state, v), state.size)


def split(states: Array, dims: Sequence[int]) -> list[Array]:
    """Weights and, behind them, velocities of layers of these sizes, of one vector or of a stack of vectors."""
    size = sum(rows * columns for rows, columns in pairwise(dims))
    parts = [states[..., start : start + size] for start in range(0, states.shape[-1], size)]
    return [W for part in parts for W in unflatten(part, dims)]


def as_motion(motion: Motion | Problem) -> Motion:
    """The motion; of a problem its gradient flow."""
    return motion if isinstance(motion, Motion) else Motion(motion)
