"""What commands print: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
import time as clock
from collections.abc import Callable, Mapping
from contextlib import suppress

from flowsim.display import Shown
from flowsim.progress import Progress

EVERY = 60.0
"""Seconds between two lines on a simulation under way, where standard error is no terminal."""


def open_streams() -> None:
    """Make standard input, output and error usable: those that are closed lead nowhere, and what a stream cannot encode
    is written as an escape.

    Were a closed one left so, the next file that is opened would take its number, and what is printed would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """A sentence on standard error; none where nobody reads it."""
    with suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """A text on standard output; the rest is left out where its reader has gone, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_output()


def discard_output() -> None:
    """Let standard output lead nowhere: what is still in it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """The text with what could steer a terminal as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def progress(t1: float) -> Progress | bool:
    """How a simulation tells of itself: by a bar in a terminal, elsewhere by a line now and then."""
    if sys.stderr.isatty():
        return True
    first: tuple[float, float] | None = None
    told = clock.monotonic()

    def say(t: float, excess: float, _: float) -> None:
        nonlocal first, told
        now = clock.monotonic()
        begun, start = first = first or (now, t)
        if now - told < EVERY or t <= start:
            return
        told, left = now, (now - begun) * (t1 - t) / (t - start)
        level = f"{math.log10(excess):.2f}" if excess > 0 else "-inf"
        note(f"t = {t:.4g} of {t1:g}, log10(L - f*) = {level}, about {left:.0f} s left")

    return say


def show(result: Mapping[str, object], as_json: bool, text: Callable[[], str] | Shown) -> None:
    """One JSON object, or the text, or a result's table (by rich in a terminal) on standard output."""
    if as_json:
        tell(json.dumps(finite(result), allow_nan=False))
    elif not isinstance(text, Shown):
        tell(printable(text()))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(text)
    else:
        tell(printable(text.summary()))


def finite(value: object) -> object:
    """The value with arrays as lists, and None for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value
