"""What a loss f(W) of the product W, an n x m matrix, has to offer, and the constants that the theorems need.

A loss is any object with `shape`, `value(W)` and `gradient(W)`; that is enough to simulate. What else it declares
(`minimum`, `excess`, `constants`, `minimiser`) lets flowsim stop at a level and certify rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

from flowsim.errors import InputError


@dataclass(frozen=True)
class LossConstants:
    """Constants of the assumptions A1, A1' and A2 of Min, Vidal, Mallada (ICML 2023).

    `dominance` names how the gradient dominates the loss: "quadratic" (A1, Polyak-Lojasiewicz),
    ||grad f||_F^2 >= gamma (f - f*); "linear" (A1'), ||grad f||_F >= gamma (f - f*); None: neither holds.
    mu: strong convexity (0 if none); K: smoothness (None if unbounded). A2 (mu > 0) implies A1 with gamma = 2 mu.
    """

    gamma: float | None
    dominance: Literal["quadratic", "linear"] | None
    mu: float = 0.0
    K: float | None = None


@runtime_checkable
class Loss(Protocol):
    """What a user's own loss must offer. Optional: `minimum` (f*), `minimiser` (W*), `constants` (LossConstants)."""

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


class BuiltIn:
    """Base of flowsim's own losses: their attributes are arrays and numbers, and they serve stacks (..., n, m) too.

    All have `excess`. Their code is array arithmetic over the last two axes, the same for NumPy and jax arrays.
    """

    def excess(self, W: Any) -> Any:
        """f(W) - f* (f(W) where f* is unknown); W may be a stack (..., n, m)."""
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """All that the loss consists of, arrays and numbers by name."""
        return dict(vars(self))

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Self:
        """The loss with these parts, unchecked."""
        loss = object.__new__(cls)
        vars(loss).update(parts)
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


def excess_stack(loss: Any, products: np.ndarray) -> np.ndarray:
    """f(W) - f* for a stack of products (count, n, m)."""
    if isinstance(loss, BuiltIn):
        return np.asarray(loss.excess(products))
    return np.array([float(excess(loss, W)) for W in products])
