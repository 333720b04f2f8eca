"""The stochastic flow of descent with batches or label noise, and the noise of a gradient as sums of rank one.

The gradient that a step takes is grad f + N, N of mean 0. Its covariance is that of sum_i beta_i N_i with independent
standard normal beta_i and N_i = u_i v_i^T (n x m): of label noise sigma x_j e_k^T for the rows x_j of the data and the
unit vectors e_k; of a batch of B of N samples, drawn without replacement, c (g_i - mean g) with the samples' gradients
g_i = x_i d_i^T and c^2 = N (N - B) / (B (N - 1)). Label noise on a batch counts N / B times.

Layers see N as G_l = A_l^T N B_l^T, and W_l^T G_l = G_{l+1} W_{l+1}^T for any N: in the change of D_l the noise itself
cancels, and its square stays, of mean

    Q_l = sum_i B_l v_i |A_l^T u_i|^2 v_i^T B_l^T - A_{l+1}^T u_i |B_{l+1} v_i|^2 u_i^T A_{l+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from flowsim.checks import as_count, as_number
from flowsim.errors import InputError
from flowsim.losses import LeastSquares, Loss
from flowsim.losses.samples import DataRows, Entries, Samples, samples_of
from flowsim.methods.jax_support import Tree
from flowsim.values import Array


@dataclass(frozen=True)
class StochasticFlow:
    """dW_l = -(dL/dW_l + x W_l) dt + step_size^(1/2) A_l^T dN B_l^T (Ito): descent with batches or label noise, nearly.

    The noise dN of the gradient of f has the covariance that a step of GradientDescent(step_size, batch_size=,
    label_noise=) has where each batch is drawn from all samples (see flowsim.stochastic.flow); after k steps descent is
    near the time k step_size, weakly of first order in step_size (Li, Tai and E, "Stochastic modified equations and
    adaptive stochastic gradient algorithms", ICML 2017, Theorem 1). x is the weight decay of the problem; A_l = W_1 ...
    W_{l-1}, B_l = W_{l+1} ... W_L.

    The noise itself leaves every D_l alone: without decay dD_l/dt = step_size Q_l(W) along every path, and only through
    W does that depend on chance. (Descent has G_l^T G_l - G_{l+1} G_{l+1}^T of the mean gradient beside Q_l, also of
    order step_size, which a flow of first order does not see.)

    Raises InputError unless step_size > 0, batch_size >= 1 and label_noise >= 0, with one of these two given.

    >>> import flowsim as fs
    >>> fs.StochasticFlow(0.01, label_noise=0.5)
    StochasticFlow(step_size=0.01, batch_size=None, label_noise=0.5)
    """

    step_size: float
    batch_size: int | None = None
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        as_number(self.step_size, "step_size", above=0.0)
        if self.batch_size is not None:
            as_count(self.batch_size, "batch_size")
        as_number(self.label_noise, "label_noise", least=0.0)
        if self.batch_size is None and not self.label_noise:
            raise InputError("Argument `label_noise` or `batch_size` must be given, or there is no noise.")


class Noise(NamedTuple):
    """What the noise of a gradient is made of, on a batch of `size` of the samples; arrays are traced.

    U, V: of label noise (q, n) and (q, m), empty where there is none; X, Y: rows with labels, or a mask and a target
    where the samples are its entries, `seen` their places in them; empty where all samples are in every batch.
    """

    U: Array
    V: Array
    X: Array
    Y: Array
    seen: Array
    factor: Array

    def terms(self, kind: Any, W: Array) -> list[tuple[Array, Array, Array | None]]:
        """(U, V, mean): sums of u_i v_i^T beta_i, less mean times the sum of beta where it is not None; kind: of the
        loss of the samples, None where they are entries."""
        found: list[tuple[Array, Array, Array | None]] = []
        if self.U.size:
            found.append((self.U, self.V, None))
        if self.X.size:
            left, right = self._of_batches(kind, W)
            count = len(left)
            left = self.factor * left
            found.append((left, right, left.T @ right / count))
        return found

    def _of_batches(self, kind: Any, W: Array) -> tuple[Array, Array]:
        """Left and right vectors of the gradients of the samples."""
        import jax
        import jax.numpy as jnp

        if kind is None:
            n, m = W.shape
            rows, columns = jnp.divmod(self.seen, m)
            values = (self.X * (W - self.Y)).ravel()[self.seen]
            return values[:, None] * jax.nn.one_hot(rows, n, dtype=W.dtype), jax.nn.one_hot(columns, m, dtype=W.dtype)
        names = ("factor", "seen") if kind is LeastSquares else ("X", "labels")
        other = {"minimum": 0.0} if kind is LeastSquares else {"margin": 0.0}

        def derivative(label: Array, prediction: Array) -> Array:
            one = {names[0]: jnp.ones((1, 1), W.dtype), names[1]: label[None], **other}
            return kind.from_parts(one).gradient(prediction[None])[0]

        return self.X, jax.vmap(derivative)(self.Y, self.X @ W)


def noise_of(loss: Loss, batch_size: int | None, label_noise: float) -> tuple[Any, Noise]:
    """(kind, noise) of a loss. Raises InputError where it has no samples, fewer than batch_size, or labels of +-1."""
    samples = samples_of(loss, label_noise > 0)
    count = samples.count
    if batch_size is not None and batch_size > count:
        raise InputError(
            f"Argument `batch_size` must be at most {count}, the number of samples, but it is {batch_size}."
        )
    size = count if batch_size is None else batch_size
    factor = np.sqrt(count * (count - size) / (size * max(count - 1, 1)))
    U, V = _of_labels(samples, loss, label_noise * np.sqrt(count / size))
    X, Y, seen = np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0, int)
    if size < count:
        X, Y = (samples.mask, samples.Y) if isinstance(samples, Entries) else _told(samples)
    if isinstance(samples, Entries):
        seen = samples.seen
    return None if isinstance(samples, Entries) else samples.kind, Noise(U, V, X, Y, seen, np.array(factor))


def _told(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(samples, DataRows)
    return samples.rows.take(slice(None))


def _of_labels(samples: Samples, loss: Loss, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """U (q, n), V (q, m) of label noise."""
    n, m = loss.shape
    if not sigma:
        return np.zeros((0, n)), np.zeros((0, m))
    rows = loss.factor if isinstance(loss, LeastSquares) else np.eye(n)  # X^T X = R^T R: as good as the rows
    left, right = np.repeat(rows, m, axis=0), np.tile(np.eye(m), (len(rows), 1))
    if isinstance(samples, Entries):
        left = left * samples.mask.ravel()[:, None]
    return sigma * left, right


def applied(terms: Sequence[tuple[Array, Array, Array | None]], normals: Sequence[Array]) -> Array:
    """sum_i beta_i N_i of all terms (n x m)."""
    total: Array = 0.0
    for (U, V, mean), beta in zip(terms, normals, strict=True):
        total = total + U.T @ (beta[:, None] * V) - (0.0 if mean is None else beta.sum() * mean)
    return total


def squares(terms: Sequence[tuple[Array, Array, Array | None]], A: Sequence[Array], B: Sequence[Array]) -> list[Array]:
    """Q_l, l = 1 .. L-1, for the factors A_l (n x h_{l-1}), B_l (h_l x m) of the layers."""
    found: list[Array] = []
    for (left, right), (before, after) in zip(pairwise(A), pairwise(B), strict=True):
        Q: Array = 0.0
        for U, V, mean in terms:
            Q = Q + _square(U, V, (left, right), (before, after))
            if mean is not None:  # sum_i (g_i - mean)^2 = sum_i g_i^2 - count mean^2
                G, H = left.T @ mean @ before.T, right.T @ mean @ after.T
                Q = Q - len(U) * (G.T @ G - H @ H.T)
        found.append(Q)
    return found


def _square(U: Array, V: Array, A: tuple[Array, Array], B: tuple[Array, Array]) -> Array:
    """sum_i B v_i |A^T u_i|^2 v_i^T B^T - A'^T u_i |B' v_i|^2 u_i^T A'."""
    seen, moved = V @ B[0].T, U @ A[1]
    weigh, weighed = ((U @ A[0]) ** 2).sum(1), ((V @ B[1].T) ** 2).sum(1)
    return seen.T @ (weigh[:, None] * seen) - moved.T @ (weighed[:, None] * moved)


def factors(weights: Sequence[Tree], scale: Array, n: int, m: int) -> tuple[list[Array], list[Array]]:
    """A_l = W_1 ... W_{l-1} (times the scale) and B_l = W_{l+1} ... W_L of the layers."""
    import jax.numpy as jnp

    A, B = [scale * jnp.eye(n)], [jnp.eye(m)]
    for W in weights[:-1]:
        A.append(A[-1] @ W)
    for W in reversed(weights[1:]):
        B.append(W @ B[-1])
    return A, B[::-1]
