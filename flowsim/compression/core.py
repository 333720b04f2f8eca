"""A network compressed to a few Krylov levels: its small core, how far the core is from the whole, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from flowsim.checks import as_count
from flowsim.compression.bases import Bases, KrylovBases
from flowsim.errors import InputError
from flowsim.losses import Loss, StackedLoss
from flowsim.network import LinearNetwork, Network, backpropagate, flatten, unflatten
from flowsim.problem import Problem
from flowsim.values import Layer, Value, frozen, settled

REACH = 0.3
"""By how much less a correction of the weights may use each further level of the bases."""


def first_level(depth: int) -> int:
    """The number of Krylov steps to begin with: both ends have met in every basis (L - 2), and a step or two more."""
    return 0 if depth == 2 else max(depth - 1, 3)


@dataclass(frozen=True, eq=False, repr=False)
class CompressedNetwork(Value):
    """The core of a network: What_l = P_{l-1}^T W_l P_l in the bases' levels 0 .. steps.

    A frozen value: its bases find further levels when they are asked for, which changes no level below, and which
    copies, pickles and hashes of pickles leave out. The core has the same product and loss. Its trajectory lifts to
    q W_l(0) + P_{l-1} (What_l(t) - q What_l(0)) P_l^T, which fails the full flow by the defect: exactly 0 for two
    layers or complete bases, else super-exponentially small in `steps`. Here q(t) is what weight decay leaves of
    weights that the loss does not reach (Dynamics.remaining), 1 without decay. The true widths are in `dims`.
    scale, origin: those of the whole network.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> network = fs.fan_out((2, 300, 400, 1), seed=0)
    >>> compressed = fs.compress(network)
    >>> compressed.steps, compressed.widths
    (3, (2, 6, 6, 1))
    >>> for steps in (0, 1):  # the product needs no step, T needs one: W_1 W_2 and W_2 W_3 too have to be in the bases
    ...     core = compressed.with_steps(steps).core
    ...     print(np.allclose(core.product, network.product), np.isclose(core.lambda_min_T, network.lambda_min_T))
    True False
    True True
    """

    bases: Bases
    steps: int
    scale: float = 1.0
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", settled(self.origin))

    def __repr__(self) -> str:
        return f"CompressedNetwork(dims {self.dims}, widths {self.widths[1:-1]} after {self.steps} Krylov steps)"

    @property
    def dims(self) -> tuple[int, ...]:
        """(h_0, ..., h_L), the true widths."""
        return self.bases.dims

    @property
    def depth(self) -> int:
        """L."""
        return self.bases.depth

    is_dense = False
    """Not all of it is at hand as arrays."""

    @property
    def size(self) -> int:
        """The number of weights of the network, not of its core."""
        return sum(rows * columns for rows, columns in pairwise(self.dims))

    @property
    def widths(self) -> tuple[int, ...]:
        """(n, k_1, ..., k_{L-1}, m), the core's dims."""
        return self.bases.sizes(self.steps)

    @cached_property
    def core(self) -> LinearNetwork:
        """The small network; its origin is that of the whole one as `core_of`."""
        self.bases.grow_to(self.steps + self.halo)
        return LinearNetwork(tuple(self.bases.coordinates(self.steps)), self.scale, {"core_of": self.origin})

    @property
    def product(self) -> np.ndarray:
        """W = scale W_1 ... W_L."""
        return self.core.product

    @property
    def lambda_min_T(self) -> float:
        """The least eigenvalue of the operator T: from the core of at least L - 2 Krylov steps, which has all of T."""
        weights = self.bases.coordinates(max(self.steps, self.depth - 2))
        return LinearNetwork(tuple(weights), self.scale).lambda_min_T

    def problem(self, loss: Loss, weight_decay: float = 0.0) -> CoreProblem:
        """What is integrated in the place of the network: its core with the loss and the weight_decay."""
        return CoreProblem(loss, self.core, self, weight_decay=weight_decay)

    @property
    def halo(self) -> int:
        """How many levels beyond the core the defect reaches: max(L - 2, 1), 0 for two layers."""
        return 0 if self.depth == 2 else max(self.depth - 2, 1)

    @cached_property
    def exact(self) -> bool:
        """Whether the core loses nothing."""
        return self.bases.is_complete(self.steps)

    @cached_property
    def surroundings(self) -> tuple[np.ndarray, ...]:
        """The weights in the levels 0 .. steps + halo, in which the defect and the drift of the imbalance live."""
        return tuple(frozen(M) for M in self.bases.coordinates(self.steps + self.halo))

    def changes(self, states: np.ndarray, kept: np.ndarray | float = 1.0) -> list[np.ndarray]:
        """W_l(t) - q W_l(0) in the coordinates of `surroundings`, for states of the core, stacked or single.

        kept: q at the states' times, one number or one a state.
        """
        deltas = unflatten(states - self._initial(kept), self.core.dims)
        return [_padded(delta, M.shape) for delta, M in zip(deltas, self.surroundings, strict=True)]

    def _initial(self, kept: np.ndarray | float) -> np.ndarray:
        """q times the core's initial weights, a row for each q of an array."""
        return np.asarray(np.multiply.outer(kept, flatten(self.core.weights)))

    def lifted(self, states: np.ndarray, kept: np.ndarray | float = 1.0) -> list[np.ndarray]:
        """W_l(t) in the coordinates of `surroundings`, for states of the core, stacked or single; kept as `changes`."""
        share = np.asarray(kept)[..., None, None]
        return [share * M + change for M, change in zip(self.surroundings, self.changes(states, kept), strict=True)]

    def defect(self, loss: StackedLoss, states: np.ndarray, kept: np.ndarray | float = 1.0) -> np.ndarray:
        """||F(lifted state) - lifted F(core state)||_F for states of the core (count, size): F is the full flow (of the
        loss: decay makes no difference); kept: q at their times.

        For L = 3, with R = (I - P_2 P_2^T) W_2^T P_1, S = (I - P_1 P_1^T) W_2 P_2 and E = grad f(W), that is
        (||E What_3^T S^T||^2 + ||R What_1^T E||^2)^(1/2); beyond, the lifted state's own right-hand side in the
        levels that it reaches.
        """
        if self.exact:
            return np.zeros(len(states))
        _, whole = backpropagate(loss, self.lifted(states, kept), self.scale)
        _, inner = backpropagate(loss, unflatten(states, self.core.dims), self.scale)
        rest = (G - _padded(H, G.shape[-2:]) for G, H in zip(whole, inner, strict=True))
        return np.sqrt(sum((D * D).sum((-2, -1)) for D in rest))

    def with_steps(self, steps: int) -> CompressedNetwork:
        """The same network with more or fewer Krylov steps."""
        return CompressedNetwork(self.bases, as_count(steps, "steps", least=0), self.scale, self.origin)

    def at_least(self, steps: int) -> CompressedNetwork:
        """The same network with at least so many Krylov steps, as far as its bases go."""
        return self.with_steps(max(self.steps, steps)) if self.bases.can_grow else self

    def embed(self, other: CompressedNetwork, states: np.ndarray, kept: np.ndarray | float = 1.0) -> np.ndarray:
        """States of this core as states of the core of `other`, which has more levels of the same bases; kept: q at
        their times. Of velocities: with q' in the place of q."""
        deltas = unflatten(states - self._initial(kept), self.core.dims)
        grown = [_padded(delta, W.shape) for delta, W in zip(deltas, other.core.weights, strict=True)]
        flat = np.concatenate([delta.reshape(*delta.shape[:-2], -1) for delta in grown], axis=-1)
        return other._initial(kept) + flat

    def restrict(self, other: CompressedNetwork, states: np.ndarray) -> np.ndarray:
        """States of this core as states of the core of `other`, which has fewer levels of the same bases."""
        weights = unflatten(states, self.core.dims)
        cut = [W[..., : V.shape[0], : V.shape[1]] for W, V in zip(weights, other.core.weights, strict=True)]
        return np.concatenate([W.reshape(*W.shape[:-2], -1) for W in cut], axis=-1)

    def lift(self, state: np.ndarray, layer: int, initial: Layer, kept: float = 1.0) -> Layer:
        """W_l = q W_l(0) + P_{l-1} (What_l - q What_l(0)) P_l^T for l = layer, from the core's state, W_l(0), which is
        `initial`, and q at the state's time, which is `kept`.

        An array where W_l(0) is one, else a LinearOperator. Raises InputError where the bases are not at hand.
        """
        vectors = self.bases.vectors
        if vectors is None:
            raise InputError("Argument `layer` cannot be lifted without bases; use the core's weights.")
        delta = unflatten(state - self._initial(kept), self.core.dims)[layer - 1]
        if layer > 1:
            delta = vectors[layer - 2][:, : delta.shape[0]] @ delta
        right = np.eye(self.dims[-1]) if layer == self.depth else vectors[layer - 1][:, : delta.shape[1]]
        if isinstance(initial, np.ndarray):
            return kept * initial + delta @ right.T
        from scipy.sparse.linalg import aslinearoperator

        return kept * aslinearoperator(initial) + aslinearoperator(delta) @ aslinearoperator(right.T)

    @property
    def imbalance_norms(self) -> tuple[float, ...]:
        """||D_l(0)||_F, l = 1 .. L-1, of the whole network (an expectation where it was drawn in compressed form)."""
        return tuple(self.bases.imbalance_norms)

    @property
    def weights(self) -> Sequence[Layer]:
        """[W_1(0), ..., W_L(0)], the full weights. Raises InputError where the network never had any."""
        if self.bases.weights is None:
            raise InputError(
                f"Argument `network` has no full weights: with dims {self.dims} it was drawn or loaded in compressed"
                " form; use its core."
            )
        return self.bases.weights

    def with_weights(self, weights: Sequence[np.ndarray]) -> LinearNetwork:
        """The same model at given full weights, of which no origin is known."""
        return LinearNetwork(tuple(weights), self.scale)


@dataclass(frozen=True, eq=False)
class CoreProblem(Problem):
    """A problem on the core of a compressed network."""

    compressed: CompressedNetwork

    @property
    def reach(self) -> list[np.ndarray]:
        """REACH to the power of the coordinate's level, 0 for the last, which is joined to what lies outside the core.

        A trajectory fades quickly from level to level, and so should its corrections.
        """
        if self.compressed.exact:
            return super().reach
        levels = [self.compressed.bases.sizes(level) for level in range(self.compressed.steps)]
        reach = [np.zeros(width) for width in self.network.dims]
        for level, widths in reversed(list(enumerate(levels))):
            for row, width in zip(reach, widths, strict=True):
                row[:width] = REACH**level
        return reach


def compress(network: Network, steps: int | None = None) -> CompressedNetwork:
    """The network in Krylov bases of its hidden layers, for any depth L >= 2 and any n, m, after `steps` steps.

    Only products with W_l and W_l^T are used, about 2 (steps + 1) a hidden layer. Two layers are compressed exactly to
    width n + m; for more, the error of a trajectory falls super-linearly with the steps. simulate chooses the steps by
    itself and controls the error.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> network = fs.fan_in((3, 1000, 2), seed=0)
    >>> compressed = fs.compress(network)
    >>> compressed.widths, compressed.exact, np.allclose(compressed.product, network.product)  # (n, n + m, m)
    ((3, 5, 2), True, True)
    """
    level = first_level(network.depth) if steps is None else as_count(steps, "steps", least=0)
    return CompressedNetwork(KrylovBases(network.weights), level, network.scale, network.origin)


def _padded(block: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The block as the leading part of matrices of the given shape, zero elsewhere."""
    result = np.zeros((*block.shape[:-2], *shape))
    result[..., : block.shape[-2], : block.shape[-1]] = block
    return result
