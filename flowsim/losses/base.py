"""What a loss f(W) of the product W, an n x m matrix, has to offer, and the constants that the theorems need.

A loss is any object with `shape`, `value(W)` and `gradient(W)`; that is enough to simulate. What else it declares
(`minimum`, `excess`, `constants`, `minimiser`) lets flowsim stop at a level and certify rates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

from flowsim.checks import as_number
from flowsim.errors import InputError
from flowsim.values import Value, guarded


@dataclass(frozen=True)
class LossConstants:
    """Constants of the assumptions A1, A1' and A2 of Min, Vidal, Mallada (ICML 2023).

    `dominance` names how the gradient dominates the loss: "quadratic" (A1, Polyak-Lojasiewicz),
    ||grad f||_F^2 >= gamma (f - f*); "linear" (A1'), ||grad f||_F >= gamma (f - f*); None: neither holds.
    mu: strong convexity (0 if none); K: smoothness (None if unbounded). A2 (mu > 0) implies A1 with gamma = 2 mu.
    remark: what a certificate with these constants has to say of them, such as that gamma belongs to data of low rank.

    Raises InputError for a gamma or K that is not positive and finite, or a negative mu.

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
    remark: str | None = None

    def __post_init__(self) -> None:
        for name in ("gamma", "K"):
            if getattr(self, name) is not None:
                as_number(getattr(self, name), name, above=0.0)
        as_number(self.mu, "mu", least=0.0)


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


class BuiltIn(Value, ABC):
    """Base of flowsim's own losses: their attributes are arrays and numbers, and they serve stacks (..., n, m) too.

    Their code is array arithmetic over the last two axes, the same for NumPy and jax arrays. They are frozen values:
    what they were made from is copied (`flowsim.values.frozen`), an attribute is set once.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            raise AttributeError(f"{type(self).__name__} is a frozen value: {name} cannot be set again; make another.")
        super().__setattr__(name, value)

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
        """The loss with these parts, unchecked, and arrays among them made read-only."""
        loss = object.__new__(cls)
        vars(loss).update({name: guarded(part) if isinstance(part, np.ndarray) else part for name, part in parts.items()})
        return loss


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
