"""Losses f(W) of the product W: the protocol, the constants that theorems need, and flowsim's own losses."""

from flowsim.losses.adapting import (
    BUILT_IN,
    Adapted,
    UnknownLoss,
    adapted,
    check_loss,
    constants_of,
    excess,
    is_built_in,
    minimiser_of,
    minimum_of,
)
from flowsim.losses.base import BuiltIn, Loss, LossConstants, StackedLoss
from flowsim.losses.classification import ExponentialLoss, LogisticLoss, separation
from flowsim.losses.rows import Rows
from flowsim.losses.squared import LeastSquares, MaskedSquaredLoss, SquaredLoss
from flowsim.losses.table import LOSSES, STORED, Entry

__all__ = [
    "BUILT_IN",
    "LOSSES",
    "STORED",
    "Adapted",
    "BuiltIn",
    "Entry",
    "ExponentialLoss",
    "LeastSquares",
    "LogisticLoss",
    "Loss",
    "LossConstants",
    "MaskedSquaredLoss",
    "Rows",
    "SquaredLoss",
    "StackedLoss",
    "UnknownLoss",
    "adapted",
    "check_loss",
    "constants_of",
    "excess",
    "is_built_in",
    "minimiser_of",
    "minimum_of",
    "separation",
]
