"""Figures: functions that take and return matplotlib Axes; colours that colour-blind readers tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowsim.rates import Certificate
from flowsim.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: Any = {"font.size": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7}
"""Readable when a figure is printed at column width."""


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
