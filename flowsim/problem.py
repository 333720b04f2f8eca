"""A problem: minimise L(W_1, ..., W_L) = f(scale W_1 ... W_L), with or without weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from flowsim.checks import as_number
from flowsim.errors import InputError, NumericalFailure
from flowsim.losses import Adapted, Loss, StackedLoss, adapted, check_loss
from flowsim.network import Network, backpropagate, flatten, hessian_product, product, unflatten
from flowsim.values import Array, Value


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Value):
    """A loss on the product of a network, with the network's weights as the initial point: a frozen value.

    network: a LinearNetwork, or a CompressedNetwork where the full weights are not there or not wanted. loss: one of
    flowsim's, or a user's own (see Loss). weight_decay x >= 0: the objective is L + x/2 sum_l ||W_l||_F^2; `excess`
    stays f(W) - f*, that of the loss alone.

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
    weight_decay: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_decay", as_number(self.weight_decay, "weight_decay", least=0.0))
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
        decay = f", weight_decay={self.weight_decay:g}" if self.weight_decay else ""
        return f"Problem({type(self.loss).__name__}, {self.network!r}{decay})"

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

    def gradients(self, weights: Sequence[Array]) -> tuple[Array, list[Array]]:
        """The product W and [dL/dW_1 + weight_decay W_1, ...] at the given weights, or at stacks (..., rows, columns)
        of them."""
        return gradients(self.stacked_loss, weights, self.network.scale, self.weight_decay)

    def hessian_product(self, weights: Sequence[Array], directions: Sequence[Array]) -> list[Array]:
        """The derivative of the gradients along directions (one a layer, or stacks of them)."""
        found = hessian_product(self.stacked_loss, weights, directions, self.network.scale)
        return _plus(found, self.weight_decay, directions)

    def velocity(self, state: np.ndarray) -> np.ndarray:
        """Gradient flow dW_l/dt = -dL/dW_l - weight_decay W_l ([MVM23], section 2) at a state (size), as one vector;
        for a stack (..., size) a stack."""
        _, found = self.gradients(unflatten(state, self.network.dims))
        return -flatten(found)

    def jacobian_product(self, state: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The derivative of the velocity at a state (size) along directions (..., size): minus the Hessian.

        Raises NumericalFailure where it is not finite, which no linear algebra takes.
        """
        dims = self.network.dims
        moved = unflatten(state, dims), unflatten(directions, dims)
        found = -flatten(self.hessian_product(*moved))
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


def gradients(
    loss: StackedLoss, weights: Sequence[Array], scale: Array | float = 1.0, weight_decay: Array | float = 0.0
) -> tuple[Array, list[Array]]:
    """The product W, and the gradients of f(W) + weight_decay / 2 sum_l ||W_l||_F^2; NumPy's and jax's arrays alike."""
    W, found = backpropagate(loss, weights, scale)
    return W, _plus(found, weight_decay, weights)


def _plus(found: list[Array], weight_decay: Array | float, weights: Sequence[Array]) -> list[Array]:
    if isinstance(weight_decay, float) and not weight_decay:
        return found
    return [G + weight_decay * W for G, W in zip(found, weights, strict=True)]


EQUATIONS = (
    "initial_state",
    "stacked_loss",
    "products",
    "gradients",
    "hessian_product",
    "velocity",
    "jacobian_product",
    "excess",
    "initial_excess",
)
"""What all methods take to be as it is here."""
