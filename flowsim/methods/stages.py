"""The stages of an explicit Runge-Kutta step: full vectors, or matrices of low rank that are never formed.

Every gradient is G_l = A_l^T M_l, with A_l = W_1 .. W_{l-1} (r x h_{l-1}) and M_l (r x h_l) for a product with
r = min(n, m) rows or columns. Between the ends of a step a layer is therefore W_l + sum_j w_j A_lj^T (-M_lj), j over
the stages: applied to r rows it costs one product with W_l and two with thin matrices, and what a stage leaves behind
are its A_l and M_l. Any combination of stages is a vector of weights w: a stage, an error estimate, dense output.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from flowsim.dynamics import Motion
from flowsim.methods.steps import Counts
from flowsim.network import flipped, gradient_factors, swept, unflatten
from flowsim.network.moved import Moved


class Stages(Protocol):
    """K_0, K_1, ...: the velocities at states of one step; combinations of them are vectors of weights."""

    base: np.ndarray
    """The state that the step starts from."""

    def begin(self, t: float, base: np.ndarray) -> np.ndarray | None:
        """K_0 = F(t, base), the first of a new step; the product W there, None where it does not come with it."""

    def add(self, i: int, t: float, weights: np.ndarray) -> np.ndarray | None:
        """K_i = F(t, base + sum_j weights_j K_j), weights (i or fewer); the product W there, or None."""

    def shift(self, i: int, base: np.ndarray) -> None:
        """The first of a new step that starts where K_i was taken, at the state `base`: K_i becomes K_0."""

    def combined(self, weights: np.ndarray) -> np.ndarray:
        """(R, size): sum_j weights_rj K_j for weights (R, J)."""

    def powers(self, times: np.ndarray) -> np.ndarray:
        """(J): the power of K_0 .. K_{J-1}, at these times (J)."""

    def layers(self, weights: np.ndarray) -> list[np.ndarray | Moved] | None:
        """The layers of base + sum_j weights_sj K_j for weights (S, J), each a stack; None where they are no cheaper
        than the states themselves."""


class FullStages:
    """Each K_i as a vector."""

    def __init__(self, motion: Motion, count: int, size: int, counts: Counts) -> None:
        self.motion, self.counts, self.dims = motion, counts, motion.problem.network.dims
        self.K = np.empty((count, size))
        self.slopes = [unflatten(K, self.dims) for K in self.K]

    def begin(self, t: float, base: np.ndarray) -> np.ndarray | None:
        self.base = base
        return self._evaluated(0, t, base)

    def add(self, i: int, t: float, weights: np.ndarray) -> np.ndarray | None:
        state = weights @ self.K[: len(weights)]
        state += self.base
        return self._evaluated(i, t, state)

    def _evaluated(self, i: int, t: float, state: np.ndarray) -> np.ndarray | None:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + 1
        if not self.motion.is_plain:
            self.K[i] = self.motion.velocity(t, state)
            return None
        problem = self.motion.problem
        W, factors = gradient_factors(problem.stacked_loss, unflatten(state, self.dims), problem.network.scale)
        for (left, right), K in zip(factors, self.slopes[i], strict=True):
            if left is None or right is None:
                np.negative(np.asarray(right if left is None else left), out=K)
            else:
                np.matmul(left, -right, out=K)
        return W

    def shift(self, i: int, base: np.ndarray) -> None:
        self.base = base
        self.K[0] = self.K[i]

    def combined(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.K[: weights.shape[1]]

    def powers(self, times: np.ndarray) -> np.ndarray:
        return self.motion.power(times, self.K[: len(times)])

    def layers(self, weights: np.ndarray) -> None:
        return None


class ThinStages:
    """Each K_i as its factors, for gradient flow without weight decay.

    Layers in the order of the sweep, which carries matrices with r rows: transposed, last first, where n > m. left[l]
    (J r x h_{l-1}) and right[l] (J r x h_l) hold A_l and -M_l of stage j in their rows j r .. (j + 1) r - 1. The first
    layer has r rows itself: its K are `first` (J, r, h_1).
    """

    def __init__(self, motion: Motion, count: int, counts: Counts) -> None:
        self.problem, self.counts = motion.problem, counts
        dims = motion.problem.network.dims
        self.flipped = dims[0] > dims[-1]
        self.dims = dims[::-1] if self.flipped else dims
        self.rows = self.dims[0]
        inner = self.dims[1:]
        self.first = np.empty((count, self.rows, self.dims[1]))
        self.left = [np.empty((count * self.rows, h)) for h in inner[:-1]]
        self.right = [np.empty((count * self.rows, h)) for h in inner[1:]]

    def begin(self, t: float, base: np.ndarray) -> np.ndarray:
        self._stand(base)
        return self.add(0, t, np.zeros(0))

    def _stand(self, base: np.ndarray) -> None:
        self.base, self.W = base, self._in_order(unflatten(base, self.problem.network.dims))

    def _in_order(self, layers: Sequence[Any]) -> list[Any]:
        """From the network's order to the sweep's, or back."""
        return flipped(layers) if self.flipped else list(layers)

    def shift(self, i: int, base: np.ndarray) -> None:
        self._stand(base)
        r = self.rows
        self.first[0] = self.first[i]
        for M in (*self.left, *self.right):
            M[:r] = M[i * r : (i + 1) * r]

    def add(self, i: int, t: float, weights: np.ndarray) -> np.ndarray:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + 1
        problem, block = self.problem, slice(i * self.rows, (i + 1) * self.rows)
        W, ((_, first), *later) = swept(problem.stacked_loss, self._layers(weights), problem.network.scale)
        np.negative(first, out=self.first[i])
        for left, right, (A, M) in zip(self.left, self.right, later, strict=True):
            assert A is not None
            left[block] = A.mT
            np.negative(M, out=right[block])
        return W

    def combined(self, weights: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(weights.any(axis=0))
        out = np.zeros((len(weights), self.base.size))
        if not len(used):
            return out
        layers = self._in_order(unflatten(out, self.problem.network.dims))
        r = self.rows
        layers[0][...] = np.tensordot(weights[:, used], self.first[used], axes=1)
        for layer, left, right in zip(layers[1:], self.left, self.right, strict=True):
            P, Q = self._of_stages(left, used), self._of_stages(right, used)
            for w, target in zip(weights[:, used], layer, strict=True):
                scaled = np.repeat(w, r)[:, None] * Q
                if self.flipped:
                    np.matmul(scaled.T, P, out=target.T)
                else:
                    np.matmul(P.T, scaled, out=target)
        return out

    def powers(self, times: np.ndarray) -> np.ndarray:
        """||A^T M||_F^2 = <A A^T, M M^T>, sums of squares of all stages."""
        count, r = len(times), self.rows
        found = np.einsum("jab,jab->j", self.first[:count], self.first[:count])
        for left, right in zip(self.left, self.right, strict=True):
            A, M = (X[: count * r].reshape(count, r, -1) for X in (left, right))
            found += np.einsum("jab,jab->j", A @ A.mT, M @ M.mT)
        return found

    def _of_stages(self, M: np.ndarray, used: np.ndarray) -> np.ndarray:
        """The rows of some stages."""
        return M.reshape(-1, self.rows, M.shape[-1])[used].reshape(-1, M.shape[-1])

    def layers(self, weights: np.ndarray) -> list[np.ndarray | Moved]:
        used = np.union1d(0, np.flatnonzero(weights.any(axis=0)))
        thin = [[self._of_stages(M, used) for M in side] for side in (self.left, self.right)]
        return self._moved(weights[:, used], self.first[used], *thin)

    def _layers(self, weights: np.ndarray) -> list[np.ndarray | Moved]:
        """Those of base + sum_j weights_j K_j."""
        count = len(weights)
        if not count:
            return self._in_order(self.W)
        thin = [[M[: count * self.rows] for M in side] for side in (self.left, self.right)]
        return self._moved(weights, self.first[:count], *thin)

    def _moved(
        self, weights: np.ndarray, first: np.ndarray, lefts: list[np.ndarray], rights: list[np.ndarray]
    ) -> list[np.ndarray | Moved]:
        """The layers moved by stages with these weights, or by a stack of such."""
        c = np.repeat(weights, self.rows, axis=-1)
        moved = (weights @ first.reshape(len(first), -1)).reshape(*weights.shape[:-1], *first.shape[1:])
        pairs = zip(self.W[1:], lefts, rights, strict=True)
        return self._in_order([self.W[0] + moved, *(Moved(W, left, right, c) for W, left, right in pairs)])


def stages_for(motion: Motion, count: int, size: int, counts: Counts) -> Stages:
    """Thin stages where they cost less than full ones, by the operations of a step with `count` stages."""
    if motion.is_plain and is_thin(motion.problem.network.dims, count):
        return ThinStages(motion, count, counts)
    return FullStages(motion, count, size, counts)


LEAST_THIN = 20_000
"""With fewer weights than this a stage costs what Python costs."""


def is_thin(dims: Sequence[int], count: int) -> bool:
    """Whether thin matrices of `count` stages are small beside the layers: half of them, on the average of a step, are
    multiplied twice, in place of forming a gradient and combining stages."""
    r = min(dims[0], dims[-1])
    size = sum(a * b for a, b in pairwise(dims))
    inner = dims[1:] if dims[0] <= dims[-1] else dims[:-1]
    thin = sum(a + b for a, b in pairwise(inner)) * r * count / 2
    return size >= LEAST_THIN and thin <= size
