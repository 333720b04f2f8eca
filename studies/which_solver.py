# %% [markdown]
"""Which solver for my problem?

`fs.compare` runs several methods at several tolerances and measures each against a far tighter solve. This page reads
its table on two problems, a smooth one and a stiff one: how work buys precision, how to see that a problem is stiff,
who keeps the invariants, and when each method is the choice. It writes which_solver.png and takes about ten seconds.

    python studies/which_solver.py [--out studies] [--small]

The `# %%` marks are cells: editors that know the percent format open this file as a notebook.
"""

# %%
import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import flowsim as fs
from flowsim.plots import STYLE, plot_work_precision

HERE = Path(__file__).parent if "__file__" in globals() else Path()
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=HERE, help="the folder for which_solver.png")
parser.add_argument("--small", action="store_true", help="fewer tolerances")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)
RTOLS = (1e-3, 1e-6) if arguments.small else (1e-3, 1e-4, 1e-6, 1e-8)
METHODS = ("rk45", "dop853", "lsoda", "rkc", "gauss-legendre-4", "projected-rk45")

# %% [markdown]
# ## Two problems
#
# Both are f(W) = 1/2 ||Y - W||_F^2. The smooth one: three layers of fan_in weights. The stiff one: two layers of tiny
# weights and a target whose singular values are 8, 4, 2, 1, so that the modes are learned one after the other; while
# the flow waits at the saddle of the last, the first has long converged and contracts quickly. Its time is long.

# %%
rng = np.random.default_rng(0)
smooth = fs.Problem(fs.SquaredLoss(rng.standard_normal((4, 3))), fs.fan_in((4, 12, 10, 3), seed=0))
left, right = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
target = (left * [8.0, 4.0, 2.0, 1.0]) @ right.T
stiff = fs.Problem(fs.SquaredLoss(target), fs.fan_in((4, 10, 4), seed=0, scale=1e-3))
TIMES = {"smooth": 1.0, "stiff": 40.0}

# %% [markdown]
# ## Is it stiff?
#
# A problem is stiff for explicit methods when stability, not accuracy, limits their steps. The size of the question is
# lambda t1, lambda the greatest eigenvalue of the Hessian of L at the end: an explicit Runge-Kutta method of order 5
# that has to stay stable all the way needs about lambda t1 / 3 steps, whatever the tolerance. A second sign needs no
# eigenvalue: at a hundred times tighter tolerance a method of order p takes 100^(1/p) times as many steps where
# accuracy decides, and about as many as before where stability does.

# %%
for name, problem in (("smooth", smooth), ("stiff", stiff)):
    runs = {rtol: fs.simulate(problem, fs.Scipy("RK45", rtol, rtol / 100), t1=TIMES[name]) for rtol in (1e-4, 1e-6)}
    state = runs[1e-6].checkpoints.states[-1]
    sharpness = np.linalg.eigvalsh(-runs[1e-6].simulated.jacobian_product(state, np.eye(state.size)))[-1]
    counts = [run.stats["steps"] for run in runs.values()]
    print(f"{name:7} lambda t1 = {sharpness * TIMES[name]:6.1f}, RK45: {counts[0]} steps at 1e-4, {counts[1]} at 1e-6")
    if name == "smooth":
        assert counts[1] > 2 * counts[0]
    else:
        assert counts[1] < 1.5 * counts[0]

# %% [markdown]
# ## Work and precision
#
# "error worst" is the greatest error of the weights over eleven times, relative to their change; "drift" the greatest
# change of an imbalance D_l; "rhs" counts right-hand sides; "seconds" is warm wall time, compilation apart. The last
# line says how far the reference can be trusted: errors below it mean nothing. The slope of log(error) in log(steps)
# is minus the order that a method shows; where stability sets the steps, it is no order at all. One BLAS thread is
# enough for matrices this small: with several, the timings suffer.

# %%
comparisons = {}
for name, problem in (("smooth", smooth), ("stiff", stiff)):
    with threadpool_limits(1):
        comparisons[name] = fs.compare(problem, METHODS, t1=TIMES[name], rtols=RTOLS, repeats=1)
    print(f"\n{name}\n{comparisons[name].summary()}")
    print("slopes: " + ", ".join(f"{method} {slope:.1f}" for method, slope in comparisons[name].slopes().items()))


def work_to(comparison: fs.Comparison, method: str, error: float) -> float:
    """The fewest right-hand sides with which a method gets below an error."""
    rows = (row for row in comparison.rows if row.method == method and row.error_worst is not None)
    return min((row.rhs_evaluations for row in rows if row.error_worst <= error), default=np.inf)


# %% [markdown]
# The right-hand sides that each method needs for an error of 1e-2 and 1e-5. They do not count Jacobians, and a step
# of collocation or LSODA costs algebra besides; the seconds in the table do count all of that.

# %%
for name, comparison in comparisons.items():
    for error in (1e-2, 1e-5):
        needs = ", ".join(f"{method} {work_to(comparison, method, error):.0f}" for method in METHODS)
        print(f"{name}, error {error:g}: {needs}")
drifts = {m: max(row.drift for c in comparisons.values() for row in c.rows if row.method == m) for m in METHODS}
print("greatest drift of the D_l: " + ", ".join(f"{method} {drift:.0e}" for method, drift in drifts.items()))
kept = {method for method, drift in drifts.items() if drift < 1e-12}
assert kept == {"gauss-legendre-4", "projected-rk45"}
assert work_to(comparisons["smooth"], "dop853", 1e-5) < work_to(comparisons["smooth"], "rkc", 1e-5)
assert min(METHODS, key=lambda method: work_to(comparisons["stiff"], method, 1e-5)) == "lsoda"
assert work_to(comparisons["stiff"], "rkc", 1e-2) < work_to(comparisons["stiff"], "rk45", 1e-2)

# %% [markdown]
# ## When each is the choice
#
# - `dop853`, which the default `auto` begins with: smooth problems; its order 8 makes tight tolerances cheap, and
#   nothing is compiled.
# - `rk45`: the same at loose tolerances. Its relatives `tsit5` and `dopri8` are compiled by jax: they pay where one
#   compilation serves many runs of one shape, as in `fs.ensemble`.
# - `rkc`: stiff networks of any size at loose tolerances. It is explicit, and its stages stretch the region of
#   stability; being of order 2 it is slow for tight tolerances.
# - `krylov-bdf`: stiff networks of any size at any tolerance, by backward differentiation with conjugate gradients;
#   `auto` hands over to it where stability bounds the steps of `dop853` (benchmarks/stiff.py).
# - `lsoda`: stiff networks that are small after compression. It changes to backward differentiation by itself, with
#   the exact Jacobian, and on the stiff problem it needs the fewest right-hand sides. `radau` and `bdf` are its kin.
# - `gauss-legendre-1` to `-4`: when the D_l matter, or laws that follow from them. They keep quadratic invariants to
#   round-off at any tolerance. `projected-NAME` puts every step of an explicit method back onto {D_l = D_l(0)}.
# - `gd`: when gradient descent itself is meant, with its own step size. It is no way to compute the flow: its error
#   falls only in proportion to its work (studies/descent_vs_flow.py).
#
# All of these in more detail: studies/solver_comparison.py on seven named problems, studies/invariants.py on drift.
#
# ## The figure
#
# Error against right-hand sides on the smooth and on the stiff problem, and drift of the D_l against the tolerance on
# the smooth one.

# %%
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    axes = figure.subplots(1, 3)
    plot_work_precision(comparisons["smooth"], axes[0], "rhs_evaluations", "error_worst")
    plot_work_precision(comparisons["stiff"], axes[1], "rhs_evaluations", "error_worst")
    plot_work_precision(comparisons["smooth"], axes[2], "rtol", "drift")
    for ax in axes[:2]:
        ax.set_ylim(1e-10, 1e-2)
    axes[2].invert_xaxis()
    for ax, title in zip(axes, ("smooth: work", "stiff: work", "smooth: invariants"), strict=True):
        ax.set_title(title, fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "which_solver.png", dpi=160)
print(f"Wrote {arguments.out / 'which_solver.png'}")
