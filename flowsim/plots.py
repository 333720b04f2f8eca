"""Figures: functions that take and return matplotlib Axes; colours that colour-blind readers tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowsim.comparison import Comparison
from flowsim.rates import Certificate
from flowsim.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: Any = {"font.size": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7}
"""Readable when a figure is printed at column width."""
MARKERS = "osD^vPX*<>"
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


def plot(trajectory: Trajectory, ax: Axes | None = None, certificate: Certificate | None = None, **style: Any) -> Axes:
    """The excess loss L - f* against t on a log axis, relative to its start; a certificate's bound dashed."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    initial = trajectory.steps.excess[0] or 1.0
    (line,) = ax.semilogy(trajectory.step_time, trajectory.steps.excess / initial, **{"label": "simulated", **style})
    if certificate is not None and certificate.rate is not None:
        bound = certificate.bound(trajectory.step_time) / initial
        ax.semilogy(trajectory.step_time, bound, "--", color=line.get_color(), label=f"bound of {certificate.name}")
    ax.set_xlabel("time $t$")
    ax.set_ylabel(r"$(L(t) - f^*)\,/\,(L(0) - f^*)$")
    return ax


def plot_work_precision(
    comparison: Comparison, ax: Axes | None = None, x: str = "seconds", y: str = "error_worst"
) -> Axes:
    """Column y of a comparison against column x on log axes, a line a method; the reference's uncertainty shaded.

    A method's style follows from its place among the methods compared, whether or not the others have results.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    curves = comparison.curves(x, y)
    for k, name in enumerate(dict.fromkeys(row.method for row in comparison.rows)):
        if name not in curves:
            continue
        work, precision = curves[name]
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "markersize": 4}
        ax.loglog(work, precision, linestyle=("-", "--", ":")[k // len(COLOURS) % 3], label=name, **style)
    if y.startswith("error") and comparison.reference.uncertainty > 0:
        low, high = ax.get_ylim()
        ax.axhspan(min(low, comparison.reference.uncertainty / 10), comparison.reference.uncertainty, color="0.9")
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
