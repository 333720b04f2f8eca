"""Classification with labels +1 and -1: the exponential and the logistic loss, and how far the data are separable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_float_array, as_matrix, refuse_masked
from flowsim.errors import InputError, NumericalFailure
from flowsim.losses.base import BuiltIn, LossConstants
from flowsim.values import Array, frozen

SAME_MARGIN = 1e-9
"""Relative: two computations of a margin agree to this."""


def separation(Z: np.ndarray) -> tuple[float, np.ndarray]:
    """(margin, u): the greatest min_i z_i^T u over unit vectors u, z_i = y_i x_i the rows of Z; (0, 0) if none is > 0.

    The shortest w with Z w >= 1 comes from a nonnegative least squares problem (Lawson and Hanson, 1974, problem LDP);
    u = w / |w|. The margin is evaluated at the u that was found: it is never too large, whatever the solver's error.
    """
    from scipy.optimize import nnls

    size = float(np.abs(Z).max()) or 1.0
    stacked = np.vstack([Z.T / size, np.ones(len(Z))])
    right = np.append(np.zeros(Z.shape[1]), 1.0)
    try:
        weights, _ = nnls(stacked, right, maxiter=30 * max(stacked.shape))
    except RuntimeError as error:
        raise NumericalFailure("The separation margin of the data could not be computed: nnls did not end.") from error
    residual = stacked @ weights - right
    length = float(np.linalg.norm(residual[:-1]))
    if length == 0.0:
        return 0.0, np.zeros(Z.shape[1])
    u = residual[:-1] / length
    margin = float((Z @ u).min())
    return (margin, u) if margin > 0 else (0.0, np.zeros(Z.shape[1]))


class _Classification(BuiltIn):
    """Data X (rows x n) with labels (rows x m, m = 1 where y is a vector), and their separation margin."""

    def __init__(self, X: ArrayLike, y: ArrayLike) -> None:
        X = frozen(as_matrix(X, "X"))
        refuse_masked(y, "y")
        labels = as_float_array(np.asarray(y) * 1.0, "y")
        labels = labels[:, None] if labels.ndim == 1 else as_matrix(labels, "y")
        if len(labels) != len(X):
            raise InputError(f"Argument `y` must have as many rows as `X` ({len(X)}), but it has {len(labels)}.")
        if not (np.abs(labels) == 1.0).all():
            raise InputError(
                "Argument `y` must hold the labels -1 and +1 only, but it holds"
                f" {', '.join(f'{value:g}' for value in np.unique(labels)[:5])}; map the two classes to them."
            )
        self.X, self.labels = X, frozen(labels)
        margins = [separation(column[:, None] * X)[0] for column in labels.T]
        self.margin = float(np.sum([g**-2.0 for g in margins]) ** -0.5) if min(margins) > 0 else 0.0

    kept = ("X", "labels", "margin")
    data_parts: ClassVar[Mapping[str, str]] = {"X": "X", "y": "labels"}

    def check(self) -> None:
        """Refuse what the constructor refuses, and a margin that is not that of the data."""
        super().check()
        margin = type(self)(self.X, self.labels).margin
        if abs(margin - self.margin) > SAME_MARGIN * margin:
            raise InputError(f"Argument `margin` must be that of the data, {margin:g}, but it is {self.margin:g}.")

    def with_data(self, data: Mapping[str, Array]) -> Self:
        """The loss of other data or labels, of which no margin is known."""
        data = {name: array[:, None] if name == "y" and array.ndim == 1 else array for name, array in data.items()}
        return self.from_parts({**super().with_data(data).parts(), "margin": 0.0})

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.X.shape[1], self.labels.shape[1]

    @property
    def minimum(self) -> float | None:
        """f* = 0, approached and never attained, when the data are linearly separable; else None: not known."""
        return 0.0 if self.margin > 0 else None

    def value(self, W: Array) -> Array:
        """f(W); W may be a stack (..., n, m)."""
        return self.excess(W)

    def _margins(self, W: Array) -> Array:
        return self.labels * (self.X @ W)


class ExponentialLoss(_Classification):
    """f(W) = sum_ij exp(-y_ij x_i^T w_j) for data X (rows x n) and labels y_ij = +-1 (rows, or rows x m).

    On linearly separable data f* = 0 is not attained, and A1' holds: ||grad f||_F >= gamma (f - f*) with the separation
    margin gamma = max over ||U||_F = 1 of min_ij y_ij x_i^T u_j = (sum_j gamma_j^{-2})^{-1/2}, gamma_j that of column j
    ([MVM23], section 3.4). Without separability nothing is known: `constants` say so, f* is None.

    Raises InputError when X or y is not a finite real matrix, their rows differ in number, or a label is not +-1.

    The margin of the points (2, 0) and (0, 1), one class, is that of the unit vector (1, 2) / 5^(1/2); those of an XOR
    cannot be separated:

    >>> import flowsim as fs
    >>> loss = fs.ExponentialLoss([[2.0, 0.0], [0.0, 1.0]], [1, 1])
    >>> round(loss.margin, 9), round(2 / 5**0.5, 9), loss.minimum
    (0.894427191, 0.894427191, 0.0)
    >>> fs.ExponentialLoss([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], [1, 1, -1, -1]).minimum is None
    True
    """

    @property
    def constants(self) -> LossConstants:
        """gamma = the separation margin, "linear" dominance (A1'); neither without separability. K is unbounded."""
        return LossConstants(self.margin, "linear") if self.margin > 0 else LossConstants(None, None)

    def excess(self, W: Array) -> Array:
        """f(W): f* = 0 or not known; W may be a stack (..., n, m)."""
        with np.errstate(over="ignore", invalid="ignore"):
            margins = self._margins(W)
            return margins.__array_namespace__().exp(-margins).sum((-2, -1))

    def gradient(self, W: Array) -> Array:
        """grad f(W) = -X^T (y exp(-y X W)), entry by entry."""
        with np.errstate(over="ignore", invalid="ignore"):
            margins = self._margins(W)
            return -self.X.T @ (self.labels * margins.__array_namespace__().exp(-margins))

    def hessian_product(self, W: Array, V: Array) -> Array:
        """X^T (exp(-y X W) X V), entry by entry in the middle; labels square to 1."""
        with np.errstate(over="ignore", invalid="ignore"):
            margins = self._margins(W)
            return self.X.T @ (margins.__array_namespace__().exp(-margins) * (self.X @ V))


class LogisticLoss(_Classification):
    """f(W) = sum_ij log(1 + exp(-y_ij x_i^T w_j)) for data X (rows x n) and labels y_ij = +-1 (rows, or rows x m).

    No rate is proved for it: neither A1 nor A1' holds globally. It can be simulated. f* = 0 (not attained) on separable
    data, else None. K = sigma_1(X)^2 / 4.

    y: labels (rows x m), -1 or 1.
    Raises InputError as ExponentialLoss.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> loss = fs.LogisticLoss([[1.0, 0.5], [-1.0, 0.5]], [1, -1])
    >>> bool(np.isclose(loss.value(np.zeros((2, 1))), 2 * np.log(2))), round(loss.constants.K, 12)
    (True, 0.5)
    >>> fs.certify(fs.Problem(loss, fs.fan_out((2, 9, 1), seed=0)))["theorem-4"].reason
    "assumption A1' (||grad f||_F >= gamma (f - f*)) is not known for this loss"
    """

    @property
    def constants(self) -> LossConstants:
        """K only: no gradient dominance."""
        return LossConstants(None, None, K=float(np.linalg.norm(self.X, 2)) ** 2 / 4)

    def excess(self, W: Array) -> Array:
        """f(W): f* = 0 or not known; W may be a stack (..., n, m)."""
        margins = self._margins(W)
        return margins.__array_namespace__().logaddexp(0.0, -margins).sum((-2, -1))

    def gradient(self, W: Array) -> Array:
        """grad f(W) = -X^T (y / (1 + exp(y X W))), entry by entry."""
        margins = self._margins(W)
        xp = margins.__array_namespace__()
        return -self.X.T @ (self.labels * xp.exp(-xp.logaddexp(0.0, margins)))

    def hessian_product(self, W: Array, V: Array) -> Array:
        """X^T (X V / ((1 + exp(y X W)) (1 + exp(-y X W)))), entry by entry in the middle; labels square to 1."""
        margins = self._margins(W)
        xp = margins.__array_namespace__()
        return self.X.T @ (xp.exp(-xp.logaddexp(0.0, margins) - xp.logaddexp(0.0, -margins)) * (self.X @ V))
