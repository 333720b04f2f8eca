"""A problem under a dynamics, as one ordinary differential equation dy/dt = F(t, y): what methods integrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from flowsim.dynamics.base import Dynamics, LawResiduals
from flowsim.dynamics.flows import GradientFlow
from flowsim.errors import InputError, NumericalFailure
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
        """Refuse a dynamics of one's own whose velocity at the start is not what it has to be. Raises InputError."""
        if self.dynamics.built_in:
            return
        name, state = self.dynamics.name, self.split(self.initial_state)
        self.remaining(0.0)
        try:
            found = [np.asarray(V) for V in self.dynamics.velocity(self.problem, np.zeros(()), state)]
        except Exception as error:
            raise InputError(
                f"Argument `dynamics` must have a velocity at the start, but that of {name} raised"
                f" {type(error).__name__}: {error}"
            ) from error
        shapes, wanted = [V.shape for V in found], [W.shape for W in state]
        if shapes != wanted or any(V.dtype.kind not in "fiu" for V in found):
            kinds = ", ".join(sorted({str(V.dtype) for V in found}))
            raise InputError(
                f"Argument `dynamics` must return a real array for each of the state's, of shapes {wanted}, but the"
                f" velocity of {name} has shapes {shapes} ({kinds})."
            )
        if not all(np.isfinite(V).all() for V in found):
            raise InputError(f"Argument `dynamics` must have a finite velocity at the start, but {name} has not.")

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
        return np.asarray(flatten(self.dynamics.velocity(self.problem, np.asarray(t), self.split(states))))

    def jacobian_product(self, t: float, state: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The derivative of F at (t, y) along directions (..., size), by differences where the dynamics does not tell.

        Raises NumericalFailure where it is not finite.
        """
        found = self.dynamics.jacobian_product(self.problem, t, self.split(state), self.split(directions))
        result = self._difference(t, state, directions) if found is None else np.asarray(flatten(found))
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
        b = self.dynamics.power(np.asarray(t))
        moved = slopes[..., : self.size]
        return np.zeros(slopes.shape[:-1]) if b is None else b * np.einsum("...i,...i->...", moved, moved)

    def stored(self, t: np.ndarray, states: np.ndarray) -> np.ndarray:
        """(K): the energy beyond L - f* at states (K, size) at the times t (K): weight decay's, and the dynamics'."""
        weights = states[:, : self.size]
        decay = 0.5 * self.problem.weight_decay * np.einsum("ki,ki->k", weights, weights)
        return decay + self.dynamics.stored(self.problem, t, self.split(states))

    def remaining(self, t: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, q') at the times: what is left of weights that the loss does not reach, and how fast that changes."""
        return self.dynamics.remaining(self.problem.weight_decay, np.asarray(t, float))

    def residuals(self, t: float, state: np.ndarray) -> LawResiduals:
        """Dynamics.residuals at a state."""
        return self.dynamics.residuals(self.problem, t, self.split(state), self.split(self.initial_state))

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
