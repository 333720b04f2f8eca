"""Which integrators keep the imbalance matrices D_l = W_l^T W_l - W_{l+1} W_{l+1}^T that gradient flow conserves?

Gauss-Legendre collocation keeps quadratic invariants as well as its stage equations are solved, and a projection puts
every step of an explicit method back onto {D_l = D_l(0)}: both drift by round-off at any tolerance, on every problem.
Error control alone leaves a drift of about the tolerance. Gradient descent obeys a law of its own: each step changes
D_l by exactly eta^2 (G_l^T G_l - G_{l+1} G_{l+1}^T), so that its drift until a given time is proportional to eta.
Drift: the greatest ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F) over layers and 101 times. Writes invariants.png: drift
against rtol, against wall time, along the time, and that of gradient descent against the step size. Takes about ten
minutes.

    python studies/invariants.py --out studies
"""

import argparse
from pathlib import Path

import numpy as np

import flowsim as fs
from flowsim.named_problems import QUICK

KEEPERS = ("gauss-legendre-2", "gauss-legendre-4", "projected-rk45", "projected-dop853")
OTHERS = ("rk45", "dop853", "lsoda", "rkc")
RTOLS = (1e-3, 1e-8)
SWEEP = tuple(10.0 ** -np.arange(3, 11))


def flow_of(problem: fs.Problem, name: str, rtol: float, t1: float, limit: float = 300.0) -> fs.Trajectory:
    """One run with atol = rtol / 100."""
    method = fs.method_named(name, rtol=rtol, atol=rtol / 100)
    return fs.simulate(problem, method, t1=t1, wall_limit=limit)


def drift(problem: fs.Problem, name: str, rtol: float, t1: float) -> str:
    """The greatest drift; the status where the run did not end."""
    try:
        run = flow_of(problem, name, rtol, t1)
    except fs.errors.InputError:
        return "refused"
    return f"{run.imbalance_drift.max():.1e}" + ("" if run.status == "completed" else f" ({run.status})")


def print_table(names: list[str], small: bool) -> None:
    """Drift of every method on every problem at two tolerances."""
    methods = ("gauss-legendre-4", "projected-rk45", "rk45") if small else (*KEEPERS, *OTHERS)
    print("| problem | rtol | " + " | ".join(methods) + " |")
    print("|---" * (2 + len(methods)) + "|")
    for name in names:
        named = fs.problem_named(name)
        t1 = named.t1 / 50 if small else named.t1
        for rtol in RTOLS[:1] if small else RTOLS:
            cells = [drift(named.problem, method, rtol, t1) for method in methods]
            print(f"| {name} | {rtol:g} | " + " | ".join(cells) + " |", flush=True)


def descent_drifts(step_sizes: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """(greatest drift, greatest residual of the exact law relative to ||D_l||) of gradient descent until t = 1."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 30, 40, 2), seed=0))
    drifts, residuals = [], []
    for eta in step_sizes:
        run = fs.simulate(problem, fs.GradientDescent(eta), t1=1.0)
        laws = [law for law in fs.diagnose(run) if law.name.startswith("drift law")]
        drifts.append(float(run.imbalance_drift.max()))
        residuals.append(max(law.residual or 0.0 for law in laws) / min(problem.network.imbalance_norms))
    return drifts, residuals


def draw(out: Path, small: bool) -> None:
    """invariants.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from flowsim.plots import COLOURS, MARKERS, STYLE

    named = fs.problem_named("homogeneous" if small else "depth-6")
    t1, sweep = (named.t1 / 20, SWEEP[:2]) if small else (named.t1, SWEEP)
    methods = ("dop853", "rk45", "rkc", "projected-dop853", "gauss-legendre-4")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(11, 3.3), layout="constrained")
        for k, name in enumerate(methods):
            tolerances = [rtol for rtol in sweep if not (name == "rkc" and rtol < 1e-7)]
            runs = [flow_of(named.problem, name, rtol, t1) for rtol in tolerances]
            style = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 4, "label": name}
            drifts = [run.imbalance_drift.max() for run in runs]
            axes[0].loglog(tolerances, drifts, **style)
            axes[1].loglog([run.stats["seconds"] for run in runs], drifts, **style)
            middle = runs[len(runs) // 2 if name == "rkc" else min(3, len(runs) - 1)]
            along = middle.imbalance_drift.max(axis=1)[1:]
            axes[2].semilogy(middle.time[1:], along, color=COLOURS[k], label=name)
        etas = (0.02, 0.01) if small else (0.01, 0.005, 0.0025, 0.00125, 0.000625)
        drifts, residuals = descent_drifts(etas)
        slope = np.polyfit(np.log(etas), np.log(drifts), 1)[0]
        print(
            f"gradient descent: drift {drifts}, slope {slope:.3f} in the step size; exact law to {max(residuals):.1e}"
        )
        axes[3].loglog(etas, drifts, "o-", color=COLOURS[0], markersize=4, label=f"drift, slope {slope:.2f}")
        axes[3].loglog(etas, residuals, "s--", color=COLOURS[1], markersize=4, label="residual of the exact law")
        axes[0].invert_xaxis()
        axes[0].set(xlabel="rtol", ylabel="greatest drift of $D_l$", title="depth 6: tolerance")
        axes[1].set(xlabel="wall time / s", title="depth 6: work")
        axes[2].set(xlabel="time $t$", title="depth 6: along the time, rtol 1e-6")
        axes[3].set(xlabel=r"step size $\eta$", title="gradient descent, (3, 30, 40, 2)")
        axes[3].legend(frameon=False, loc="center right")
        for ax in axes:
            ax.title.set_fontsize(8)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(out / "invariants.png", dpi=200)
        plt.close(figure)


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help="two problems, short, seconds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print_table(["paper-right", "homogeneous"] if arguments.small else list(QUICK), arguments.small)
    draw(arguments.out, arguments.small)


if __name__ == "__main__":
    main()
