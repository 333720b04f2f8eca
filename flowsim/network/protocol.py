"""What a network in a problem is, whole or compressed: all that code needs that does not ask which of the two it has.

It stands here, not beside Problem, because compression and rates speak of networks too, and both kinds satisfy it
without naming it. What needs all weights as arrays, an operator T or the imbalance matrices narrows to LinearNetwork or
takes the core of a CompressedNetwork.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flowsim.values import Layer

if TYPE_CHECKING:
    from flowsim.network.linear_network import LinearNetwork


class Network(Protocol):
    """W = scale W_1 ... W_L, L >= 2: a LinearNetwork, or a CompressedNetwork where the full weights are not there."""

    @property
    def dims(self) -> tuple[int, ...]:
        """(h_0, ..., h_L)."""
        ...

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        ...

    @property
    def size(self) -> int:
        """The number of weights."""
        ...

    @property
    def scale(self) -> float:
        """The factor of the model."""
        ...

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where the weights came from."""
        ...

    @property
    def is_dense(self) -> bool:
        """Whether every layer is at hand as an array."""
        ...

    @property
    def weights(self) -> Sequence[Layer]:
        """[W_1, ..., W_L]. Raises InputError where the network never had any."""
        ...

    @property
    def product(self) -> np.ndarray:
        """W = scale W_1 ... W_L (n x m)."""
        ...

    @property
    def lambda_min_T(self) -> float:
        """The least eigenvalue of the operator T."""
        ...

    @property
    def imbalance_norms(self) -> tuple[float, ...]:
        """||D_l||_F, l = 1 .. L-1."""
        ...

    def with_weights(self, weights: Sequence[np.ndarray]) -> LinearNetwork:
        """The same model at other weights, of which no origin is known."""
        ...
