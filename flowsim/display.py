"""How results show themselves: a table as plain text, in a terminal by rich, in a notebook as HTML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

CELL = "text-align:left;padding:2px 12px 2px 0"
NUMBER = "text-align:right;padding:2px 12px 2px 0;font-variant-numeric:tabular-nums"


@dataclass(frozen=True)
class Table:
    """Rows of words under heads (or none), with a line above and one below. A column of numbers is set to the right."""

    rows: Sequence[Sequence[str]]
    heads: Sequence[str] = ()
    title: str = ""
    foot: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone; only a table with heads has such."""
        columns = zip_longest(*self.rows, fillvalue="")
        return [bool(self.heads) and all(_is_number(cell) for cell in column) for column in columns]

    def text(self) -> str:
        """Aligned columns, without colours, each row in one line."""
        from io import StringIO

        from rich.console import Console

        longest = sum(max(map(len, column)) + 2 for column in zip_longest(*self.rows, self.heads, fillvalue=""))
        width = max(longest, len(self.title), len(self.foot))
        console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, highlight=False)
        with console.capture() as captured:
            console.print(self.rich())
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def html(self) -> str:
        """A table element between its two lines."""
        styles = [NUMBER if numeric else CELL for numeric in self.numeric]
        head = "".join(f'<th style="{CELL}">{escape(word)}</th>' for word in self.heads)
        body = "".join(
            "<tr>"
            + "".join(f'<td style="{s}">{escape(cell)}</td>' for cell, s in zip(row, styles, strict=False))
            + "</tr>"
            for row in self.rows
        )
        lines = [f"<div>{escape(line)}</div>" if line else "" for line in (self.title, self.foot)]
        return f"{lines[0]}<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>{lines[1]}"

    def rich(self) -> Group:
        """For rich.print."""
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, show_header=bool(self.heads), header_style="bold", pad_edge=False)
        for head, numeric in zip_longest(self.heads, self.numeric, fillvalue=""):
            grid.add_column(str(head), justify="right" if numeric else "left", style=None if self.heads else "")
        for row in self.rows:
            first = Text(row[0], style="bold")
            grid.add_row(first, *(Text(cell) for cell in row[1:]))
        return Group(*(part for part in (Text(self.title), grid, Text(self.foot)) if part))


class Shown(ABC):
    """A result that has a table and shows it wherever it is printed."""

    @abstractmethod
    def shown(self) -> Table:
        """What is shown of the result."""

    def summary(self) -> str:
        """The table as plain text."""
        return self.shown().text()

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return self.shown().html()

    def __rich__(self) -> Group:
        return self.shown().rich()


def _is_number(cell: str) -> bool:
    try:
        float(cell if cell not in ("", "-") else "0")
    except ValueError:
        return False
    return True
