"""What commands print: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

from flowsim.display import Shown


def note(text: str) -> None:
    """A sentence on standard error."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with what could steer a terminal, or cannot be encoded, as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def show(result: dict[str, Any], as_json: bool, text: Callable[[], str] | Shown) -> None:
    """One JSON object, or the text, or a result's table (by rich in a terminal) on standard output."""
    if as_json:
        print(json.dumps(finite(result), allow_nan=False))
    elif not isinstance(text, Shown):
        print(printable(text()))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(text)
    else:
        print(printable(text.summary()))


def finite(value: Any) -> Any:
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
