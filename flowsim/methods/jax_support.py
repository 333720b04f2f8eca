"""What the compiled integrators share: float64 within flowsim only, losses as arguments, time spent compiling."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from flowsim.losses import Loss, StackedLoss, adapted, is_built_in

Tree = Any
"""A pytree of jax: arrays, tracers or shapes, in lists and diffrax's objects. A compiled function is given all of these
in turn, and neither jax nor diffrax has a type that names them."""


def float64() -> AbstractContextManager[object]:
    """A context in which jax computes in float64; the user's own setting is left alone.

    It holds in this thread only and has to be entered for every call, dense output included.
    """
    import jax

    return jax.enable_x64(True)


_spent = threading.local()


def compile_seconds() -> float:
    """The time that this thread has spent tracing, lowering and compiling since it first asked."""
    _listen()
    return float(getattr(_spent, "seconds", 0.0))


@cache
def _listen() -> None:
    from jax import monitoring

    monitoring.register_event_duration_secs_listener(_add)


def _add(event: str, seconds: float, **_: object) -> None:
    if event.startswith("/jax/core/compile/"):
        _spent.seconds = getattr(_spent, "seconds", 0.0) + seconds


class LossArgument:
    """A loss as a jax pytree: the arrays of the losses that flowsim knows are traced, a user's own loss is static."""

    def __init__(self, loss: StackedLoss) -> None:
        self.loss = loss


def as_argument(loss: Loss) -> LossArgument:
    """The loss, ready to be passed to a jitted function without a new compilation for each new target."""
    _register()
    return LossArgument(adapted(loss))


@cache
def _register() -> None:
    from jax.tree_util import register_pytree_node

    register_pytree_node(LossArgument, _split, _join)


def _split(argument: LossArgument) -> tuple[tuple[Tree, ...], object]:
    loss = argument.loss
    if not is_built_in(loss):
        return (), loss
    fields = loss.parts()
    return tuple(fields.values()), (type(loss), tuple(fields))


def _join(fixed: Any, arrays: tuple[Tree, ...]) -> LossArgument:
    if not isinstance(fixed, tuple):
        return LossArgument(fixed)
    kind, names = fixed
    return LossArgument(kind.from_parts(dict(zip(names, arrays, strict=True))))
