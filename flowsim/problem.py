"""A problem: minimise L(W_1, ..., W_L) = f(scale W_1 ... W_L)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flowsim.errors import InputError, NumericalFailure
from flowsim.losses import Adapted, Loss, StackedLoss, adapted, check_loss
from flowsim.network import Network, backpropagate, flatten, hessian_product, product, unflatten
from flowsim.values import Value


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Value):
    """A loss on the product of a network, with the network's weights as the initial point: a frozen value.

    network: a LinearNetwork, or a CompressedNetwork where the full weights are not there or not wanted. loss: one of
    flowsim's, or a user's own (see Loss).

    Raises InputError when the loss is not one, does not keep to the contract of Loss at the initial product, or its
    shape is not that of the network's product; and for a subclass that overrides the equations, which the compiled
    methods would not see.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 5, 4, 2), seed=0))
    >>> W, gradients = problem.gradients(problem.network.weights)
    >>> E = problem.loss.gradient(W)  # dL/dt is -<T E, E>, and minus the square of the gradient
    >>> np.isclose((problem.network.apply_T(E) * E).sum(), sum((G**2).sum() for G in gradients)).item()
    True
    """

    loss: Loss
    network: Network

    def __post_init__(self) -> None:
        changed = [name for name in EQUATIONS if getattr(type(self), name) is not getattr(Problem, name)]
        if changed:
            raise InputError(
                f"Argument `problem` must obey the equations of Problem, but {type(self).__name__} overrides"
                f" {', '.join(changed)}; change the loss or the network instead."
            )
        check_loss(self.loss)
        if not hasattr(self.network, "dims"):
            kind = type(self.network).__name__
            raise InputError(
                f"Argument `network` must be a LinearNetwork or a CompressedNetwork, but it is of type {kind};"
                " LinearNetwork(weights) makes one."
            )
        dims = self.network.dims
        if tuple(self.loss.shape) != (dims[0], dims[-1]):
            raise InputError(
                f"Argument `loss` must be on {dims[0]} x {dims[-1]} matrices, the shape of the product of a network"
                f" with dims {dims}, but its target is {' x '.join(map(str, self.loss.shape))}; transpose it?"
            )
        _ = self.stacked_loss  # a user's own that does not keep to the contract is refused here

    def __repr__(self) -> str:
        return f"Problem({type(self.loss).__name__}, {self.network!r})"

    @property
    def initial_state(self) -> np.ndarray:
        """The initial weights as one vector."""
        return flatten(self.network.weights)

    @property
    def reach(self) -> list[np.ndarray]:
        """How freely corrections of the weights may use each coordinate of h_0, ..., h_L, from 0 (not at all) to 1."""
        return [np.ones(width) for width in self.network.dims]

    @cached_property
    def stacked_loss(self) -> StackedLoss:
        """The loss, able to serve stacks of products, NumPy's and jax's; a user's own is checked at the initial one."""
        loss = adapted(self.loss)
        return loss.check(self.network.product) if isinstance(loss, Adapted) else loss

    def products(self, states: np.ndarray) -> np.ndarray:
        """W of a state, the weights as one vector (size), or of states, a stack (..., size)."""
        return np.asarray(product(unflatten(states, self.network.dims), self.network.scale))

    def gradients(self, weights: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The product W and [dL/dW_1, ..., dL/dW_L] at the given weights, or at stacks (..., rows, columns) of them."""
        return backpropagate(self.stacked_loss, weights, self.network.scale)

    def velocity(self, state: np.ndarray) -> np.ndarray:
        """Gradient flow dW_l/dt = -dL/dW_l ([MVM23], section 2) at a state (size), as one vector; for a stack (...,
        size) a stack."""
        _, gradients = self.gradients(unflatten(state, self.network.dims))
        return -flatten(gradients)

    def jacobian_product(self, state: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The derivative of the velocity at a state (size) along directions (..., size): minus the Hessian of L.

        Raises NumericalFailure where it is not finite, which no linear algebra takes.
        """
        dims = self.network.dims
        moved = unflatten(state, dims), unflatten(directions, dims)
        found = -flatten(hessian_product(self.stacked_loss, *moved, self.network.scale))
        if not np.isfinite(found).all():
            raise NumericalFailure("The Hessian of the loss is not finite at a state that the method came to.")
        return found

    def excess(self, products: np.ndarray) -> np.ndarray:
        """f(W) - f* at a stack of products (..., n, m); f(W) where f* is unknown."""
        return np.asarray(self.stacked_loss.excess(products))

    @property
    def initial_excess(self) -> float:
        """L(0) - f*."""
        return float(self.excess(self.network.product))


EQUATIONS = (
    "initial_state",
    "stacked_loss",
    "products",
    "gradients",
    "velocity",
    "jacobian_product",
    "excess",
    "initial_excess",
)
"""What all methods take to be as it is here."""
