"""Figures of one run: Axes in, Axes out. Without axes a function makes a figure at column width, a legend above it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.plots.charts import (
    MOST_CURVES,
    Chart,
    Curve,
    bounds_of,
    drift_chart,
    effective_rank_chart,
    energy_chart,
    gradient_chart,
    kernel_distance_chart,
    loss_chart,
    rate_chart,
    sharpness_chart,
    singular_values_chart,
)
from flowsim.plots.style import COLOURS, COLUMN, LINES, STYLE, Look, colours, legend_above, own_axes
from flowsim.rates import Certificate, Certificates
from flowsim.runs.trajectory import Trajectory, as_trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FEW = 2
"""Points of so few are marked."""
NEAR = 0.1
"""Decades: data are not drawn nearer than this to the edge of an axis of a few decades."""
Bounds = Certificate | Iterable[Certificate] | None


def plot(trajectory: Trajectory, ax: Axes | None = None, certificate: Bounds = None, **style: Any) -> Axes:
    """The excess loss L - f* against t on a log axis, relative to its start; bounds of certificates dashed.

    certificate: one, or several (`certify(problem)`): then the three greatest rates that hold along the trajectory.
    L / L(0) where f* is unknown; L on a linear axis where it is not positive either. style: of the simulated curve; its
    color, if given, is also that of a single bound. Beyond `trajectory.resolved_until` the curve is thin and grey: what
    round-off and the errors of the steps leave.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow = fs.simulate(problem, t1=0.5)
    >>> ax = fs.plot(flow, Figure().subplots(), fs.certify(problem).best)
    >>> [line.get_label() for line in ax.lines]
    ['simulated', 'bound of path']
    """
    return _draw(loss_chart(as_trajectory(trajectory), bounds_of(certificate)), ax, **style)


def plot_rate(trajectory: Trajectory, ax: Axes | None = None, certificate: Bounds = None, **style: Any) -> Axes:
    """The rate seen, -d/dt log(L - f*), against t; certified rates dashed (those that `plot` would draw).

    trajectory: a run of `simulate`; certificate: one whose rate is drawn beside it.

    For a flow it is ||grad L||_F^2 / (L - f*) at the saved times, for gradient descent the mean over a step.

    Scalar weights: the rate seen is 2 lambda_min(T), T = w_1^2 + w_2^2, 20 at the start.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow = fs.simulate(problem, t1=0.5)
    >>> ax = fs.plot_rate(flow, Figure().subplots())
    >>> round(float(ax.lines[0].get_ydata()[0]), 6)
    20.0
    """
    return _draw(rate_chart(as_trajectory(trajectory), bounds_of(certificate)), ax, **style)


def plot_drift(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F) against t on a log axis, a curve a layer.

    trajectory: a run of `simulate`.

    Beyond six layers the greatest and the least of them.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow = fs.simulate(problem, t1=0.5)
    >>> ax = fs.plot_drift(flow, Figure().subplots())
    >>> len(ax.lines), ax.get_yscale()
    (1, 'log')
    """
    return _draw(drift_chart(as_trajectory(trajectory)), ax, **style)


def plot_singular_values(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """The singular values of W(t), the 32 greatest, against t; those of the loss's minimiser dotted, if it has one.

    trajectory: a run of `simulate`.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow = fs.simulate(problem, t1=0.5)
    >>> ax = fs.plot_singular_values(flow, Figure().subplots())
    >>> round(float(ax.lines[0].get_ydata()[-1]), 1)  # the product came from 3 and goes to 2
    2.0
    """
    return _draw(singular_values_chart(as_trajectory(trajectory)), ax, **style)


def plot_gradient_norm(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """||grad L||_F against t on a log axis.

    trajectory: a run of `simulate`.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow = fs.simulate(problem, t1=0.5)
    >>> ax = fs.plot_gradient_norm(flow, Figure().subplots())
    >>> round(float(ax.lines[0].get_ydata()[0]) ** 2, 6)  # (3 - 2)^2 (3^2 + 1^2)
    10.0
    """
    return _draw(gradient_chart(as_trajectory(trajectory)), ax, **style)


def plot_energy(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """|L(0) - L(t) - integral of ||grad L||_F^2| / (L(0) - f*) against t on a log axis: 0 for the exact flow.

    trajectory: a run of `simulate`.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow = fs.simulate(problem, t1=0.5)
    >>> ax = fs.plot_energy(flow, Figure().subplots())
    >>> bool((ax.lines[0].get_ydata()[1:] < 1e-6).all())
    True
    """
    return _draw(energy_chart(as_trajectory(trajectory)), ax, **style)


def plot_sharpness(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """The largest eigenvalue of Hess L at the checkpoints against t; for gradient descent 2 / step_size dashed.

    trajectory: a run of `simulate`. Raises InputError where it was loaded without its own loss.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[3.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> run = fs.simulate(problem, fs.GradientDescent(0.1), t1=1.0)
    >>> ax = fs.plot_sharpness(run, Figure().subplots())
    >>> [(line.get_label(), round(float(line.get_ydata()[0]), 6)) for line in ax.lines]
    [('sharpness', 10.0), ('2 / step size', 20.0)]
    """
    return _draw(sharpness_chart(as_trajectory(trajectory)), ax, **style)


def plot_kernel_distance(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """||T(t) - T(0)||_F / ||T(0)||_F at the checkpoints against t, T the tangent kernel of the product.

    trajectory: a run of `simulate`.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[2.0]], [[0.0]])))
    >>> ax = fs.plot_kernel_distance(fs.simulate(problem, t1=9.0), Figure().subplots())
    >>> round(float(ax.lines[0].get_ydata()[-1]), 6)
    0.414214
    """
    return _draw(kernel_distance_chart(as_trajectory(trajectory)), ax, **style)


def plot_effective_rank(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """The effective rank of W(t), exp(entropy of its normalised singular values), at the checkpoints against t.

    trajectory: a run of `simulate`.

    >>> from matplotlib.figure import Figure
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> ax = fs.plot_effective_rank(fs.simulate(problem, t1=0.5), Figure().subplots())
    >>> float(ax.lines[0].get_ydata()[0])
    1.0
    """
    return _draw(effective_rank_chart(as_trajectory(trajectory)), ax, **style)


_PANELS: dict[str, Callable[[Trajectory, Axes | None, Certificates], Axes]] = {
    "loss": plot,
    "drift": lambda trajectory, ax, _: plot_drift(trajectory, ax),
    "rate": plot_rate,
    "singular-values": lambda trajectory, ax, _: plot_singular_values(trajectory, ax),
    "gradient": lambda trajectory, ax, _: plot_gradient_norm(trajectory, ax),
    "energy": lambda trajectory, ax, _: plot_energy(trajectory, ax),
    "sharpness": lambda trajectory, ax, _: plot_sharpness(trajectory, ax),
    "kernel-distance": lambda trajectory, ax, _: plot_kernel_distance(trajectory, ax),
    "effective-rank": lambda trajectory, ax, _: plot_effective_rank(trajectory, ax),
}
KINDS = tuple(_PANELS)
FOUR = ("loss", "drift", "rate", "singular-values")
"""The panels of kind "all"."""


def run_figure(trajectory: Trajectory, kind: str, certificates: Certificates) -> Figure:
    """One panel of KINDS at column width, or for kind "all" the FOUR; for printing, 8 points."""
    import matplotlib
    from matplotlib.figure import Figure

    kinds = FOUR if kind == "all" else (kind,)
    rows = columns = round(len(kinds) ** 0.5)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN[0] * columns, COLUMN[1] * rows), layout="constrained")
        for one, ax in zip(kinds, figure.subplots(rows, columns, squeeze=False).ravel(), strict=True):
            legend_above(_PANELS[one](trajectory, ax, certificates))
    return figure


def _draw(chart: Chart, given: Axes | None, **style: Any) -> Axes:
    ax = own_axes(given)
    ax.set(xlabel="time $t$", ylabel=chart.label)
    if chart.missing:
        ax.text(0.5, 0.5, chart.missing, ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return ax
    run, bounds, targets = ([c for c in chart.curves if c.role == role] for role in ("run", "bound", "target"))
    lines = []
    for k, (curve, colour) in enumerate(zip(run, colours(len(run)), strict=True)):
        quiet = len(run) > MOST_CURVES and 0 < k < len(run) - 1
        look = {"color": colour, "label": "_" if quiet else curve.name, "linewidth": 1.2, **style}
        lines += _line(ax, chart, curve, look)
    for k, curve in enumerate(bounds):
        colour = lines[0].get_color() if "color" in style and len(bounds) == 1 else COLOURS[1 + k]
        _line(ax, chart, curve, {"color": colour, "linestyle": LINES[1 + k], "label": curve.name, "linewidth": 1})
    for curve in (c for c in chart.curves if c.role == "unresolved"):
        _line(ax, chart, curve, {"color": "0.75", "label": curve.name, "linewidth": 0.6, "zorder": 1})
    for k, curve in enumerate(targets):
        name = "_" if k else "those of the minimiser"
        _line(ax, chart, curve, {"color": "0.4", "linestyle": ":", "label": name, "linewidth": 0.9})
    _scale(chart, ax)
    if given is None:
        legend_above(ax)
    return ax


def _line(ax: Axes, chart: Chart, curve: Curve, look: Look) -> list[Line2D]:
    """One curve; its points are marked where there are too few to make a line."""
    values = np.where(curve.values > 0, curve.values, np.nan) if chart.logarithmic else curve.values
    if np.isfinite(values).sum() <= FEW:
        look = {"marker": "o" if curve.role == "run" else "_", "markersize": 4, **look}
    return ax.plot(chart.time, values, **look)


def _scale(chart: Chart, ax: Axes) -> None:
    """A logarithmic axis, of at least a decade where round-off would look like a landscape; a linear one from 0."""
    low, high = ax.dataLim.y0, ax.dataLim.y1
    if chart.logarithmic:
        ax.set_yscale("log")
        if chart.round_off and low > 0 and high < 10 * low:
            ax.set_ylim(10.0 ** np.floor(np.log10(low) - NEAR), 10.0 ** np.ceil(np.log10(high) + NEAR))
    elif chart.from_zero and low >= 0 and high > 0:
        ax.set_ylim(bottom=0)
