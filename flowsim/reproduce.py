"""Figure 1 of Min, Vidal, Mallada (ICML 2023), from the set-up that the paper states (section 5 and appendix A)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsim.checks import as_count
from flowsim.files import write_atomically
from flowsim.initialization import fan_in, fan_out, ntk
from flowsim.losses import SquaredLoss
from flowsim.methods import GradientDescent, Scipy
from flowsim.network import LinearNetwork
from flowsim.plots import COLOURS, STYLE
from flowsim.problem import Problem
from flowsim.rates import Certificate, descent_path, path, theorem_2
from flowsim.rates.theorem_2 import delta_star
from flowsim.runs.simulation import simulate
from flowsim.runs.trajectory import Trajectory
from flowsim.values import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLACK = 1e-12
"""A loss may exceed its bound by this much, relative to L(0), before it counts: round-off."""

REASON = (
    "The printed figure does not follow from the stated set-up. Legend and slopes of the loss panels are about twice"
    " what it gives (1.5 to 3.2 times, by panel and draw), as if the loss were without its factor 1/2; dashed slopes of"
    " the right panel fit a step size of 1e-6, not the stated 5e-6. In the left panel fan_in and fan_out agree; the"
    " printed NTK, about 24, is a hundred times ours: T scales with the square of the model's factor, 1/200 there."
)

PAPER_MEDIANS = {"NTK": 24.0, "fan_in": 16.0, "fan_out": 100.0}
"""The medians of the paper's left panel, read off by eye."""

SCHEMES = {"NTK": ntk, "fan_in": fan_in, "fan_out": fan_out}


@dataclass(frozen=True)
class Panel:
    """One loss panel: a target of ones times `height` with n rows, and the values of Delta* in the paper's legend."""

    name: str
    n: int
    height: float
    printed: tuple[float, ...]


@dataclass(frozen=True)
class Setup:
    """The sizes of the experiment; the defaults are the paper's."""

    widths: tuple[tuple[int, int], ...] = ((100, 200), (200, 300), (300, 500))
    box_width: int = 200
    draws: int = 100
    seeds: int = 10
    step_size: float = 5e-6
    fall: float = 1e-10
    t1: float = 0.5


PANELS = (
    Panel("middle", 1, 2.0, (317.95, 650.70, 973.00)),
    Panel("right", 5, 1.0, (121.97, 196.23, 252.45)),
)


@dataclass(frozen=True)
class Curve:
    """Gradient descent, the flow, Theorem 2's bound and the bound proved for this descent, of one network."""

    label: str
    descent: Trajectory
    flow: Trajectory
    rate: float
    own: Certificate


def reproduce(
    out: Path, seed: int = 0, setup: Setup = Setup(), note: Callable[[str], None] | None = None
) -> Json:
    """Write figure1.png, figure1.pdf and figure1.json into the folder `out`; return what the JSON file holds.

    Left: Delta* over random draws of three initializations. Middle, right: the loss of gradient descent, the flow at
    t = k step_size, and the bound exp(-gamma Delta* k step_size), for three pairs of widths.
    Raises InputError for a negative seed, and when `out` cannot be written.
    """
    as_count(seed, "seed", least=0)
    tell = note or (lambda text: None)
    tell("Delta* over random draws ...")
    boxes = {name: _draws(scheme, setup, seed) for name, scheme in SCHEMES.items()}
    curves: dict[str, list[Curve]] = {}
    rows = []
    for panel in PANELS:
        curves[panel.name] = []
        for index, (h1, h2) in enumerate(setup.widths):
            tell(f"{panel.name} panel, widths ({h1}, {h2}) ...")
            curve, row = _curve(panel, index, setup, seed)
            curves[panel.name].append(curve)
            rows.append(row)
    result = {"seed": seed, "setup": asdict(setup), "left": _quartiles(boxes), "rows": rows, "reason": REASON}
    result["holds"] = {
        "every_bound_positive": all(row["delta_star"] > 0 for row in rows),
        "medians_increase_with_width": all(_increasing(rows, panel.name) for panel in PANELS),
        "no_bound_below_its_loss": all(row["steps_above_bound"] + row["steps_above_own_bound"] == 0 for row in rows),
    }
    _write(Path(out), draw(boxes, curves), result)
    return result


def _draws(scheme: Callable[..., LinearNetwork], setup: Setup, seed: int) -> np.ndarray:
    """scale^2 Delta* of `draws` networks with n = 5, m = 1 and both widths alike."""
    dims = (5, setup.box_width, setup.box_width, 1)
    seeds = np.random.SeedSequence([seed, 1]).spawn(setup.draws)
    networks = (scheme(dims, seed=child) for child in seeds)
    return np.array([network.scale**2 * delta_star(network) for network in networks])


def _quartiles(boxes: dict[str, np.ndarray]) -> Json:
    return {
        name: {"quartiles": np.quantile(values, (0.25, 0.5, 0.75)).tolist(), "paper_median": PAPER_MEDIANS[name]}
        for name, values in boxes.items()
    }


def _curve(panel: Panel, index: int, setup: Setup, seed: int) -> tuple[Curve, Json]:
    dims = (panel.n, *setup.widths[index], 1)
    network = fan_out(dims, seed=seed)
    problem = Problem(SquaredLoss(np.full((panel.n, 1), panel.height)), network)
    certificate, travelled = theorem_2(network, problem.loss), path(network, problem.loss)
    own = descent_path(network, problem.loss, setup.step_size)
    assert certificate.rate is not None
    assert certificate.alpha is not None
    eta = setup.step_size
    descent = simulate(problem, GradientDescent(eta), t1=setup.t1, stop_loss=setup.fall, save_points=2)
    end = float(descent.time[-1])
    steps = np.unique(np.linspace(0, round(end / eta), 26).astype(int))
    flow = simulate(problem, Scipy("DOP853", 1e-10, 1e-13), t1=steps[-1] * eta, save_points=steps * eta)
    initial = descent.steps.excess[0]
    loss = descent.steps.excess / initial
    bound = np.exp(-certificate.rate * eta * np.arange(len(loss)))
    rate = float(descent.rate_seen or np.nan)
    medians = [delta_star(fan_out(dims, seed=child)) for child in np.random.SeedSequence([seed, 2]).spawn(setup.seeds)]
    row = {
        "panel": panel.name,
        "dims": list(dims),
        "steps": len(loss) - 1,
        "delta_star": certificate.alpha,
        "delta_star_median": float(np.median(medians)),
        "rate_bound": certificate.rate,
        "rate_seen": rate,
        "bound_over_rate": certificate.rate / rate,
        "path_over_rate": (travelled.rate or 0.0) / rate,
        "descent_over_rate": (own.rate or 0.0) / rate,
        "gap_descent_flow": float(np.abs(loss[steps] - flow.excess / initial).max()),
        "drift_descent": float(descent.imbalance_drift.max()),
        "drift_flow": float(flow.imbalance_drift.max()),
        "steps_above_bound": int((loss > bound + SLACK).sum()),
        "steps_above_own_bound": int((loss > own.bound(descent.step_time) / initial + SLACK).sum()) if own.rate else 0,
        "delta_star_printed": panel.printed[index] if index < len(panel.printed) else None,
    }
    return Curve(f"{dims[1]}, {dims[2]}", descent, flow, certificate.rate, own), row


def _increasing(rows: list[Json], panel: str) -> bool:
    return bool((np.diff([row["delta_star_median"] for row in rows if row["panel"] == panel]) > 0).all())


def draw(boxes: dict[str, np.ndarray], curves: dict[str, list[Curve]]) -> Figure:
    """The three panels."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        left, *panels = figure.subplots(1, 3, width_ratios=(0.8, 1, 1))
        _draw_boxes(left, boxes)
        for axes, panel in zip(panels, PANELS, strict=True):
            _draw_curves(axes, curves[panel.name])
            target = "Y = 2" if panel.n == 1 else "Y = (1, ..., 1)^T"
            axes.set_title(f"$n = {panel.n},\\ m = 1,\\ {target}$", fontsize=8)
        _draw_legend(figure)
    return figure


def _draw_boxes(axes: Axes, boxes: dict[str, np.ndarray]) -> None:
    names = list(boxes)
    drawn = axes.boxplot(list(boxes.values()), tick_labels=names, widths=0.5, flierprops={"markersize": 3})
    for line in drawn["medians"]:
        line.set_color(COLOURS[1])
    printed = [PAPER_MEDIANS[name] for name in names]
    beside = np.arange(1, len(names) + 1) + 0.36
    axes.plot(beside, printed, "<", color=COLOURS[0], markersize=4, label="median printed in the paper")
    axes.set_yscale("log")
    axes.set_ylabel(r"$\Delta^*$ (rate per unit $\gamma$)")
    axes.set_title(r"$\Delta^*$ at initialization", fontsize=8)
    axes.legend(loc="upper left", frameon=False)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 6)


def _draw_curves(axes: Axes, curves: list[Curve]) -> None:
    for colour, curve in zip(COLOURS, curves, strict=False):
        time, loss = curve.descent.step_time, curve.descent.steps.excess
        axes.semilogy(time, loss / loss[0], color=colour, linewidth=1.2)
        axes.semilogy(time, np.exp(-curve.rate * time), "--", color=colour, linewidth=1)
        if curve.own.rate:
            axes.semilogy(time, curve.own.bound(time) / loss[0], ":", color=colour, linewidth=1.2)
        axes.semilogy(curve.flow.time, curve.flow.excess / loss[0], "o", color=colour, markersize=2.5, fillstyle="none")
        axes.annotate(
            curve.label,
            (time[-1], loss[-1] / loss[0]),
            (0, -5),
            textcoords="offset points",
            ha="right" if time[-1] == axes.dataLim.x1 else "center",
            va="top",
            color=colour,
            fontsize=7,
        )
    axes.set_xlabel(r"time $t = k\,\eta$")
    axes.set_ylabel(r"relative loss $L(t)\,/\,L(0)$")
    axes.set_ylim(curves[0].descent.steps.excess[-1] / curves[0].descent.steps.excess[0] / 60, 3)


def _draw_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    styles = [
        Line2D([], [], color="0.3", label="gradient descent"),
        Line2D([], [], color="0.3", marker="o", linestyle="none", markersize=2.5, fillstyle="none", label="flow"),
        Line2D([], [], color="0.3", linestyle="--", label="bound of Theorem 2 (of the flow)"),
        Line2D([], [], color="0.3", linestyle=":", label="bound proved for this descent"),
        Line2D([], [], linestyle="none", label="numbers: widths $h_1, h_2$"),
    ]
    figure.legend(handles=styles, loc="outside lower right", ncols=5, frameon=False)


def _write(out: Path, figure: Figure, result: Json) -> None:
    for kind in ("png", "pdf"):
        with write_atomically(out / f"figure1.{kind}") as place:
            figure.savefig(place, dpi=200, format=kind)
    with write_atomically(out / "figure1.json") as place:
        place.write_text(json.dumps(result, indent=1, allow_nan=False))


COLUMNS = (
    ("panel", "panel", "{}"),
    ("widths", "dims", "{0[1]}, {0[2]}"),
    ("steps", "steps", "{}"),
    ("Delta*", "delta_star", "{:.1f}"),
    ("printed", "delta_star_printed", "{}"),
    ("rate seen", "rate_seen", "{:.1f}"),
    ("Theorem 2 / rate", "bound_over_rate", "{:.3f}"),
    ("path / rate", "path_over_rate", "{:.3f}"),
    ("descent / rate", "descent_over_rate", "{:.3f}"),
    ("descent-flow", "gap_descent_flow", "{:.1e}"),
    ("drift descent", "drift_descent", "{:.1e}"),
    ("drift flow", "drift_flow", "{:.1e}"),
    ("above bound", "steps_above_bound", "{}"),
)


def table(result: Json) -> str:
    """The rows as a Markdown table, with the left panel's quartiles and the reason for the difference."""
    lines = ["| " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(form.format(row[key]) for _, key, form in COLUMNS) + " |" for row in result["rows"]]
    lines += [""]
    for name, entry in result["left"].items():
        low, middle, high = entry["quartiles"]
        lines.append(
            f"Delta* of {name}: {low:.3g} / {middle:.3g} / {high:.3g} (paper's median {entry['paper_median']:g})"
        )
    lines += ["", *(f"{claim.replace('_', ' ')}: {'yes' if true else 'NO'}" for claim, true in result["holds"].items())]
    return "\n".join([*lines, "", result["reason"]])
