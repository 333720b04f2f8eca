"""What commands print: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any


def note(text: str) -> None:
    """A sentence on standard error."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with what could steer a terminal, or cannot be encoded, as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def show(result: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """One JSON object, or the text, on standard output."""
    print(json.dumps(finite(result), allow_nan=False) if as_json else printable(text()))


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


class Bar:
    """A progress bar in t that shows log10 of the excess loss; silent where standard error is no terminal."""

    def __init__(self, t1: float) -> None:
        self.t1 = t1

    def __enter__(self) -> Bar:
        from tqdm import tqdm

        self.bar = tqdm(
            total=1.0, disable=not sys.stderr.isatty(), bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, t: float, excess: float, initial: float) -> None:
        level = f"{math.log10(excess):.2f}" if excess > 0 else "-inf"
        self.bar.set_postfix_str(f"t={t:.4g} log10(L-f*)={level}", refresh=False)
        self.bar.update(t / self.t1 - self.bar.n)


class Count:
    """A progress bar over members; silent where standard error is no terminal."""

    def __enter__(self) -> Count:
        from tqdm import tqdm

        self.bar = tqdm(disable=not sys.stderr.isatty(), unit="member")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, todo: int) -> None:
        self.bar.total = todo
        self.bar.update(done - self.bar.n)
