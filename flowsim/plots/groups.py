"""Figures of many runs: an ensemble, a sweep, a comparison of methods."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from flowsim.comparison import Comparison
from flowsim.plots.style import COLOURS, LINES, MARKERS, STYLE, Look, colours, logarithmic, own_axes
from flowsim.runs.ensembles import Ensemble

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

GROUPING = ("dims", "scheme", "scale", "method", "step_size", "rtol", "atol")
"""The settings by which members of a sweep are told apart in a figure, the first two of those that vary."""
EDGE = 0.015
"""Where the left edge of an axis is, as a part of its width."""
AT_EDGE: Look = {"marker": "<", "markerfacecolor": "none"}
NAMES = {
    "seconds": "wall time / s",
    "rhs_evaluations": "right-hand sides",
    "steps": "accepted steps",
    "error_worst": "worst relative error of $W_l(t)$",
    "error_t1": "relative error of $W_l(t_1)$",
    "drift": "greatest drift of $D_l$",
    "rtol": "rtol",
}
"""Columns of a comparison as axis labels; errors are relative to the change of the weights."""


def plot_quantiles(ensemble: Ensemble, ax: Axes | None = None, color: str = COLOURS[0]) -> Axes:
    """Quantiles over the members of (L - f*) / (L(0) - f*) against t: the median, 25 to 75 % and 5 to 95 % shaded.

    color: of the curves and bands.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> def draw(seed):
    ...     return fs.Problem(fs.SquaredLoss([[1.0]]), fs.fan_out((1, 8, 8, 1), seed=seed))
    >>> ax = fs.plot_quantiles(fs.ensemble(draw, 5, t1=0.1, method=fs.Scipy("RK45")), Figure().subplots())
    >>> ax.get_legend_handles_labels()[1]
    ['5 to 95 %', '25 to 75 %', 'median of 5 members']
    """
    ax = own_axes(ax)
    lowest, low, middle, high, highest = ensemble.quantiles()
    ax.fill_between(ensemble.time, lowest, highest, color=color, alpha=0.2, linewidth=0, label="5 to 95 %")
    ax.fill_between(ensemble.time, low, high, color=color, alpha=0.4, linewidth=0, label="25 to 75 %")
    ax.semilogy(ensemble.time, middle, color=color, label=f"median of {len(ensemble)} members")
    ax.set_xlabel("time $t$")
    ax.set_ylabel(r"$(L(t) - f^*)\,/\,(L(0) - f^*)$")
    return ax


def sweep_figure(table: xarray.Dataset) -> Figure:
    """A sweep's table drawn: the time to the level `stop_loss`, the rate seen against the certified one, the drift.

    Colours tell the values of the first setting that varies, lines and markers those of the second; members that differ
    in others are pooled. Members without a certified rate stand at the left edge, as hollow triangles; those without a
    rate seen are counted in the legend.

    >>> import tempfile, xarray
    >>> import flowsim as fs
    >>> settings = {"dims": [[1, 9, 1]], "scheme": ["fan_in", "fan_out"], "seeds": 2, "t1": 9.0, "stop_loss": 0.1}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = xarray.load_dataset(fs.sweep(fs.SweepSpec.build({"sweep": settings}), folder).table)
    >>> [ax.get_xlabel() for ax in fs.sweep_figure(table).axes]
    ['time $t$ to the level stop_loss', 'certified rate', 'greatest drift of $D_l$']
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    varying = [name for name in GROUPING if len(np.unique(table[name].values.astype(str))) > 1][:2]
    values = [list(dict.fromkeys(table[name].values.astype(str))) for name in varying] + [["all members"], [""]]
    shades = colours(len(values[0]))
    entries = [Line2D([], [], color=colour, label=word) for colour, word in zip(shades, values[0], strict=True)]
    entries += [
        Line2D([], [], color="0.3", label=word, **_marks(k)) for k, word in enumerate(values[1]) if len(varying) > 1
    ]
    rows = -(-(len(entries) + 2) // 6)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 3.3 + 0.17 * rows), layout="constrained")
        reached, rates, drift = figure.subplots(1, 3)
        for (i, j), members in _groups(table, varying, values):
            line = {"color": shades[i], "linestyle": LINES[j % len(LINES)]}
            _distribution(reached, members.time_reached.values[members.status.values == "converged"], members, line)
            _distribution(drift, members.drift.values, members, line)
            _rates(rates, members, {**_marks(j), "linestyle": "none", "markersize": 3, "color": shades[i]})
        reached.set(xlabel="time $t$ to the level stop_loss", ylabel="share of the members", ylim=(0, 1.02))
        drift.set(xlabel="greatest drift of $D_l$", ylabel="share of the members", ylim=(0, 1.02))
        rates.set(xlabel="certified rate", ylabel="rate seen: $-\\Delta\\log(L - f^*)\\,/\\,t$")
        for ax in (reached, drift):
            if _has_points(ax):
                logarithmic(ax.xaxis)
            else:
                _says_nothing(ax)
        entries += _rates_axes(rates, table)
        title = ", then ".join(varying) or None
        figure.legend(
            handles=entries,
            title=title,
            loc="outside lower center",
            ncols=6,
            handlelength=3.5,
            frameon=False,
            title_fontsize=7,
        )
    return figure


def _rates(ax: Axes, members: xarray.Dataset, look: Look) -> None:
    """The rate seen against the certified one; at the left edge where none is certified."""
    certified, seen = members.certified_rate.values, members.rate_seen.values
    both = (certified > 0) & (seen > 0)
    ax.plot(certified[both], seen[both], **look)
    edge = seen[(seen > 0) & ~both]
    ax.plot(np.full(len(edge), EDGE), edge, transform=ax.get_yaxis_transform(), **{**look, **AT_EDGE})


def _rates_axes(ax: Axes, table: xarray.Dataset) -> list[Line2D]:
    """Scale the axes of the rates; entries of the legend for the members that have no place on them."""
    from matplotlib.lines import Line2D

    seen, certified = table.rate_seen.values > 0, table.certified_rate.values > 0
    if not seen.any():
        _says_nothing(ax)
        return []
    logarithmic(ax.yaxis)
    if (seen & certified).any():
        logarithmic(ax.xaxis)
        ax.axline((1, 1), (2, 2), color="0.6", linewidth=0.8)
        low, high = ax.get_xlim()
        ax.set_xlim(low * (low / high) ** (4 * EDGE), high)  # room for those at the edge
    else:
        ax.set_xticks([])
    entries = []
    if left := int((seen & ~certified).sum()):
        label = f"no certified rate ({left})"
        entries.append(Line2D([], [], color="0.3", label=label, linestyle="none", markersize=4, **AT_EDGE))
    if left := int((~seen).sum()):
        entries.append(Line2D([], [], linestyle="none", label=f"no rate seen, not drawn ({left})"))
    return entries


def _says_nothing(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no member has it", ha="center", transform=ax.transAxes)
    ax.set(xticks=[], yticks=[])


def _marks(place: int) -> Look:
    return {"marker": MARKERS[place % len(MARKERS)], "markersize": 4, "linestyle": LINES[place % len(LINES)]}


def _groups(
    table: xarray.Dataset, varying: list[str], values: list[list[str]]
) -> Iterator[tuple[tuple[int, int], xarray.Dataset]]:
    """(the places of its two values, its members) for every combination that has any."""
    words = [table[name].values.astype(str) for name in varying]
    for places in product(range(len(values[0])), range(len(values[1])) if len(varying) > 1 else (0,)):
        chosen = np.ones(table.sizes["member"], dtype=bool)
        for column, known, place in zip(words, values, places, strict=False):
            chosen &= column == known[place]
        if chosen.any():
            yield places, table.isel(member=np.flatnonzero(chosen))


def _distribution(ax: Axes, values: np.ndarray, members: xarray.Dataset, line: Look) -> None:
    """The share of the members at or below each positive value; those of value 0 are below them all."""
    found = np.sort(values[values > 0])
    if len(found):
        shares = (np.sum(values == 0) + np.arange(len(found) + 1)) / members.sizes["member"]
        ax.step(np.append(found[0], found), shares, where="post", **line)


def _has_points(ax: Axes) -> bool:
    return any(np.isfinite(np.asarray(line.get_xydata(), dtype=float)).all(axis=1).any() for line in ax.lines)


def plot_work_precision(
    comparison: Comparison, ax: Axes | None = None, x: str = "seconds", y: str = "error_worst"
) -> Axes:
    """Column y of a comparison against column x on log axes, a line a method; the reference's uncertainty shaded.

    A method's style follows from its place among the methods compared, whether or not the others have results.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    >>> comparison = fs.compare(problem, ["rk45", "dop853"], t1=1.0, rtols=(1e-4, 1e-6), repeats=1)
    >>> ax = fs.plot_work_precision(comparison, Figure().subplots(), x="rhs_evaluations")
    >>> ax.get_xlabel(), [line.get_label() for line in ax.lines]
    ('right-hand sides', ['rk45', 'dop853'])
    """
    ax = own_axes(ax)
    curves = comparison.curves(x, y)
    for k, name in enumerate(dict.fromkeys(row.method for row in comparison.rows)):
        if name not in curves:
            continue
        work, precision = curves[name]
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "markersize": 4}
        ax.loglog(work, precision, linestyle=("-", "--", ":")[k // len(COLOURS) % 3], label=name, **style)
    if y.startswith("error") and comparison.reference.uncertainty > 0:
        low, high = ax.get_ylim()
        below = min(low, comparison.reference.uncertainty / 10)
        ax.axhspan(below, comparison.reference.uncertainty, color="0.9", label="below the reference's own error")
        ax.set_ylim(min(low, comparison.reference.uncertainty), high)
    ax.set_xlabel(NAMES.get(x, x))
    ax.set_ylabel(NAMES.get(y, y))
    return ax


def work_precision_figure(comparison: Comparison, title: str = "") -> Figure:
    """Error against seconds and against right-hand sides, and drift against seconds, with one legend."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 3.6), layout="constrained")
        axes = figure.subplots(1, 3)
        columns = ("seconds", "error_worst"), ("rhs_evaluations", "error_worst"), ("seconds", "drift")
        for ax, (x, y) in zip(axes, columns, strict=True):
            plot_work_precision(comparison, ax, x, y)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.suptitle(title, fontsize=9)
    return figure
