"""Losses f(W) of the product W, an n x m matrix, with the constants that the theorems need.

A loss is any object with `shape`, `value(W)` and `gradient(W)`; that is enough to simulate. What else it declares
(`minimum`, `excess`, `constants`) lets flowsim stop at a level and certify rates. The losses here use matrix products,
transposes and sums only, over the last two axes: the same code serves NumPy arrays, stacks of them, and jax arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from flowsim.checks import as_matrix
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
    """What a user's own loss must offer. Optional: `minimum` (f*), `constants` (LossConstants)."""

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


@dataclass(frozen=True, eq=False)
class SquaredLoss:
    """f(W) = 1/2 ||Y - W||_F^2 for a target Y (n x m). f* = 0, mu = K = 1, gamma = 2.

    Raises InputError when Y is not a finite, non-empty real matrix.
    """

    Y: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "Y", as_matrix(self.Y, "Y"))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.Y.shape[0], self.Y.shape[1]

    @property
    def minimum(self) -> float:
        """f* = 0."""
        return 0.0

    @property
    def minimiser(self) -> np.ndarray:
        """W* = Y."""
        return self.Y

    @property
    def constants(self) -> LossConstants:
        """mu = K = 1, gamma = 2."""
        return LossConstants(gamma=2.0, dominance="quadratic", mu=1.0, K=1.0)

    def excess(self, W: Any) -> Any:
        """f(W) - f*; W may be a stack (..., n, m)."""
        residual = W - self.Y
        return 0.5 * (residual * residual).sum((-2, -1))

    def value(self, W: Any) -> Any:
        """f(W); W may be a stack (..., n, m)."""
        return self.excess(W)

    def gradient(self, W: Any) -> Any:
        """grad f(W) = W - Y."""
        return W - self.Y


class LeastSquares:
    """f(W) = 1/2 ||Y - X W||_F^2 for data X (rows x n), Y (rows x m), evaluated as f* + 1/2 ||R (W - W*)||_F^2.

    R^T R = X^T X and W* is the least-norm minimiser, so that after construction nothing depends on the number of
    rows, and f - f* is free of cancellation however small it gets.
    K = sigma_1(X)^2, gamma = 2 (least nonzero sigma(X))^2, mu = sigma_n(X)^2 with full column rank, else 0.
    Singular values below `rank_tolerance` sigma_1 (default max(rows, n) eps) count as zero.

    Raises InputError when X or Y is not a finite real matrix, X is zero, or their rows differ in number.
    """

    def __init__(self, X: Any, Y: Any, rank_tolerance: float | None = None) -> None:
        X = as_matrix(X, "X")
        Y = as_matrix(Y, "Y")
        if X.shape[0] != Y.shape[0]:
            raise InputError(f"Argument `Y` must have as many rows as `X` ({X.shape[0]}), but it has {Y.shape[0]}.")
        left, sigma, right = np.linalg.svd(X, full_matrices=False)
        tolerance = max(X.shape) * np.finfo(float).eps if rank_tolerance is None else rank_tolerance
        rank = int((sigma > tolerance * sigma[0]).sum())
        if rank == 0:
            raise InputError("Argument `X` must not be zero: the loss would not depend on the weights.")
        seen = left[:, :rank].T @ Y
        self._set(
            factor=sigma[:rank, None] * right[:rank],
            minimiser=right[:rank].T @ (seen / sigma[:rank, None]),
            minimum=0.5 * float(((Y - left[:, :rank] @ seen) ** 2).sum()),
        )

    def _set(self, factor: np.ndarray, minimiser: np.ndarray, minimum: float) -> None:
        self.factor, self.minimiser, self.minimum = factor, minimiser, minimum
        self.gram = factor.T @ factor

    @classmethod
    def from_factor(cls, factor: np.ndarray, minimiser: np.ndarray, minimum: float) -> LeastSquares:
        """The loss f* + 1/2 ||R (W - W*)||_F^2 itself, from R (full row rank), W* and f*."""
        loss = cls.__new__(cls)
        loss._set(as_matrix(factor, "factor"), as_matrix(minimiser, "minimiser"), float(minimum))
        return loss

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.minimiser.shape[0], self.minimiser.shape[1]

    @property
    def constants(self) -> LossConstants:
        """K = sigma_1^2, gamma = 2 sigma_r^2, mu = sigma_n^2 with full column rank r = n, else 0."""
        sigma = np.linalg.svd(self.factor, compute_uv=False)
        least = float(sigma[-1] ** 2)
        full = self.factor.shape[0] == self.shape[0]
        return LossConstants(gamma=2 * least, dominance="quadratic", mu=least if full else 0.0, K=float(sigma[0] ** 2))

    def excess(self, W: Any) -> Any:
        """f(W) - f*; W may be a stack (..., n, m)."""
        residual = self.factor @ (W - self.minimiser)
        return 0.5 * (residual * residual).sum((-2, -1))

    def value(self, W: Any) -> Any:
        """f(W); W may be a stack (..., n, m)."""
        return self.minimum + self.excess(W)

    def gradient(self, W: Any) -> Any:
        """grad f(W) = X^T (X W - Y) = X^T X (W - W*)."""
        return self.gram @ (W - self.minimiser)


BUILT_IN = (SquaredLoss, LeastSquares)


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
    if isinstance(loss, BUILT_IN):
        return np.asarray(loss.excess(products))
    return np.array([float(excess(loss, W)) for W in products])
