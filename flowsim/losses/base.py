"""What a loss f(W) of the product W, an n x m matrix, has to offer, and the constants that the theorems need.

A loss is any object with `shape`, `value(W)` and `gradient(W)`; that is enough to simulate. What else it declares
(`minimum`, `excess`, `constants`, `minimiser`) lets flowsim stop at a level and certify rates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np

from flowsim.checks import as_matrix, as_number
from flowsim.errors import InputError


@dataclass(frozen=True)
class LossConstants:
    """Constants of the assumptions A1, A1' and A2 of Min, Vidal, Mallada (ICML 2023).

    `dominance` names how the gradient dominates the loss: "quadratic" (A1, Polyak-Lojasiewicz),
    ||grad f||_F^2 >= gamma (f - f*); "linear" (A1'), ||grad f||_F >= gamma (f - f*); None: neither holds.
    mu: strong convexity (0 if none); K: smoothness (None if unbounded). A2 (mu > 0) implies A1 with gamma = 2 mu.

    A user's own loss that declares its constants is certified like flowsim's own; here gamma is half of SquaredLoss's:

    >>> import flowsim as fs
    >>> class Quarter(fs.SquaredLoss):
    ...     constants = fs.LossConstants(gamma=1.0, dominance="quadratic", mu=0.5, K=0.5)
    ...     def excess(self, W): return super().excess(W) / 2
    ...     def gradient(self, W): return super().gradient(W) / 2
    >>> network = fs.LinearNetwork(([[3.0]], [[1.0]]))  # alpha = |3^2 - 1^2| = 8
    >>> [fs.certify(fs.Problem(loss([[2.0]]), network))["theorem-1-A1"].rate for loss in (fs.SquaredLoss, Quarter)]
    [16.0, 8.0]
    """

    gamma: float | None
    dominance: Literal["quadratic", "linear"] | None
    mu: float = 0.0
    K: float | None = None


@runtime_checkable
class Loss(Protocol):
    """What a user's own loss must offer. Optional: `minimum` (f*), `minimiser` (W*), `constants` (LossConstants).

    >>> import numpy as np
    >>> import flowsim as fs
    >>> class PseudoHuber:
    ...     shape = (2, 1)
    ...     def value(self, W): return float((np.sqrt(1 + (W - 1) ** 2) - 1).sum())
    ...     def gradient(self, W): return (W - 1) / np.sqrt(1 + (W - 1) ** 2)
    >>> flow = fs.simulate(fs.Problem(PseudoHuber(), fs.fan_in((2, 4, 1), seed=0)), t1=20.0)
    >>> isinstance(PseudoHuber(), fs.Loss), bool(flow.loss[-1] < 1e-6), fs.certify(flow.problem).best
    (True, True, None)
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m), the shape of the product W."""
        ...

    def value(self, W: Any) -> Any:
        """f(W), a scalar."""
        ...

    def gradient(self, W: Any) -> Any:
        """grad f(W), an n x m matrix."""
        ...


class BuiltIn(ABC):
    """Base of flowsim's own losses: their attributes are arrays and numbers, and they serve stacks (..., n, m) too.

    Their code is array arithmetic over the last two axes, the same for NumPy and jax arrays.
    """

    kept: ClassVar[tuple[str, ...]]
    """The names of its parts."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, m), the shape of the product W."""

    @abstractmethod
    def gradient(self, W: Any) -> Any:
        """grad f(W); W may be a stack (..., n, m)."""

    @abstractmethod
    def excess(self, W: Any) -> Any:
        """f(W) - f* (f(W) where f* is unknown); W may be a stack (..., n, m)."""

    @abstractmethod
    def hessian_product(self, W: Any, V: Any) -> Any:
        """The derivative of grad f at W along V, which may be a stack (..., n, m)."""

    def parts(self) -> dict[str, Any]:
        """All that the loss consists of, arrays and numbers by name."""
        return dict(vars(self))

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Self:
        """The loss with these parts, unchecked."""
        loss = object.__new__(cls)
        vars(loss).update(parts)
        return loss

    @classmethod
    def restored(cls, parts: Mapping[str, Any]) -> Self:
        """The loss with the parts that a file holds. Raises InputError where they are not those of such a loss."""
        try:
            loss = cls.from_parts(parts)
        except KeyError as error:
            raise InputError(f"A {cls.__name__} must have the part {error}, but it is missing.") from error
        if set(loss.parts()) != set(cls.kept):
            found = ", ".join(sorted(loss.parts())) or "none"
            raise InputError(f"A {cls.__name__} must have the parts {', '.join(cls.kept)}, but it has {found}.")
        for name, part in loss.parts().items():
            if isinstance(part, np.ndarray):
                as_matrix(part, name)
            else:
                as_number(part, name)
        loss.check()
        return loss

    def check(self) -> None:
        """Refuse parts, finite matrices and numbers by their names, that no such loss has. Raises InputError."""
        wanted = self.shape
        try:
            found = np.shape(self.gradient(np.zeros(wanted)))
        except ValueError:
            found = ()
        if found != wanted:
            raise InputError(f"The parts of a {type(self).__name__} must fit each other, but their shapes do not.")


def check_loss(loss: Any) -> Loss:
    """Refuse an object that lacks shape, value or gradient."""
    missing = [word for word in ("shape", "value", "gradient") if not hasattr(loss, word)]
    if missing:
        raise InputError(
            f"Argument `loss` must offer shape, value(W) and gradient(W), but {type(loss).__name__} lacks"
            f" {', '.join(missing)}; see flowsim.Loss."
        )
    return loss


def minimum_of(loss: Any) -> float | None:
    """f*, or None where the loss does not declare it."""
    return getattr(loss, "minimum", None)


def constants_of(loss: Any) -> LossConstants | None:
    """The loss's LossConstants, or None where it does not declare them."""
    return getattr(loss, "constants", None)


def excess(loss: Any, W: Any) -> Any:
    """f(W) - f* for one product, without cancellation where the loss offers `excess`; f(W) itself if f* is unknown."""
    if hasattr(loss, "excess"):
        return loss.excess(W)
    return loss.value(W) - (minimum_of(loss) or 0.0)


class Vectorized:
    """A user's own loss on stacks (..., n, m) of products, one after the other; its Hessian by central differences."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def excess(self, W: np.ndarray) -> np.ndarray:
        """f(W) - f*, or f(W) where f* is unknown: (...)."""
        return self._each(lambda one: float(excess(self.loss, one)), W)

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """grad f(W): (..., n, m)."""
        return self._each(self.loss.gradient, W)

    def hessian_product(self, W: np.ndarray, V: np.ndarray) -> np.ndarray:
        """The derivative of grad f at one W along V (..., n, m), to about ten digits for a smooth f."""
        size = float(np.linalg.norm(V)) or 1.0
        step = np.finfo(float).eps ** (1 / 3) * (1.0 + float(np.linalg.norm(W))) / size
        return (self.gradient(W + step * V) - self.gradient(W - step * V)) / (2 * step)

    @staticmethod
    def _each(function: Callable[[np.ndarray], Any], W: np.ndarray) -> np.ndarray:
        values = np.array([function(one) for one in W.reshape(-1, *W.shape[-2:])])
        return values.reshape(*W.shape[:-2], *values.shape[1:])


def vectorized(loss: Any) -> Any:
    """The loss itself where it is one of flowsim's, else a user's own made to serve stacks of NumPy arrays."""
    return loss if isinstance(loss, BuiltIn) else Vectorized(loss)
