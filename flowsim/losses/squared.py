"""Squared losses: of the product itself, of its predictions on data, and of the entries that are seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_matrix, as_number, refuse_masked
from flowsim.errors import InputError
from flowsim.losses.base import BuiltIn, LossConstants
from flowsim.losses.rows import Rows
from flowsim.values import Array, frozen, sealed

WELL_CONDITIONED = float(np.finfo(float).eps) ** 0.5
"""Below this quotient of singular values a minimiser has less than half of its digits."""


@dataclass(frozen=True, eq=False)
class SquaredLoss(BuiltIn):
    """f(W) = 1/2 ||Y - W||_F^2 for a target Y (n x m). f* = 0, mu = K = 1, gamma = 2.

    Raises InputError when Y is not a finite, non-empty real matrix.

    >>> import flowsim as fs
    >>> loss = fs.SquaredLoss([[1.0, 2.0], [3.0, 4.0]])
    >>> W = 0 * loss.minimiser
    >>> value, square = float(loss.value(W)), float((loss.gradient(W) ** 2).sum())
    >>> value, square, loss.constants.gamma * value  # A1 holds with equality
    (15.0, 30.0, 30.0)
    """

    Y: np.ndarray
    kept = ("Y",)
    data_parts: ClassVar[Mapping[str, str]] = {"Y": "Y"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "Y", frozen(as_matrix(self.Y, "Y")))

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

    def excess(self, W: Array) -> Array:
        """f(W) - f*; W may be a stack (..., n, m)."""
        residual = W - self.Y
        return 0.5 * (residual * residual).sum((-2, -1))

    def value(self, W: Array) -> Array:
        """f(W); W may be a stack (..., n, m)."""
        return self.excess(W)

    def gradient(self, W: Array) -> Array:
        """grad f(W) = W - Y."""
        return W - self.Y

    def hessian_product(self, W: Array, V: Array) -> Array:
        """V: the Hessian is the identity."""
        return V


class LeastSquares(BuiltIn):
    """f(W) = 1/2 ||Y - X W||_F^2 for data X (rows x n), Y (rows x m), evaluated as f* + 1/2 ||R W - S||_F^2.

    X, Y: matrices; a numpy.memmap or a scipy sparse matrix is read in blocks of 64 MiB, and never there as a whole.
    weights: of the rows, f(W) = 1/2 sum_i w_i |y_i - x_i W|^2, or "balanced": each class (rows with the same y) counts
    alike. centre: the (weighted) means of X and Y are taken off first, as if W had a constant beside it.

    With X = U Sigma V^T, of rank r, the factor is R = Sigma V^T (r x n) and S = U^T Y (r x m), what X sees of Y: after
    construction nothing depends on the number of rows. They come from the triangle of a QR decomposition of [X, Y].
    f - f* = 1/2 ||R W - S||_F^2 is a sum of squares, free of cancellation, and the gradient R^T (R W - S) needs no
    minimiser, whose digits an ill-conditioned X would take.

    Singular values of at most `rank_tolerance` sigma_1 (default max(rows, n) eps, what X's own rounding leaves of them)
    count as zero, in f and in f* alike: f is that of an X changed by at most rank_tolerance sigma_1 in the spectral
    norm, with the default by round-off of X W.
    K = sigma_1(X)^2, gamma = 2 (least nonzero sigma(X))^2, mu = sigma_n(X)^2 with full column rank, else 0.

    Raises InputError when X or Y is not a finite real matrix, X is zero, their rows differ in number, the tolerance is
    not in [0, 1), or the weights are not numbers >= 0, one a row and not all 0.

    Of the rows of the data only X^T X, X^T Y and ||Y||^2 count (but for minibatches, see `rows`):

    >>> import numpy as np
    >>> import flowsim as fs
    >>> X = np.array([[1.0, 1.0], [1.0, -1.0], [2.0, 0.0], [0.0, 2.0]])  # X^T X = 6 I
    >>> loss = fs.LeastSquares(X, [[3.0], [1.0], [4.0], [1.0]])
    >>> loss.minimiser.round(12).tolist(), round(loss.minimum, 12), loss.factor.shape
    ([[2.0], [0.666666666667]], 0.166666666667, (2, 2))
    >>> round(loss.constants.K, 12), round(loss.constants.mu, 12), round(loss.constants.gamma, 12)
    (6.0, 6.0, 12.0)
    """

    factor: np.ndarray
    seen: np.ndarray

    def __init__(
        self,
        X: Any,
        Y: Any,
        rank_tolerance: float | None = None,
        *,
        weights: ArrayLike | str | None = None,
        centre: bool = False,
    ) -> None:
        rows = Rows(X, Y, weights, centre)
        tolerance = max(rows.count, rows.n) * np.finfo(float).eps
        if rank_tolerance is not None:
            tolerance = as_number(rank_tolerance, "rank_tolerance", least=0.0, below=1.0)
        R = rows.triangle()
        top = min(rows.n, len(R))
        left, sigma, right = np.linalg.svd(R[:top, : rows.n], full_matrices=False)
        rank = int((sigma > tolerance * sigma[0]).sum())
        if rank == 0:
            raise InputError("Argument `X` must not be zero: the loss would not depend on the weights.")
        turned, unseen = R[:top, rows.n :], R[top:, rows.n :]  # Q^T Y, and what no column of X sees of Y
        seen = left[:, :rank].T @ turned
        missed = turned - left[:, :rank] @ seen
        vars(self).update(
            factor=sealed(sigma[:rank, None] * right[:rank]),
            seen=sealed(seen),
            minimum=0.5 * float((missed**2).sum() + (unseen**2).sum()),
        )
        self.keep_rows(rows)

    kept = ("factor", "seen", "minimum")

    @property
    def rows(self) -> Rows | None:
        """X and Y, for minibatches and label noise, which draw rows: no copies, they must not be changed. None where
        the loss was loaded without them."""
        found: Rows | None = vars(self).get("_rows")
        return found

    def keep_rows(self, rows: Rows) -> None:
        """Keep the data that the loss was made of, as `rows`."""
        vars(self)["_rows"] = rows

    data_parts: ClassVar[Mapping[str, str]] = {"X": "factor", "Y": "seen"}

    def check(self) -> None:
        """Refuse a negative f*."""
        super().check()
        as_number(self.minimum, "minimum", least=0.0)

    def with_data(self, data: Mapping[str, Array]) -> Self:
        """The loss of other data, as many rows as they have: R = X and S = Y, no singular value cut off, and f* = 0.

        Raises InputError unless both X (rows x n) and Y (rows x m) are there: the loss keeps neither.
        """
        X, Y = data.get("X"), data.get("Y")
        if X is None or Y is None:
            raise InputError("Argument `args` must have both X and Y: LeastSquares keeps no more of them than f needs.")
        n, m = self.shape
        if X.ndim != 2 or X.shape[1] != n or Y.shape != (len(X), m):
            raise InputError(
                f"Argument `args` must have X of shape (rows, {n}) and Y of shape (rows, {m}), but they are of shapes"
                f" {X.shape} and {Y.shape}."
            )
        return self.from_parts({**self.parts(), "factor": X, "seen": Y, "minimum": 0.0})

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Self:
        """The loss with these parts, unchecked; also with a minimiser W* in the place of S, which is then R W*."""
        if "seen" in parts:
            return super().from_parts(parts)
        factor = parts["factor"]
        return super().from_parts(
            {"factor": factor, "seen": factor @ parts["minimiser"], "minimum": parts["minimum"]}
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.factor.shape[1], self.seen.shape[1]

    @property
    def minimum(self) -> float:
        """f* = 1/2 ||Y - U U^T Y||_F^2."""
        return vars(self)["minimum"]

    @property
    def minimiser(self) -> np.ndarray | None:
        """W* = V Sigma^-1 S, of least norm, where sigma_r >= WELL_CONDITIONED sigma_1; else None: too few digits."""
        sigma = self._singular_values
        if sigma.min() < WELL_CONDITIONED * sigma.max():
            return None
        return self.factor.T @ (self.seen / sigma[:, None] ** 2)

    @property
    def constants(self) -> LossConstants:
        """K = sigma_1^2, gamma = 2 sigma_r^2, mu = sigma_n^2 with full column rank r = n, else 0; a remark if r < n."""
        sigma, n = self._singular_values, self.shape[0]
        least, greatest = float(sigma.min()), float(sigma.max())
        remark = None
        if len(sigma) < n:
            remark = f"X has rank {len(sigma)} of {n}: gamma is from its least nonzero singular value, {least:.3g}"
        elif least < WELL_CONDITIONED * greatest:
            remark = f"X is ill-conditioned: gamma is from its least singular value, {least / greatest:.1g} sigma_1"
        return LossConstants(
            gamma=2 * least**2,
            dominance="quadratic",
            mu=least**2 if len(sigma) == n else 0.0,
            K=greatest**2,
            remark=remark,
        )

    @property
    def _singular_values(self) -> np.ndarray:
        """sigma_1, ..., sigma_r: the rows of the factor are orthogonal, and these are their norms."""
        return np.linalg.norm(self.factor, axis=1)

    def excess(self, W: Array) -> Array:
        """f(W) - f*; W may be a stack (..., n, m)."""
        residual = _times(self.factor, W) - self.seen
        return 0.5 * (residual * residual).sum((-2, -1))

    def value(self, W: Array) -> Array:
        """f(W); W may be a stack (..., n, m)."""
        return self.minimum + self.excess(W)

    def gradient(self, W: Array) -> Array:
        """grad f(W) = X^T (X W - Y) = R^T (R W - S)."""
        return _times(self.factor.T, _times(self.factor, W) - self.seen)

    def hessian_product(self, W: Array, V: Array) -> Array:
        """X^T X V = R^T R V."""
        return _times(self.factor.T, _times(self.factor, V))


def _times(M: Array, W: Array) -> Array:
    """M W for a matrix M and each W of a stack (..., n, m), which is read as one matrix of many columns."""
    if W.ndim == 2:
        return M @ W
    rows = W.mT.reshape(-1, W.shape[-2]) @ M.T
    return rows.reshape(*W.shape[:-2], W.shape[-1], M.shape[0]).mT


class MaskedSquaredLoss(BuiltIn):
    """f(W) = 1/2 sum_ij M_ij (Y_ij - W_ij)^2 for a target Y (n x m) and weights M_ij >= 0: matrix completion.

    f* = 0, K = max M, gamma = 2 (least nonzero M), mu = min M. Where entries are not seen (M_ij = 0) mu = 0: A2 and
    all that needs a margin fail, and a minimiser is not unique; A1 still holds, since ||grad f||_F^2 =
    sum M_ij^2 (Y_ij - W_ij)^2 >= gamma f. What A1 does not give is recovery of the entries that are not seen.

    Raises InputError when the mask is negative, all zero or of another shape than Y, or Y is not finite where seen.

    The flow fits the three entries that are seen; what becomes of the fourth follows from the initial weights:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> loss = fs.MaskedSquaredLoss([[1.0, 2.0], [2.0, np.nan]], mask=[[1, 1], [1, 0]])
    >>> ends = [fs.simulate(fs.Problem(loss, fs.fan_in((2, 9, 2), seed=k)), t1=20.0).product_at(20.0) for k in (0, 1)]
    >>> ends[0].round(3).ravel()[:3].tolist(), ends[1].round(3).ravel()[:3].tolist()
    ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0])
    >>> bool(abs(ends[0][1, 1] - ends[1][1, 1]) > 0.1), loss.constants.gamma, loss.constants.mu
    (True, 2.0, 0.0)
    """

    def __init__(self, Y: ArrayLike, mask: ArrayLike) -> None:
        refuse_masked(mask, "mask")
        refuse_masked(Y, "Y")
        self.mask = frozen(as_matrix(np.asarray(mask) * 1.0, "mask"))
        if self.mask.shape != np.shape(Y):
            raise InputError(f"Argument `mask` must have the shape of `Y`, {np.shape(Y)}, but has {self.mask.shape}.")
        if (self.mask < 0).any() or not self.mask.any():
            raise InputError("Argument `mask` must be nonnegative and not all zero: it weighs the entries that count.")
        self.Y = frozen(as_matrix(np.where(self.mask > 0, Y, 0.0), "Y"))

    kept = ("mask", "Y")
    data_parts: ClassVar[Mapping[str, str]] = {"Y": "Y", "mask": "mask"}

    def check(self) -> None:
        """Refuse what the constructor refuses."""
        super().check()
        MaskedSquaredLoss(self.Y, self.mask)

    def with_data(self, data: Mapping[str, Array]) -> Self:
        """The loss of another target or mask; what Y holds where it is not seen does not count, NaN neither."""
        if "Y" in data:
            Y, mask = data["Y"], data.get("mask", self.mask)
            data = {**data, "Y": Y.__array_namespace__().where(mask > 0, Y, 0.0)}
        return super().with_data(data)

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
        """W* = Y, the only one when every entry is seen."""
        return self.Y

    @property
    def constants(self) -> LossConstants:
        """K = max M, gamma = 2 (least nonzero M), mu = min M."""
        least = float(self.mask[self.mask > 0].min())
        return LossConstants(2 * least, "quadratic", mu=float(self.mask.min()), K=float(self.mask.max()))

    def excess(self, W: Array) -> Array:
        """f(W) - f*; W may be a stack (..., n, m)."""
        residual = W - self.Y
        return 0.5 * (self.mask * residual * residual).sum((-2, -1))

    def value(self, W: Array) -> Array:
        """f(W); W may be a stack (..., n, m)."""
        return self.excess(W)

    def gradient(self, W: Array) -> Array:
        """grad f(W)_ij = M_ij (W_ij - Y_ij)."""
        return self.mask * (W - self.Y)

    def hessian_product(self, W: Array, V: Array) -> Array:
        """M_ij V_ij."""
        return self.mask * V
