"""What the compiled integrators share: float64 within flowsim only, losses as arguments, time spent compiling, and the
folder in which compiled functions are kept for later processes."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
import warnings
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from flowsim.losses import Loss, StackedLoss, adapted, is_built_in

Tree = Any
"""A pytree of jax: arrays, tracers or shapes, in lists and diffrax's objects. A compiled function is given all of these
in turn, and neither jax nor diffrax has a type that names them."""


def float64() -> AbstractContextManager[object]:
    """A context in which jax computes in float64; the user's own setting is left alone.

    It holds in this thread only and has to be entered for every call, dense output included. What is compiled within is
    kept, see `cache_folder`.
    """
    import jax

    if _keeps():
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return jax.enable_x64(True)


WORTH_KEEPING = 0.1
"""Seconds of compiling from which on its result is kept."""


def cache_folder() -> Path | None:
    """Where compiled functions are kept: the folder FLOWSIM_CACHE, None where that is set and empty; by default flowsim
    in the user's folder of caches, XDG_CACHE_HOME or ~/.cache (~/Library/Caches, LOCALAPPDATA)."""
    chosen = os.environ.get("FLOWSIM_CACHE")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    caches = os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")
    return Path(caches).expanduser() / "flowsim"


@cache
def _keeps() -> bool:
    """Have jax keep what it compiles, each kind of processor's apart. Not where the user has chosen a folder for jax
    himself, nor where nothing can be written: what cannot be kept is compiled again."""
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return False
    try:
        kept = cache_folder()
        if kept is None:
            return False
        folder = kept / f"jax-{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False
    if not os.access(folder, os.W_OK):
        return False
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    return True


def _processor() -> str:
    """A name for this kind of processor: compiled code is for its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        told = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


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
