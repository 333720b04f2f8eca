"""A linear network, W = scale W_1 ... W_L: the value, its product, the operator T, the imbalance matrices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flowsim.checks import as_layer, as_matrix, as_number, check_chain
from flowsim.errors import InputError
from flowsim.network.functions import imbalance, product
from flowsim.network.kronecker import least_eigenvalue
from flowsim.values import Layer, Value, frozen, guarded, sealed, settled

DENSE_LIMIT = 400
"""Up to n m = DENSE_LIMIT the least eigenvalue of T comes from a dense matrix, beyond by LOBPCG."""
DIRECT_IMBALANCE = 4e9
"""Up to this many multiplications the norm of an imbalance matrix comes from the matrix itself."""
THIN = 64
PROBES = 16


@dataclass(frozen=True, eq=False, repr=False)
class LinearNetwork(Value):
    """The network W = scale W_1 ... W_L, L >= 2, a frozen value.

    weights: matrices W_l of shape h_{l-1} x h_l; the hidden ones, 1 < l < L, may be scipy sparse matrices,
    LinearOperators or memory-mapped arrays: then only products with them and their transposes are formed. Arrays and
    sparse matrices are copied and read-only; an array that is read-only already, down to its memory, is kept: so a
    memory map opened with mode "r" is not copied, and whoever changes its file changes the network. A LinearOperator is
    the user's own and must not change.
    scale: the factor of the model (the NTK parametrization's 1/sqrt(...) lives here; the gradients carry scale, T
    carries scale^2). origin: where the weights came from, kept with results.

    Raises InputError when there are fewer than two layers, shapes do not chain, or an entry is not a finite real.

    For scalar weights T is a number, w_2^2 + w_1^2, and so is the imbalance, w_1^2 - w_2^2:

    >>> import flowsim as fs
    >>> network = fs.LinearNetwork(([[3.0]], [[4.0]]))
    >>> network.product.item(), network.lambda_min_T, network.imbalance(1).item()
    (12.0, 25.0, -7.0)
    """

    weights: tuple[np.ndarray, ...]
    scale: float = 1.0
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = (1, len(self.weights))
        weights = tuple(
            frozen(as_matrix(W, f"W{layer}")) if layer in ends else as_layer(W, f"W{layer}")
            for layer, W in enumerate(self.weights, start=1)
        )
        check_chain(weights)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "origin", settled(self.origin))
        object.__setattr__(self, "scale", as_number(self.scale, "scale", above=0.0))

    def __repr__(self) -> str:
        scheme = f", {self.origin['scheme']}" if "scheme" in self.origin else ""
        return f"LinearNetwork(dims {self.dims}, scale {self.scale:g}{scheme})"

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.weights)

    @property
    def dims(self) -> tuple[int, ...]:
        """(h_0, ..., h_L)."""
        return self.weights[0].shape[0], *(W.shape[1] for W in self.weights)

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(rows * columns for rows, columns in itertools.pairwise(self.dims))

    @property
    def is_dense(self) -> bool:
        """Whether every layer is an array."""
        return all(isinstance(W, np.ndarray) for W in self.weights)

    @cached_property
    def product(self) -> np.ndarray:
        """W = scale W_1 ... W_L (n x m)."""
        return sealed(np.asarray(product(self.weights, self.scale)))

    @cached_property
    def prefixes(self) -> tuple[np.ndarray, ...]:
        """(A_1, ..., A_L), A_l = W_1 ... W_{l-1} (n x h_{l-1})."""
        result = [np.eye(self.dims[0])]
        for W in self.weights[:-1]:
            result.append(np.asarray(result[-1] @ W))
        return tuple(map(sealed, result))

    @cached_property
    def suffixes(self) -> tuple[np.ndarray, ...]:
        """(B_1, ..., B_L), B_l = W_{l+1} ... W_L (h_l x m)."""
        result = [np.eye(self.dims[-1])]
        for W in reversed(self.weights[1:]):
            result.append(np.asarray(W @ result[-1]))
        return tuple(map(sealed, result[::-1]))

    @cached_property
    def grams(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """((scale A_l A_l^T, scale B_l^T B_l), ...): T is the sum of their Kronecker products."""
        pairs = zip(self.prefixes, self.suffixes, strict=True)
        return tuple((sealed(self.scale * A @ A.T), sealed(self.scale * B.T @ B)) for A, B in pairs)

    def apply_T(self, E: np.ndarray) -> np.ndarray:
        """T E = scale^2 sum_l A_l A_l^T E B_l^T B_l for E of shape n x m ([MVM23], section 2).

        >>> import numpy as np
        >>> import flowsim as fs
        >>> network, E = fs.fan_in((3, 5, 4, 2), seed=0), np.ones((3, 2))
        >>> np.allclose(network.apply_T(E).ravel(), network.dense_T() @ E.ravel())
        True
        """
        return np.sum([P @ E @ Q for P, Q in self.grams], axis=0)

    def dense_T(self) -> np.ndarray:
        """T as an nm x nm matrix on row-major vec(E)."""
        return np.sum([np.kron(P, Q) for P, Q in self.grams], axis=0)

    @property
    def jacobian_factors(self) -> np.ndarray:
        """J with T = J J^T, nm x at most L nm: blocks scale (R_l x S_l^T), A_l = R_l Q_l and B_l = Q'_l S_l."""
        blocks = []
        for A, B in zip(self.prefixes, self.suffixes, strict=True):
            R, S = (np.asarray(np.linalg.qr(tall, mode="r")) for tall in (A.T, B))
            blocks.append(self.scale * np.kron(R.T, S.T))
        return np.hstack(blocks)

    @cached_property
    def lambda_min_T(self) -> float:
        """The least eigenvalue of T, >= 0, 0 where a hidden width is below min(n, m).

        For n m <= DENSE_LIMIT it is the square of the least singular value of J, T = J J^T, known to about eps ||J||;
        beyond, it comes from a preconditioned iteration and is uncertain by about n m eps ||T||.
        """
        n, m = self.dims[0], self.dims[-1]
        if min(self.dims) < min(n, m):
            return 0.0
        if n * m > DENSE_LIMIT:
            return least_eigenvalue(self.grams)
        J = self.jacobian_factors
        return float(np.linalg.svd(J, compute_uv=False)[-1]) ** 2 if J.shape[1] >= n * m else 0.0

    def imbalance(self, layer: int) -> np.ndarray:
        """D_l = W_l^T W_l - W_{l+1} W_{l+1}^T (h_l x h_l), l = layer = 1 .. L-1.

        >>> import numpy as np
        >>> import flowsim as fs
        >>> network = fs.lambda_balanced((4, 3, 2), imbalance=1.5, seed=0)
        >>> np.allclose(network.imbalance(1), 1.5 * np.eye(3))
        True
        """
        if not self.is_dense:
            raise InputError(
                "Argument `network` must have arrays as layers for its imbalance matrices; it has operators."
            )
        return imbalance(self.weights, layer)

    @property
    def imbalances(self) -> list[np.ndarray]:
        """[D_1, ..., D_{L-1}]."""
        return [self.imbalance(layer) for layer in range(1, self.depth)]

    @cached_property
    def imbalance_eigenvalues(self) -> tuple[np.ndarray, ...]:
        """The eigenvalues of D_1, ..., D_{L-1}, each descending."""
        return tuple(guarded(np.linalg.eigvalsh(self.imbalance(layer))[::-1]) for layer in range(1, self.depth))

    @cached_property
    def imbalance_norms(self) -> tuple[float, ...]:
        """||D_l||_F, l = 1 .. L-1, without h_l x h_l matrices where the layers are wide or operators.

        Then ||D_l||^2 = ||W_l W_l^T||^2 + ||W_{l+1} W_{l+1}^T||^2 - 2 ||W_l W_{l+1}||^2, where a norm with no thin side
        (at most THIN) is estimated from PROBES products with random signs, a few per cent off.
        """
        rows = zip(self.dims, self.dims[1:], self.dims[2:], strict=False)
        if self.is_dense and max(k * k * (h + p) for h, k, p in rows) <= DIRECT_IMBALANCE:
            return tuple(float(np.linalg.norm(D)) for D in self.imbalances)
        squares = [_square_norm(W, W.T) for W in self.weights]
        crosses = [_square_norm(W, V) for W, V in itertools.pairwise(self.weights)]
        sums = (a + b - 2 * c for a, b, c in zip(squares, squares[1:], crosses, strict=False))
        return tuple(max(total, 0.0) ** 0.5 for total in sums)

    def with_weights(self, weights: Sequence[np.ndarray]) -> LinearNetwork:
        """The same model at other weights, of which no origin is known.

        Scaling every weight by 2 scales T of a network with L layers by 4^{L-1}:

        >>> import flowsim as fs
        >>> network = fs.fan_in((3, 5, 4, 2), seed=0)
        >>> round(network.with_weights([2 * W for W in network.weights]).lambda_min_T / network.lambda_min_T, 9)
        16.0
        """
        return LinearNetwork(tuple(weights), self.scale)


def _square_norm(W: Layer, V: Layer) -> float:
    """||W V||_F^2: exact where W V or its Gram matrix has a thin side, else from PROBES random signs."""
    if isinstance(W, np.ndarray) and W.shape[0] <= THIN:
        return float((np.asarray(W @ V) ** 2).sum())
    if isinstance(V, np.ndarray) and V.shape[1] <= THIN:
        return float((np.asarray(W @ V) ** 2).sum())
    if isinstance(W, np.ndarray) and W.shape[1] <= THIN:  # ||W V||_F^2 = <W^T W, V V^T>
        return float(((W.T @ W) * (V @ V.T)).sum())
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (V.shape[1], PROBES))
    return float((np.asarray(W @ np.asarray(V @ signs)) ** 2).sum()) / PROBES
