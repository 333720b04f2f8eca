"""Figures: functions that take and return matplotlib Axes; colours that colour-blind readers tell apart."""

from flowsim.plots.charts import Chart, bounds_of, instantaneous_rate, loss_curve, thinned
from flowsim.plots.groups import plot_quantiles, plot_work_precision, sweep_figure, work_precision_figure
from flowsim.plots.runs import (
    KINDS,
    plot,
    plot_drift,
    plot_effective_rank,
    plot_energy,
    plot_gradient_norm,
    plot_kernel_distance,
    plot_rate,
    plot_sharpness,
    plot_singular_values,
    run_figure,
)
from flowsim.plots.style import COLOURS, FORMATS, LINES, MARKERS, STYLE, check_format

__all__ = [
    "COLOURS",
    "FORMATS",
    "KINDS",
    "LINES",
    "MARKERS",
    "STYLE",
    "Chart",
    "bounds_of",
    "check_format",
    "instantaneous_rate",
    "loss_curve",
    "plot",
    "plot_drift",
    "plot_effective_rank",
    "plot_energy",
    "plot_gradient_norm",
    "plot_kernel_distance",
    "plot_quantiles",
    "plot_rate",
    "plot_sharpness",
    "plot_singular_values",
    "plot_work_precision",
    "run_figure",
    "sweep_figure",
    "thinned",
    "work_precision_figure",
]
