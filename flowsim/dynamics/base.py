"""What every dynamics is: a frozen value that gives the velocity of a state, and the laws that its runs obey."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from flowsim.errors import InputError
from flowsim.families import Family
from flowsim.values import Array

LawResiduals = dict[tuple[str, str], float]
"""(name of a law, its equation) -> by how much a state fails it."""


class Equation(Protocol):
    """What a dynamics may ask of a problem; arrays are NumPy's, or jax's within compiled methods."""

    @property
    def weight_decay(self) -> Any:
        """x of the objective L + x/2 sum_l ||W_l||_F^2."""
        ...

    def gradients(self, weights: Sequence[Array]) -> tuple[Array, list[Array]]:
        """The product W, and the gradients of the objective in W_1, ..., W_L."""
        ...

    def hessian_product(self, weights: Sequence[Array], directions: Sequence[Array]) -> list[Array]:
        """The derivative of the gradients along the directions."""
        ...


class Dynamics(Family):
    """d(state)/dt = velocity(problem, t, state): subclasses are frozen dataclasses of settings that JSON can hold.

    A state is a list of arrays: W_1, ..., W_L, and with `second_order` behind them V_1, ..., V_L, their velocities,
    which are 0 at t = 0. A subclass needs `velocity` alone. Whatever it does not declare is not taken for granted:
    without `power` the energy is not judged, without `compressible` the full weights are integrated, and methods that
    rest on the Jacobian of a flow refuse it. What it answers at the start is looked at before the first step
    (InputError); where it raises later, or answers with other shapes, the run ends as "diverged".

    A step size that fades as 1/t, by any method with error control:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import flowsim as fs
    >>> @dataclass(frozen=True)
    ... class Scheduled(fs.Dynamics):  # dW_l/dt = -dL/dW_l / (1 + rate t)
    ...     rate: float
    ...     def velocity(self, problem, t, state):
    ...         _, gradients = problem.gradients(state)
    ...         return [-G / (1 + self.rate * t) for G in gradients]
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    >>> slow = fs.simulate(problem, t1=np.e**2 - 1, dynamics=Scheduled(1.0))
    >>> plain = fs.simulate(problem, t1=2.0)  # the same path: its clock is log(1 + t)
    >>> np.isclose(slow.loss[-1], plain.loss[-1], rtol=1e-6).item()
    True
    """

    second_order: ClassVar[bool] = False
    """Whether states have velocities behind the weights."""
    structure: ClassVar[Literal["gradient", "inertial", "general"]] = "general"
    """gradient: dW/dt = -grad J(W) of some J, with a symmetric Jacobian; inertial: W'' = -grad J(W) - b(t) W'; general:
    anything. Methods that are made for one of the first two refuse the others."""
    compressible: ClassVar[bool] = False
    """Whether it commutes with orthogonal changes of the hidden bases and moves W_l by sums of A_l^T (.) B_l^T alone,
    what `remaining` tells apart: then the width can be compressed. Elementwise changes of gradients do not."""
    keeps_imbalance: ClassVar[bool] = False
    """Whether D_l(t) = q(t)^2 D_l(0), q = remaining: gradient flow."""

    @abstractmethod
    def velocity(self, problem: Equation, t: Array, state: Sequence[Array]) -> list[Array]:
        """The derivative of the state in time, an array for each of the state's.

        For the compiled methods of diffrax it is traced: t and the arrays are jax's.
        """

    def compresses(self, depth: int) -> bool:
        """Whether networks of `depth` layers can be compressed under it."""
        return self.compressible

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def line(self) -> str:
        """Its equation: what the first line of its docstring has before a colon."""
        return (type(self).__doc__ or self.name).strip().split("\n")[0].split(":")[0].rstrip(".")

    def power(self, t: Array) -> Array | None:
        """b(t): the energy L - f* + `stored` falls by b(t) ||dW/dt||_F^2. None: nothing is known of it."""
        return None

    def stored(self, problem: Equation, t: Array, state: Sequence[np.ndarray]) -> np.ndarray | float:
        """The energy beyond L - f* and that of weight decay, of a state or of a stack of states."""
        return 0.0

    def damping(self, t: Array) -> Array:
        """b(t), where the structure is inertial."""
        return 0.0 * t

    def jacobian_product(
        self, problem: Equation, t: float, state: Sequence[np.ndarray], directions: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        """The derivative of the velocity along directions (stacks); None: it is found by differences."""
        return None

    def remaining(self, weight_decay: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, q') at the times t: the parts of the weights that the loss does not reach are q(t) times those at t = 0.

        weight_decay: that of the problem. Of a dynamics that neither is compressible nor keeps the imbalance q = 1, and
        changes are told from the start. Raises InputError where weight_decay is not 0 and the dynamics does not tell.
        """
        if not (weight_decay and (self.compressible or self.keeps_imbalance)):
            return np.ones_like(t), np.zeros_like(t)
        raise InputError(
            f"Argument `dynamics` must tell by `remaining` what weight decay leaves, but {self.name} does not, which"
            " says that it is compressible or keeps the imbalance."
        )

    def reach(self, s: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        """How far a unit of gradient at the time s has moved the weights at t: 1 for a flow."""
        return np.ones_like(s)

    def residuals(
        self, problem: Equation, t: float, state: Sequence[np.ndarray], start: Sequence[np.ndarray]
    ) -> LawResiduals:
        """Laws that hold along the exact solution from `start` at t = 0, each with the residual at a state."""
        return {}

    def __str__(self) -> str:
        return ", ".join([self.name, *self.settings_told()])


def factor(b: Array) -> Array:
    """Numbers (...) as factors of stacks (..., rows, columns)."""
    return b[..., None, None] if getattr(b, "ndim", 0) else b
