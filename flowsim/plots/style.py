"""What all figures share: colours, sizes, line styles, axes of a figure of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.typing import ColorType

Look = dict[str, Any]
"""Keyword arguments of matplotlib, whose own types depend on their names."""
LineStyle = str | tuple[int, tuple[int, ...]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
"""Readable when a figure is printed at column width."""
MARKERS = "osD^vPX*<>"
LINES: tuple[LineStyle, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
FORMATS = (".png", ".pdf", ".svg")
"""What figures are written as, by the file's suffix."""
COLUMN = (3.4, 2.6)
"""Inches: a figure of one column."""
LETTERS = 34
"""So many fit in a row of a legend of two columns."""


def own_axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure at column width."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        return plt.subplots(figsize=COLUMN, layout="constrained")[1]


def legend_above(ax: Axes) -> None:
    """A legend above the axes, where it hides no data, in two columns where they fit; none for a single curve."""
    handles, labels = ax.get_legend_handles_labels()
    half = -(-len(labels) // 2)
    if len(labels) < 2:
        return
    fits = max(map(len, labels[:half])) + max(map(len, labels[half:])) <= LETTERS
    place: Look = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "ncols": 2 if fits else 1}
    ax.legend(handles, labels, frameon=False, fontsize=STYLE["legend.fontsize"], columnspacing=1.2, **place)


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis whose labels do not run into each other: powers of ten, or within one 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax, name = axis.axes, axis.axis_name  # type: ignore[attr-defined]
    ax.set(**{f"{name}scale": "log"})
    low, high = np.log10(axis.get_view_interval())
    axis.set_minor_formatter(NullFormatter())
    if np.floor(high) <= np.ceil(low):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def colours(count: int) -> list[ColorType]:
    """As many colours as there are values: those of all figures, or steps of viridis where they do not suffice."""
    import matplotlib

    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def check_format(path: str | Path) -> None:
    """Refuse a file whose suffix is not one of FORMATS. Raises InputError."""
    suffix = Path(path).suffix
    if suffix.lower() not in FORMATS:
        raise InputError(f"File {path} must end in one of {', '.join(FORMATS)}: figures are written as these.")
