"""The Hessian of L at one point, on the few coordinates in which its image lies.

With A_l = W_1 .. W_{l-1} (r x h_{l-1}) and M_l (r x h_l), gradients are G_l = A_l^T M_l, and a derivative of G_l is
dA_l^T M_l + A_l^T dM_l: whatever the direction, it lies in {Q_l N_l + P_l B_l}, where Q_l has an orthonormal basis of
the columns of A_l^T, B_l one of the rows of M_l, and Q_l^T P_l = 0. (N_l, P_l) are coordinates in which lengths are
those of the weights. The Hessian is symmetric: it vanishes on what is orthogonal to its image. One product reads each
W_l twice, a gradient's work, whatever the width; the weights' own directions are never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flowsim.losses import StackedLoss
from flowsim.network.functions import flipped, is_flipped, swept, unflatten


class Layer(NamedTuple):
    """W_l with A_l^T = Q R and M_l = S B, both of orthonormal Q and B."""

    W: np.ndarray
    M: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    S: np.ndarray
    B: np.ndarray


class Tangent:
    """Hess L at the weights of a network with layers of sizes dims, without weight decay."""

    work = 1
    """Of a product, in gradients."""

    def __init__(self, loss: StackedLoss, weights: Sequence[np.ndarray], dims: Sequence[int], scale: float) -> None:
        self.loss, self.dims, self.scale, self.flipped = loss, tuple(dims), scale, is_flipped(weights)
        self.product, factors = swept(loss, weights, scale)
        self.first = factors[0][1]
        self.layers: list[Layer] = []
        for W, (A, M) in zip(self._in_order(weights)[1:], factors[1:], strict=True):
            assert A is not None
            (Q, R), (B, S) = np.linalg.qr(A), np.linalg.qr(M.T)
            self.layers.append(Layer(W, M, Q, R, S.T, B.T))
        self.shapes = [self.first.shape]
        for layer in self.layers:
            self.shapes += [(layer.Q.shape[1], layer.W.shape[1]), (layer.W.shape[0], layer.B.shape[0])]
        self.ends = np.cumsum([0, *(a * b for a, b in self.shapes)])

    def _in_order(self, matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
        """From the network's order to that of the sweep, which carries min(n, m) rows, or back."""
        return flipped(matrices) if self.flipped else list(matrices)

    def _parts(self, z: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """N_1 and (N_l, P_l), l = 2 .. L, as views of coordinates."""
        first, *rest = (
            z[a:b].reshape(shape) for a, b, shape in zip(self.ends, self.ends[1:], self.shapes, strict=False)
        )
        return first, list(zip(rest[::2], rest[1::2], strict=True))

    def gradient(self) -> np.ndarray:
        """The coordinates of the gradient: R M and 0."""
        z = np.zeros(self.ends[-1])
        first, parts = self._parts(z)
        first[...] = self.first
        for layer, (N, _) in zip(self.layers, parts, strict=True):
            np.matmul(layer.R, layer.M, out=N)
        return z

    def coordinates(self, direction: np.ndarray) -> np.ndarray:
        """Those of the nearest direction that has any."""
        first, *later = self._in_order(unflatten(direction, self.dims))
        z = np.empty(self.ends[-1])
        head, parts = self._parts(z)
        head[...] = first
        for V, layer, (N, P) in zip(later, self.layers, parts, strict=True):
            N[...] = layer.Q.T @ V
            across = V @ layer.B.T
            P[...] = across - layer.Q @ (layer.Q.T @ across)
        return z

    def lifted(self, z: np.ndarray) -> np.ndarray:
        """The direction with these coordinates."""
        out = np.empty(sum(a * b for a, b in pairwise(self.dims)))
        first, parts = self._parts(z)
        head, *later = self._in_order(unflatten(out, self.dims))
        head[...] = first
        for V, layer, (N, P) in zip(later, self.layers, parts, strict=True):
            left, right = np.hstack([layer.Q, P]), np.vstack([N, layer.B])
            if self.flipped:
                np.matmul(right.T, left.T, out=V.T)
            else:
                np.matmul(left, right, out=V)
        return out

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """Hess L times the direction with coordinates z, in coordinates."""
        first, parts = self._parts(z)
        result = np.empty_like(z)
        head, found = self._parts(result)
        changes = [first]
        for layer, (N, _) in zip(self.layers, parts, strict=True):
            changes.append(changes[-1] @ layer.W + layer.R.T @ N)
        end = self.scale * changes.pop()
        dW = end.T if self.flipped else end
        change = self.scale * self._in_order([self.loss.hessian_product(self.product, dW)])[0]
        for dA, layer, (N, P), (N1, P1) in zip(
            reversed(changes), reversed(self.layers), reversed(parts), reversed(found), strict=True
        ):
            N1[...] = (dA @ layer.Q).T @ layer.M + layer.R @ change
            across = dA.T @ layer.S
            P1[...] = across - layer.Q @ (layer.Q.T @ across)
            change = change @ layer.W.T + (layer.M @ N.T) @ layer.Q.T + layer.S @ P.T
        head[...] = change
        return result
