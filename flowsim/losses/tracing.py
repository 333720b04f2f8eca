"""A user's own loss in what jax compiles: traced where it is written with jax.numpy, else called back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flowsim.errors import InputError
from flowsim.values import Array

if TYPE_CHECKING:
    from flowsim.losses.adapting import Adapted


class Traced:
    """excess, gradient and hessian_product of one matrix, of jax's kind; jax differentiates the gradient.

    The derivative of the gradient is the loss's own hessian_product where it has one, jax's of a traced gradient, and
    what Adapted has for NumPy, called back. Raises InputError where a loss in jax.numpy cannot be traced.
    """

    loss: Any
    """The user's own: what it offers besides Loss is asked for by name."""

    def __init__(self, own: Adapted) -> None:
        self.own, self.loss = own, own.loss
        self.matrix = jax.ShapeDtypeStruct(own.shape, np.float64)
        self.has_curvature = own.declares("hessian_product") is not None

    def takes(self, name: str) -> bool:
        """Whether jax can trace the loss's function of that name (the Hessian's: the gradient)."""
        with jax.enable_x64(True):
            try:
                if name == "hessian_product":
                    jax.eval_shape(self.pushforward, self.matrix, self.matrix)
                else:
                    jax.eval_shape(getattr(self.loss, name), self.matrix)
            except Exception:
                return False
        return True

    def excess(self, W: Array) -> Array:
        """f(W) - f*, or f(W) where f* is unknown."""
        if not self.own.in_jax:
            return self._back(self.own.excess, (), W)
        name = "value" if self.own.declares("excess") is None else "excess"
        self._must_take(name)
        return getattr(self.loss, name)(W) - (0.0 if name == "excess" else self.own.minimum or 0.0)

    def gradient(self, W: Array) -> Array:
        """grad f(W), with its derivative."""
        if self.own.in_jax:
            self._must_take("gradient")
            if not self.has_curvature:
                return self.loss.gradient(W)

        @jax.custom_jvp
        def gradient(W: Array) -> Array:
            return self.loss.gradient(W) if self.own.in_jax else self._back(self.own.gradient, self.own.shape, W)

        @gradient.defjvp
        def _(primals: Array, tangents: Array) -> Array:
            return gradient(*primals), self.hessian_product(*primals, *tangents)

        return gradient(W)

    def hessian_product(self, W: Array, V: Array) -> Array:
        """The derivative of grad f at W along V."""
        if self.own.in_jax:
            self._must_take("hessian_product")
            return self.pushforward(W, V)
        return self._back(self.own.hessian_product, self.own.shape, W, V)

    def pushforward(self, W: Array, V: Array) -> Array:
        """The loss's own hessian_product, else jax's derivative of its gradient."""
        return self.loss.hessian_product(W, V) if self.has_curvature else jax.jvp(self.loss.gradient, (W,), (V,))[1]

    def _must_take(self, name: str) -> None:
        if not self.takes(name):
            raise InputError(
                f"Argument `loss` must be traceable for what jax compiles, but its {name} is not; use jax.numpy alone"
                " in it, without float() and without branches on values, or a method of scipy."
            )

    def _back(self, function: Callable[..., np.ndarray], shape: tuple[int, ...], *arguments: Array) -> Array:
        """function of NumPy arrays, called back. Numbers travel as the bits of their halves: jax runs callbacks in a
        thread where float64 may be off."""

        def call(*halves: np.ndarray) -> np.ndarray:
            arrays = (np.ascontiguousarray(half).view(np.float64)[..., 0] for half in halves)
            return np.ascontiguousarray(function(*arrays))[..., None].view(np.uint32)

        bits = (jax.lax.bitcast_convert_type(one, np.uint32) for one in arguments)
        result = jax.ShapeDtypeStruct((*shape, 2), np.uint32)
        return jax.lax.bitcast_convert_type(
            jax.pure_callback(call, result, *bits, vmap_method="broadcast_all"), np.float64
        )
