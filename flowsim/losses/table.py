"""The tables of losses: by the name that the command and sweeps know, and by the class that files name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowsim.losses.adapting import BUILT_IN
from flowsim.losses.base import Loss
from flowsim.losses.classification import ExponentialLoss, LogisticLoss
from flowsim.losses.squared import LeastSquares, SquaredLoss


class Storable(Loss, Protocol):
    """A loss that a file can hold."""

    def parts(self) -> Mapping[str, Any]:
        """Its arrays and numbers by name."""
        ...

    @classmethod
    def restored(cls, parts: Mapping[str, Any], /) -> Loss:
        """The loss with these parts."""
        ...


class Entry(NamedTuple):
    """How a loss is made: of a target Y (n x m), and of data X (rows x n), Y (rows x m); None where it cannot be."""

    of_target: Callable[[np.ndarray], Loss] | None = None
    of_data: Callable[[np.ndarray, np.ndarray], Loss] | None = None


LOSSES = {
    "squared": Entry(SquaredLoss, LeastSquares),
    "exponential": Entry(None, ExponentialLoss),
    "logistic": Entry(None, LogisticLoss),
}
"""name -> how it is made. A loss of one's own is one more line."""
STORED: dict[str, type[Storable]] = {**BUILT_IN}
"""Class name -> class that a file can hold: loss.parts() are its arrays and numbers by name, cls.restored(parts) is the
loss again. A class of one's own is one more line; of others a file holds that there was one."""
