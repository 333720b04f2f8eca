"""Progress of long work by tqdm, in a terminal or a notebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[float, float, float], None]
"""Called with (t, L - f*, L(0) - f*) after every segment of a simulation."""
Count = Callable[[int, int], None]
"""Called with (done, of how many)."""


@contextmanager
def following(progress: Progress | bool | None, t1: float) -> Iterator[Progress | None]:
    """What to call as a simulation goes on: the user's own function, or for True a bar in t with log10 (L - f*).

    Where the loss decays exponentially, t alone misleads.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    with _bar(progress, total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:

        def tell(t: float, excess: float, initial: float) -> None:
            level = f"{math.log10(excess):.2f}" if excess > 0 else "-inf"
            bar.set_postfix_str(f"t={t:.4g} log10(L-f*)={level}", refresh=False)
            bar.update(t / t1 - bar.n)

        yield tell if progress else None


@contextmanager
def counting(progress: Count | bool | None, unit: str = "member") -> Iterator[Count | None]:
    """What to call as units are finished: the user's own function, or for True a bar with the time that is left."""
    if not isinstance(progress, bool):
        yield progress
        return
    with _bar(progress, unit=unit) as bar:

        def tell(done: int, todo: int) -> None:
            bar.total = todo
            bar.update(done - bar.n)

        yield tell if progress else None


@contextmanager
def _bar(shown: bool, **settings: object) -> Iterator[Any]:
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(**settings) as bar:
        yield bar
