"""Dynamics of first order: gradient flow, and the flow that descent of a finite step size follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from flowsim.checks import as_number
from flowsim.dynamics.base import Dynamics, Equation
from flowsim.values import Array


@dataclass(frozen=True)
class GradientFlow(Dynamics):
    """dW_l/dt = -dL/dW_l - x W_l, x the weight decay ([MVM23], section 2, has x = 0).

    Laws: D_l(t) = exp(-2 x t) D_l(0), for D_l = W_l^T W_l - W_{l+1} W_{l+1}^T: the gradients alone leave D_l as it is
    (Arora, Cohen, Hazan, ICML 2018, Theorem 1), the decay multiplies every W_l by exp(-x t). The objective falls by
    int ||dW/dt||_F^2.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0), weight_decay=0.1)
    >>> flow = fs.simulate(problem, t1=2.0, dynamics=fs.GradientFlow())
    >>> (W_1, W_2), (V_1, V_2) = problem.network.weights, flow.weights_at(2.0)
    >>> np.allclose(V_1.T @ V_1 - V_2 @ V_2.T, np.exp(-0.4) * (W_1.T @ W_1 - W_2 @ W_2.T), atol=1e-6)
    True
    """

    structure: ClassVar[Literal["gradient", "inertial", "general"]] = "gradient"
    compressible = True
    keeps_imbalance = True

    def velocity(self, problem: Equation, t: Array, state: Sequence[Array]) -> list[Array]:
        """-dL/dW_l - x W_l."""
        _, gradients = problem.gradients(state)
        return [-G for G in gradients]

    def power(self, t: Array) -> Array:
        """1."""
        return 1.0 + 0 * t

    def jacobian_product(
        self, problem: Equation, t: float, state: Sequence[np.ndarray], directions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Minus the Hessian."""
        return [-H for H in problem.hessian_product(state, directions)]

    def remaining(self, weight_decay: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """exp(-x t) and its derivative, x = weight_decay."""
        q = np.exp(-weight_decay * t)
        return q, -weight_decay * q


@dataclass(frozen=True)
class ModifiedFlow(Dynamics):
    """dW/dt = -grad (L + step_size/4 ||grad L||_F^2): descent of that step size follows it to second order.

    The gradient is G + step_size/2 (Hess L) G, G = grad L (of the objective, where weights decay). After k steps
    gradient descent is O(step_size^2) from its time k step_size, where the plain flow is O(step_size) from it (Hairer,
    Lubich and Wanner, Geometric Numerical Integration, section IX.1; Barrett and Dherin, "Implicit gradient
    regularization", ICLR 2021, Theorem 3.1).

    Laws: L + step_size/4 ||grad L||_F^2 falls by int ||dW/dt||_F^2. The imbalance is not conserved: without decay
    dD_l/dt = step_size (G_l^T G_l - G_{l+1} G_{l+1}^T), descent's own drift law in continuous time. (L is unchanged by
    W_l -> W_l S, W_{l+1} -> S^-1 W_{l+1}, under which G_l -> G_l S^-T and G_{l+1} -> S^T G_{l+1}: for S = I + e A with
    A symmetric ||grad L||^2 changes by 2 e tr A (G_{l+1} G_{l+1}^T - G_l^T G_l), and tr A D_l by minus twice the
    derivative of step_size/4 ||grad L||^2.)

    Near the edge, step_size/2 lambda_max(Hess L) not small, it is no approximation of anything. Implicit methods take
    -(H + step_size/2 H^2) for its Jacobian, H = Hess L: the term with the third derivative of L is left out, which
    costs them iterations, no accuracy. Raises InputError unless step_size > 0.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 6, 5, 2), seed=0))
    >>> for eta in (0.02, 0.01):
    ...     steps = fs.simulate(problem, fs.GradientDescent(eta), t1=1.0).products[-1]
    ...     flow, modified = (
    ...         fs.simulate(problem, t1=1.0, dynamics=d).products[-1] for d in (None, fs.ModifiedFlow(eta))
    ...     )
    ...     print(f"{np.linalg.norm(steps - flow):.1e} {np.linalg.norm(steps - modified):.1e}")
    3.9e-03 2.8e-04
    1.9e-03 7.1e-05
    """

    step_size: float
    structure: ClassVar[Literal["gradient", "inertial", "general"]] = "gradient"

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)

    def velocity(self, problem: Equation, t: Array, state: Sequence[Array]) -> list[Array]:
        """-G - step_size/2 (Hess L) G."""
        _, G = problem.gradients(state)
        H = problem.hessian_product(state, G)
        return [-g - 0.5 * self.step_size * h for g, h in zip(G, H, strict=True)]

    def compresses(self, depth: int) -> bool:
        """With depth 2: all products of two layers and their gradients are in the span of the ends, which it keeps."""
        return depth == 2

    def power(self, t: Array) -> Array:
        """1."""
        return 1.0 + 0 * t

    def stored(self, problem: Equation, t: Array, state: Sequence[np.ndarray]) -> np.ndarray | float:
        """step_size/4 ||grad L||_F^2."""
        _, gradients = problem.gradients(state)
        square: np.ndarray = sum((G * G).sum((-2, -1)) for G in gradients)
        return 0.25 * self.step_size * square

    def remaining(self, weight_decay: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """exp(-y t) and its derivative, y = x + step_size/2 x^2, x = weight_decay."""
        y = weight_decay * (1 + 0.5 * self.step_size * weight_decay)
        q = np.exp(-y * t)
        return q, -y * q

    def jacobian_product(
        self, problem: Equation, t: float, state: Sequence[np.ndarray], directions: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """-(H + step_size/2 H^2) V: without the third derivative."""
        once = problem.hessian_product(state, directions)
        twice = problem.hessian_product(state, once)
        return [-a - 0.5 * self.step_size * b for a, b in zip(once, twice, strict=True)]
