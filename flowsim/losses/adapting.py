"""One contract for every loss: whatever a user's own is written with, all paths use `adapted(loss)`, which offers what
flowsim's own losses do: excess, gradient and hessian_product of stacks of NumPy arrays and of jax's tracers alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard
from weakref import WeakValueDictionary

import numpy as np

from flowsim.checks import as_number
from flowsim.errors import InputError, NumericalFailure
from flowsim.losses.base import BuiltIn, Loss, LossConstants, StackedLoss
from flowsim.losses.classification import ExponentialLoss, LogisticLoss
from flowsim.losses.squared import LeastSquares, MaskedSquaredLoss, SquaredLoss
from flowsim.values import Array

if TYPE_CHECKING:
    from flowsim.losses.tracing import Traced

BUILT_IN: dict[str, type[BuiltIn]] = {
    "SquaredLoss": SquaredLoss,
    "LeastSquares": LeastSquares,
    "MaskedSquaredLoss": MaskedSquaredLoss,
    "ExponentialLoss": ExponentialLoss,
    "LogisticLoss": LogisticLoss,
}
"""flowsim's own losses by name; a subclass of one is a user's own."""
OVERRIDDEN = ("value", "gradient", "excess")
"""Where a subclass of a built-in loss has its own, what it inherits says nothing of it."""
BELOW = 1e-9
"""A value below the declared minimum by more than this share of the first value is no round-off."""


class LossFailure(NumericalFailure):
    """A user's own loss does not keep to the contract at some W: says in what."""


@dataclass(frozen=True, eq=False)
class UnknownLoss:
    """Stands for a user's own loss in a trajectory loaded without it."""

    shape: tuple[int, int]

    def value(self, *_: object) -> NoReturn:
        """Not known."""
        raise InputError(
            "Argument `loss` must be passed to load(path, loss=...): the file does not hold the user's own."
        )

    gradient = excess = hessian_product = value


def is_built_in(loss: object) -> TypeGuard[BuiltIn]:
    """Whether the loss is one of flowsim's itself."""
    return type(loss) in BUILT_IN.values()


_adapted: WeakValueDictionary[int, Adapted] = WeakValueDictionary()


def adapted(loss: Loss) -> StackedLoss:
    """The loss as all paths use it: one of flowsim's itself, a user's own as Adapted, one and the same while in use."""
    if is_built_in(loss) or isinstance(loss, (Adapted, UnknownLoss)):
        return loss
    known = _adapted.get(id(loss))
    return Adapted(loss) if known is None else known


def declared(loss: Loss, name: str) -> Any:
    """What the loss declares by an optional name; None where it does not.

    What a subclass of one of flowsim's losses inherits counts only where it overrides none of OVERRIDDEN; but an excess
    of its own, f - f*, vouches for the minimum.
    """
    if isinstance(loss, Adapted):
        loss = loss.loss
    if isinstance(loss, BuiltIn) and not is_built_in(loss):
        line = type(loss).__mro__

        def place(word: str) -> int:
            return next((k for k, kind in enumerate(line) if word in vars(kind)), -1)

        newest = min(map(place, OVERRIDDEN))
        if place(name) > newest and not (name == "minimum" and place("excess") == newest):
            return None
    return getattr(loss, name, None)


def minimum_of(loss: Loss) -> float | None:
    """f*, or None where the loss does not declare it."""
    return declared(loss, "minimum")


def minimiser_of(loss: Loss) -> np.ndarray | None:
    """W*, or None where the loss does not declare it."""
    return declared(loss, "minimiser")


def constants_of(loss: Loss) -> LossConstants | None:
    """The loss's LossConstants, or None where it does not declare them."""
    return declared(loss, "constants")


def excess(loss: Loss, W: Array) -> Array:
    """f(W) - f* for one product, without cancellation where the loss offers `excess`; f(W) itself if f* is unknown."""
    return adapted(loss).excess(W)


def check_loss(loss: Loss) -> Loss:
    """Refuse what lacks shape, value or gradient, or has a shape or constants that are none."""
    missing = [word for word in ("shape", "value", "gradient") if not hasattr(loss, word)]
    if missing:
        raise InputError(
            f"Argument `loss` must offer shape, value(W) and gradient(W), but {type(loss).__name__} lacks"
            f" {', '.join(missing)}; see flowsim.Loss."
        )
    shape = loss.shape
    pair = isinstance(shape, (tuple, list)) and len(shape) == 2
    if not pair or not all(isinstance(size, (int, np.integer)) for size in shape):
        raise InputError(f"Argument `loss` must have the sizes (n, m) of the product as shape, but it has {shape!r}.")
    minimum, constants = minimum_of(loss), constants_of(loss)
    if isinstance(minimum, str):
        raise InputError(f"Argument `loss` must declare a number as its minimum, but it is {minimum!r}.")
    if minimum is not None:
        as_number(minimum, "loss.minimum")
    if constants is not None and not isinstance(constants, LossConstants):
        raise InputError(f"Argument `loss` must have LossConstants as constants, but they are {constants!r}.")
    return loss


class Adapted:
    """A user's own loss, made to serve as flowsim's do.

    Where it fails (an exception, another shape, a complex number, a value below its minimum) the result is NaN, which
    every integrator refuses, and `failure` says what was wrong.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss, self.shape = loss, (int(loss.shape[0]), int(loss.shape[1]))
        self.minimum, self.constants = minimum_of(loss), constants_of(loss)
        self.failure: str | None = None
        self.first = np.inf  # |f| at the initial product; as long as it is not known, no value is too low
        self.compiled: dict[str, Callable[..., Array]] = {}
        _adapted[id(loss)] = self

    def check(self, W: np.ndarray) -> Adapted:
        """The loss, ready for a problem that starts at W; one that has changed since it was compiled is taken anew.

        Raises InputError where it does not keep to the contract at W.
        """
        self.in_jax, self.minimum, self.constants = self._recognise(W), minimum_of(self.loss), constants_of(self.loss)
        try:
            value, slope = self._number("value", W), self._matrix("gradient", W)
            self.first = abs(value)
            self._excess(W)
            if declared(self.loss, "hessian_product") is not None:
                self._matrix("hessian_product", W, np.ones(self.shape))
        except LossFailure as failure:
            raise InputError(str(failure)) from failure
        for name, found in (("value", np.array(value)), ("gradient", slope)):
            if not np.isfinite(found).all():
                raise InputError(f"Argument `loss` must be finite at the initial product, but its {name} is not.")
        minimiser = minimiser_of(self.loss)
        if minimiser is not None and np.shape(minimiser) != self.shape:
            raise InputError(
                f"Argument `loss` must have a minimiser of its shape {self.shape}, but it has {np.shape(minimiser)}."
            )
        if self.compiled and not self._is_as_compiled(W):
            return Adapted(self.loss).check(W)
        return self

    # ------------------------------------------------------------------------------ stacks of arrays, jax's tracers

    def excess(self, W: Array) -> Array:
        """f(W) - f*, or f(W) where f* is unknown: (...)."""
        return self._each(self._excess, (), W) if isinstance(W, np.ndarray) else self.traced.excess(W)

    def value(self, W: Array) -> Array:
        """f(W): (...)."""
        return self.excess(W) + (self.minimum or 0.0)

    def gradient(self, W: Array) -> Array:
        """grad f(W): (..., n, m)."""
        if not isinstance(W, np.ndarray):
            return self.traced.gradient(W)
        return self._each(lambda one: self._matrix("gradient", one), self.shape, W)

    def hessian_product(self, W: Array, V: Array) -> Array:
        """The derivative of grad f at W along V (..., n, m)."""
        if not isinstance(W, np.ndarray):
            return self.traced.hessian_product(W, V)
        return self._each(self._curvature, self.shape, W, V)

    def _each(self, function: Callable[..., object], shape: tuple[int, ...], *stacks: np.ndarray) -> np.ndarray:
        ahead = np.broadcast_shapes(*(stack.shape[:-2] for stack in stacks))
        flat = [np.broadcast_to(stack, (*ahead, *self.shape)).reshape(-1, *self.shape) for stack in stacks]
        results = np.full((len(flat[0]), *shape), np.nan)
        for k, arguments in enumerate(zip(*flat, strict=True)):
            try:
                results[k] = function(*arguments)
            except LossFailure as failure:
                self.failure = str(failure)
        return results.reshape((*ahead, *shape))

    # --------------------------------------------------------------------------------------- one product, checked

    def _excess(self, W: np.ndarray) -> float:
        if declared(self.loss, "excess") is not None:
            found = self._number("excess", W)
        else:
            found = self._number("value", W) - (self.minimum or 0.0)
        if self.minimum is not None and found < -BELOW * max(self.first, abs(self.minimum)):
            raise LossFailure(
                f"Argument `loss` must not fall below its minimum, declared as {self.minimum:.6g}, but f(W) ="
                f" {self.minimum + found:.6g}; correct it, or declare none."
            )
        return found

    def _curvature(self, W: np.ndarray, V: np.ndarray) -> np.ndarray:
        if declared(self.loss, "hessian_product") is not None or self.in_jax:
            return self._matrix("hessian_product", W, V)
        size = float(np.linalg.norm(V))
        if size == 0.0:
            return np.zeros(self.shape)
        step = np.finfo(float).eps ** (1 / 3) * (1.0 + float(np.linalg.norm(W))) / size
        return (self._matrix("gradient", W + step * V) - self._matrix("gradient", W - step * V)) / (2 * step)

    def _number(self, name: str, W: np.ndarray) -> float:
        found = self._call(name, W)
        if found.ndim:
            raise LossFailure(
                f"Argument `loss` must return a number as {name}(W), but it returns an array of shape {found.shape}."
            )
        return float(found)

    def _matrix(self, name: str, *arguments: np.ndarray) -> np.ndarray:
        found = self._call(name, *arguments)
        if found.shape != self.shape:
            raise LossFailure(
                f"Argument `loss` must return matrices of its shape {self.shape} as {name}, but returns one of shape"
                f" {found.shape}."
            )
        return found

    def _call(self, name: str, *arguments: np.ndarray) -> np.ndarray:
        """What the loss's own function returns, handed copies, as a new float64 array."""
        try:
            with _float64():
                if self.in_jax:
                    found = self._function(name)(*map(sys.modules["jax"].numpy.array, arguments))
                else:
                    found = getattr(self.loss, name)(*(np.array(one) for one in arguments))
                array = np.array(found)
        except MemoryError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise LossFailure(f"Argument `loss` must be computable, but its {name} raised {what}.") from error
        if array.dtype.kind not in "fiub" or isinstance(found, np.ma.MaskedArray):
            kind = "masked" if isinstance(found, np.ma.MaskedArray) else f"of dtype {array.dtype}"
            raise LossFailure(f"Argument `loss` must return real numbers as {name}, but they are {kind}.")
        if array.dtype.kind == "f" and array.dtype.itemsize < 8:
            raise LossFailure(f"Argument `loss` must compute in float64, but its {name} returns {array.dtype}.")
        return array.astype(np.float64)

    # --------------------------------------------------------------------------------------------------------- jax

    def declares(self, name: str) -> Any:
        """What the loss declares by an optional name; None where it does not."""
        return declared(self.loss, name)

    @cached_property
    def in_jax(self) -> bool:
        """Whether the loss is written with jax.numpy, told by a gradient."""
        return self._recognise(np.zeros(self.shape))

    def _recognise(self, W: np.ndarray) -> bool:
        for kind in ("numpy", "jax"):
            try:
                with _float64():
                    found = self.loss.gradient(np.array(W) if kind == "numpy" else sys.modules["jax"].numpy.array(W))
                return "jax" in sys.modules and isinstance(found, sys.modules["jax"].Array)
            except Exception:
                if "jax" not in sys.modules:
                    return False
        return False

    def _function(self, name: str) -> Callable[..., Array]:
        """A function of a loss in jax.numpy: compiled where it can be; the Hessian from the gradient's derivative."""
        if name not in self.compiled:
            jax = sys.modules["jax"]
            function = self.traced.pushforward if name == "hessian_product" else getattr(self.loss, name)
            self.compiled[name] = jax.jit(function) if self.traced.takes(name) else function
        return self.compiled[name]

    def _is_as_compiled(self, W: np.ndarray) -> bool:
        with _float64():
            now = np.array(self.loss.gradient(sys.modules["jax"].numpy.array(W)))
        return bool(np.allclose(self._matrix("gradient", W), now, rtol=1e-9, atol=1e-12 * np.abs(now).max()))

    @cached_property
    def traced(self) -> Traced:
        """The same functions for jax's tracers."""
        from flowsim.losses.tracing import Traced

        return Traced(self)


def _float64() -> AbstractContextManager[object]:
    """Where jax has been imported, a context in which it computes in float64; the user's own setting is left alone."""
    jax = sys.modules.get("jax")
    return nullcontext() if jax is None else jax.enable_x64(True)
