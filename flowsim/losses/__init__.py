"""Losses f(W) of the product W: the protocol, the constants that theorems need, and flowsim's own losses."""

from flowsim.losses.base import (
    BuiltIn,
    Loss,
    LossConstants,
    check_loss,
    constants_of,
    excess,
    minimum_of,
    vectorized,
)
from flowsim.losses.classification import ExponentialLoss, LogisticLoss, separation
from flowsim.losses.squared import LeastSquares, MaskedSquaredLoss, SquaredLoss

__all__ = [
    "BuiltIn",
    "ExponentialLoss",
    "LeastSquares",
    "LogisticLoss",
    "Loss",
    "LossConstants",
    "MaskedSquaredLoss",
    "SquaredLoss",
    "check_loss",
    "constants_of",
    "excess",
    "minimum_of",
    "separation",
    "vectorized",
]
