"""Functions of a list of weights: the product, its gradients and their derivative, imbalance.

They use matrix products, transposes and sums only: they serve NumPy and jax arrays alike, and stacks (..., rows,
columns) of weights where all layers are stacked alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from flowsim.losses import StackedLoss
from flowsim.values import Array


def product(weights: Sequence[Array], scale: float = 1.0) -> Array:
    """scale W_1 ... W_L, multiplied from the thinner end."""
    if weights[0].shape[-2] <= weights[-1].shape[-1]:
        result = weights[0]
        for W in weights[1:]:
            result = result @ W
    else:
        result = weights[-1]
        for W in reversed(weights[:-1]):
            result = W @ result
    return scale * result


def backpropagate(loss: StackedLoss, weights: Sequence[Array], scale: float = 1.0) -> tuple[Array, list[Array]]:
    """The product W and the gradients G_l = scale A_l^T grad f(W) B_l^T, each shared product formed once."""
    W, factors = gradient_factors(loss, weights, scale)
    return W, [right if left is None else left if right is None else left @ right for left, right in factors]


def gradient_factors(
    loss: StackedLoss, weights: Sequence[Array], scale: float = 1.0
) -> tuple[Array, list[tuple[Array | None, Array | None]]]:
    """The product W and factors (P, Q) of the gradients G_l = P Q, of rank min(n, m); None stands for the identity."""
    W, factors = swept(loss, weights, scale)
    if not is_flipped(weights):
        return W, list(factors)
    return W, [(right.mT, None if left is None else left.mT) for left, right in reversed(factors)]


def is_flipped(weights: Sequence[Array]) -> bool:
    """Whether a sweep takes the network as its transpose, so that it carries matrices with min(n, m) rows: n > m."""
    return weights[0].shape[-2] > weights[-1].shape[-1]


def flipped(matrices: Sequence[Array]) -> list[Array]:
    """The layers of the transpose."""
    return [M.mT for M in reversed(matrices)]


def swept(
    loss: StackedLoss, weights: Sequence[Array], scale: float = 1.0
) -> tuple[Array, list[tuple[Array | None, Array]]]:
    """The product W and factors (A_l^T, M_l) of the gradients, A_1 = None the identity; where is_flipped those of the
    transpose, in its order."""
    if not is_flipped(weights):
        return _sweep(loss.gradient, weights, scale)
    W, factors = _sweep(lambda P: loss.gradient(P.mT).mT, flipped(weights), scale)
    return W.mT, factors


def _sweep(
    gradient: Callable[[Array], Array], weights: Sequence[Array], scale: float
) -> tuple[Array, list[tuple[Array | None, Array]]]:
    prefixes = [weights[0]]
    for W in weights[1:]:
        prefixes.append(prefixes[-1] @ W)
    end = scale * prefixes.pop()
    message = scale * gradient(end)
    factors: list[tuple[Array | None, Array]] = []
    for prefix, W in zip(reversed(prefixes), reversed(weights[1:]), strict=True):
        factors.append((prefix.mT, message))
        message = message @ W.mT
    factors.append((None, message))
    return end, factors[::-1]


def hessian_product(
    loss: StackedLoss, weights: Sequence[Array], directions: Sequence[Array], scale: float = 1.0
) -> list[Array]:
    """The derivative of the gradients G_1 .. G_L in the directions V_1 .. V_L: the Hessian of L times V.

    dG_l = dA_l^T M_l + A_l^T dM_l with M_l = scale E B_l^T, E = grad f(W), dE = loss.hessian_product(W, dW). The
    directions may be stacks (..., rows, columns), the weights one point; the Jacobian of gradient flow is minus this.
    """
    if weights[0].shape[-2] <= weights[-1].shape[-1]:
        return _sweep_tangent(loss.gradient, loss.hessian_product, weights, directions, scale)
    return flipped(
        _sweep_tangent(
            lambda P: loss.gradient(P.mT).mT,
            lambda P, V: loss.hessian_product(P.mT, V.mT).mT,
            flipped(weights),
            flipped(directions),
            scale,
        )
    )


def _sweep_tangent(
    gradient: Callable[[Array], Array],
    curvature: Callable[[Array, Array], Array],
    weights: Sequence[Array],
    directions: Sequence[Array],
    scale: float,
) -> list[Array]:
    prefixes, changes = [weights[0]], [directions[0]]
    for W, V in zip(weights[1:], directions[1:], strict=True):
        changes.append(changes[-1] @ W + prefixes[-1] @ V)
        prefixes.append(prefixes[-1] @ W)
    end, end_change = scale * prefixes.pop(), scale * changes.pop()
    message, change = scale * gradient(end), scale * curvature(end, end_change)
    result = []
    for A, dA, W, V in zip(*map(reversed, (prefixes, changes, weights[1:], directions[1:])), strict=True):
        result.append(dA.mT @ message + A.mT @ change)
        message, change = message @ W.mT, change @ W.mT + message @ V.mT
    result.append(change)
    return result[::-1]


def flatten(weights: Sequence[Array]) -> Array:
    """All weights as one vector, layer after layer, each in row-major order; of stacks of weights a stack."""
    return np.concatenate([W.reshape(*W.shape[:-2], -1) for W in weights], axis=-1)


def unflatten(vector: Array, dims: Sequence[int]) -> list[Array]:
    """The weights of `flatten`, as views of the vector; of a stack of vectors, stacks of weights."""
    weights, start = [], 0
    for rows, columns in itertools.pairwise(dims):
        weights.append(vector[..., start : start + rows * columns].reshape(*vector.shape[:-1], rows, columns))
        start += rows * columns
    return weights


def imbalance(weights: Sequence[np.ndarray], layer: int) -> np.ndarray:
    """D_l = W_l^T W_l - W_{l+1} W_{l+1}^T (h_l x h_l), l = layer = 1 .. L-1; conserved by gradient flow."""
    left, right = weights[layer - 1], weights[layer]
    return left.T @ left - right @ right.T


THIN = 16
"""A change of D_l whose rank is below 1 / THIN of its size is taken in a basis."""


def imbalance_change(
    initial: Sequence[np.ndarray], changes: Sequence[np.ndarray], probes: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """||D_l(t) - D_l(0)||_F, l = 1 .. L-1, from W_l(0) and W_l(t) - W_l(0) (or stacks of these): shape (..., L-1).

    The change of W_l^T W_l is X + X^T with X = C^T (W_l(0) + C / 2), C the change of W_l: no large terms cancel.
    probes: signs Z_l (h_l x k); then it is estimated, (||(change of D_l) Z_l||_F^2 / k)^(1/2).
    """
    norms = []
    for place, (W, C, V, B) in enumerate(zip(initial, changes, initial[1:], changes[1:], strict=False)):
        if probes is not None:
            Z = probes[place]
            norms.append(np.linalg.norm(probed_change(W, C, V, B, Z), axis=(-2, -1)) / Z.shape[-1] ** 0.5)
            continue
        left, right = np.concatenate([C.mT, -V - 0.5 * B], axis=-1), np.concatenate([W + 0.5 * C, B.mT], axis=-2)
        if left.shape[-2] > THIN * left.shape[-1]:  # left right has a small rank: it is small in a basis of both
            Q = np.linalg.qr(np.concatenate([left, right.mT], axis=-1))[0]
            left, right = Q.mT @ left, right @ Q
        half = left @ right
        norms.append(np.linalg.norm(half + half.mT, axis=(-2, -1)))
    return np.stack(norms, axis=-1)


def changed(W: Array, C: Array, V: Array, B: Array) -> Array:
    """The change of D_l = W^T W - V V^T where W changes by C and V by B: X + X^T, X = C^T (W + C/2) - (V + B/2) B^T."""
    half = C.mT @ (W + 0.5 * C) - (V + 0.5 * B) @ B.mT
    return half + half.mT


def probed_change(W: Array, C: Array, V: Array, B: Array, Z: Array) -> Array:
    """(the change of D_l) Z, as `changed`, with products by thin matrices alone."""
    return change_of_square(W, C, Z) - change_of_square(V.mT, B.mT, Z)


def change_of_square(W: Array, C: Array, Z: Array) -> Array:
    """(the change of W^T W by a change C of W) Z = C^T (W Z + C Z) + W^T (C Z): products by thin matrices alone."""
    moved = C @ Z
    return C.mT @ (W @ Z + moved) + W.mT @ moved


SAFE = 1e100
"""Squares of numbers between 1 / SAFE and SAFE, and sums of them, neither overflow nor underflow to what matters."""


def joint_norm(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """(sum_l ||G_l||_F^2)^(1/2) of arrays, or of stacks (..., rows, columns) of them, where squares underflow too.

    Where they might, the entries are scaled by a power of two first, which changes no digit.
    """
    greatest = np.max([np.maximum(G.max((-2, -1)), -G.min((-2, -1))) for G in matrices], axis=0)
    if ((greatest > 1 / SAFE) & (greatest < SAFE)).all():
        return np.sqrt(sum(np.einsum("...ij,...ij->...", G, G) for G in matrices))
    exponent = np.where(np.isfinite(greatest), np.frexp(greatest)[1], 0)
    scaled = (np.ldexp(G, -exponent[..., None, None]) for G in matrices)
    return np.ldexp(np.sqrt(sum((G * G).sum((-2, -1)) for G in scaled)), exponent)
