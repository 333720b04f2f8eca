"""Which solver for which problem?

Work against precision on the seven named problems of flowsim: the greatest error of the weights over eleven times,
relative to their change, against warm wall time in one process, compression of the width included, compilation apart.
Methods of every kind: explicit Runge-Kutta in NumPy and compiled by jax, multistep with an exact Jacobian, stabilised
explicit, collocation that keeps the invariants. Writes solver_comparison.png (error against time) and
solver_comparison.json (all rows), and prints for each problem which method reaches errors of 1e-4, 1e-6 and 1e-10
first, the slopes against the steps, and a sentence that says why. Takes about ten minutes.

    python studies/solver_comparison.py --out studies
"""

import argparse
import json
import sys
from pathlib import Path

import flowsim as fs
from flowsim.comparison import Comparison
from flowsim.named_problems import QUICK

METHODS = ("dop853", "rk45", "lsoda", "rkc", "gauss-legendre-4", "projected-dop853", "tsit5", "dopri8")
TARGETS = (1e-4, 1e-6, 1e-10)
WHY = {
    "paper-middle": "Compressed to a few units and not stiff: explicit Runge-Kutta, compiled where many runs share the"
    " compilation, dop853 for a single one.",
    "paper-right": "As the middle panel, a little wider.",
    "staircase": "Stiff: early modes contract while late ones wait. rkc at loose tolerances; lsoda with the exact"
    " Jacobian without jax; explicit methods are held back by stability, so that tightening costs them little.",
    "depth-6": "Too narrow for six layers to be compressed, so that each right-hand side counts: tsit5, dop853.",
    "homogeneous": "Small and smooth, gone in a dozen steps: every explicit method does.",
    "least-squares": "Ill-conditioned data keep slow directions and quick ones: mildly stiff, compiled methods.",
    "classification": "The loss falls like 1/t and the steps grow with t: few steps, high order.",
}


def compare(name: str, small: bool) -> Comparison:
    """All methods on one named problem."""
    named = fs.problem_named(name)
    methods, rtols = (METHODS[:2], (1e-3, 1e-6)) if small else (METHODS, (1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12))
    limit = 5.0 if small else 20.0
    t1 = named.t1 / 20 if small else None
    return fs.compare(
        named, methods, rtols=rtols, t1=t1, time_limit=limit, note=lambda text: print(text, file=sys.stderr)
    )


def first_to(comparison: Comparison, target: float) -> str:
    """The quickest row whose error is below the target, and how much slower the default method is."""
    rows = [r for r in comparison.rows if r.error_worst is not None and r.error_worst <= target and r.seconds]
    if not rows:
        return "none"
    best = min(rows, key=lambda r: r.seconds or 0.0)
    default = min((r.seconds or 0.0 for r in rows if r.method == "dop853"), default=None)
    ratio = "" if default is None else f", dop853 x {default / (best.seconds or 1.0):.1f}"
    return f"{best.method} ({1e3 * (best.seconds or 0.0):.3g} ms{ratio})"


def report(name: str, comparison: Comparison) -> None:
    """A row of the table, and the slopes."""
    cells = " | ".join(first_to(comparison, target) for target in TARGETS)
    print(f"| {name} | {cells} | {comparison.reference.uncertainty:.0e} | {WHY[name]} |", flush=True)
    slopes = ", ".join(f"{method} {slope:.1f}" for method, slope in comparison.slopes().items())
    failed = ", ".join(dict.fromkeys(f"{r.method}: {r.status}" for r in comparison.rows if r.status != "completed"))
    print(f"{name}: slopes of log error in log steps: {slopes}" + (f"; {failed}" if failed else ""), file=sys.stderr)


def draw(out: Path, comparisons: dict[str, Comparison]) -> None:
    """solver_comparison.png: a panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from flowsim.plots import STYLE, plot_work_precision

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 4, figsize=(11, 5.4), layout="constrained", sharey=True)
        for ax, (name, comparison) in zip(axes.flat, comparisons.items(), strict=False):
            plot_work_precision(comparison, ax)
            ax.set_title(name, fontsize=8)
            ax.yaxis.label.set_visible(ax.get_subplotspec().is_first_col())
        for ax in axes.flat[len(comparisons) :]:
            ax.axis("off")
        axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
        figure.savefig(out / "solver_comparison.png", dpi=200)
        plt.close(figure)


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--problems", nargs="*", default=list(QUICK), choices=list(fs.PROBLEMS))
    parser.add_argument("--small", action="store_true", help="two methods, short, seconds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = ("homogeneous", "paper-middle") if arguments.small else arguments.problems
    print("| problem | " + " | ".join(f"first to {target:g}" for target in TARGETS) + " | reference | why |")
    print("|---" * (3 + len(TARGETS)) + "|")
    comparisons = {}
    for name in names:
        comparisons[name] = compare(name, arguments.small)
        report(name, comparisons[name])
    rows = {name: comparison.to_json() for name, comparison in comparisons.items()}
    (arguments.out / "solver_comparison.json").write_text(json.dumps(rows))
    draw(arguments.out, comparisons)


if __name__ == "__main__":
    main()
