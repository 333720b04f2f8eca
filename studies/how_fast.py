# %% [markdown]
"""How fast will it converge, and is that proved?

Before a flow is simulated: what the certificates say, and how much of the truth that is. After: what a finished
simulation proves of all that comes after it. For gradient descent with its step size too. And where the certificates
say nothing, and why. It writes how_fast.png and takes about ten seconds.

    python studies/how_fast.py [--out studies] [--small]

The `# %%` marks are cells: editors that know the percent format open this file as a notebook.
"""

# %%
import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.plots import COLOURS, MARKERS, STYLE
from flowsim.rates import greatest_step

HERE = Path(__file__).parent if "__file__" in globals() else Path()
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=HERE, help="the folder for how_fast.png")
parser.add_argument("--small", action="store_true", help="fewer draws and widths")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)
DRAWS = 2 if arguments.small else 5

# %% [markdown]
# ## Before the simulation
#
# Under a loss that is dominated by its gradient (assumption A1, the squared loss among them), L - f* falls at the rate
# gamma lambda_min(T) at least, where T depends on the weights and so moves along the flow. A certificate is a number
# alpha that lambda_min(T) never falls below. Theorem 2 of the paper finds one in what the flow conserves, the imbalance
# of neighbouring layers. `path` finds one in how far a loss of this size can move the norms of products of layers
# before it is used up; `combined` takes at every moment the best of all.

# %%
problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
certificates = fs.certify(problem)
print(certificates)
flow = fs.simulate(problem, t1=1.0, stop_loss=1e-10)
print(f"\nrate seen {flow.rate_seen:.1f}")
for name in ("theorem-2", "ball", "path", "combined"):
    rate = certificates[name].rate
    print(f"{name:10} proves {rate:7.1f}, {rate / flow.rate_seen:.0%} of it")
assert certificates.best.rate > 0.85 * flow.rate_seen
assert (flow.steps.excess <= certificates.best.bound(flow.step_time) * (1 + 1e-9)).all()

# %% [markdown]
# A certificate also says how far the weights can move at all, `radius`; and its `bound` falls faster than at the
# constant rate, for early on less can have happened.

# %%
best = certificates.best
print(f"the weights move by {flow.weights_change:.4f}, and by {best.radius:.4f} at most")
assert flow.weights_change <= best.radius

# %% [markdown]
# ## Gradient descent with its step size
#
# What holds for the flow need not hold for gradient descent. With a `method`, `certify` says what is proved of its
# steps; `greatest_step` how long they may be.

# %%
ETA = 5e-6
descent = fs.simulate(problem, fs.GradientDescent(ETA), t1=1.0, stop_loss=1e-10)
of_descent = fs.certify(problem, method=fs.GradientDescent(ETA)).best
top = float(np.linalg.eigvalsh(problem.network.dense_T())[-1])
longest = greatest_step(problem.network, problem.loss)
print(f"{of_descent.name} proves {of_descent.rate:.1f}, {of_descent.rate / descent.rate_seen:.0%} of the rate seen")
print(f"steps up to {longest:.2e} are certified, {longest * top / 2:.0%} of 2 / lambda_max(T)")
assert (descent.steps.excess <= of_descent.bound(descent.step_time) * (1 + 1e-9)).all()

# %% [markdown]
# ## After the simulation
#
# Four layers of moderate width and a target that is not near: no theorem says anything at the start. But each holds
# from any weights on, those at the end of a run as well, and there the loss that is left is small. What a simulation
# has shown up to its end is so proved for all times.

# %%
start = fs.xavier((3, 10, 12, 10, 3), seed=1)
target = start.product + np.random.default_rng(1).standard_normal((3, 3))
hard = fs.Problem(fs.SquaredLoss(target), start)
print(f"certified at the start: {fs.certify(hard).best.rate:.3g}")
run = fs.simulate(hard, t1=200.0, stop_loss=1e-4)
for t in (0.5 * run.time[-1], 0.8 * run.time[-1], run.time[-1]):
    print(run.certify_tail(t).words())
assert run.certify_tail().share > 0.8

# %% [markdown]
# That is a statement on the exact flow from the weights that were computed. How far these are from the flow's own,
# after all steps and not only in each:

# %%
print(run.global_error().words())

# %% [markdown]
# ## Where the certificates are tight, and where they say nothing
#
# alpha over the least lambda_min(T) along the flow: against the hidden width for two, three and four layers, and
# against the distance of the target from the initial product for three layers of width 100. `path` compares what the
# loss can move, which does not depend on the width, with T, which grows with it.

# %%
WIDTHS = (20, 100) if arguments.small else (10, 20, 50, 100, 200, 500, 1000)
DEPTHS = (2, 3, 4)
SIZES = (0.1, 3.0) if arguments.small else (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def least_along(problem: fs.Problem) -> float:
    """The least lambda_min(T) at 25 times until the loss has fallen by 1e-8."""
    end = float(fs.simulate(problem, t1=1e4, stop_loss=1e-8, save_points=2).time[-1])
    run = fs.simulate(problem, t1=end, save_points=25)
    return min(run.core_at(t).lambda_min_T for t in run.checkpoints.times)


def shares(problem: fs.Problem, *names: str) -> list[float]:
    """alpha / the least lambda_min(T) for these certificates."""
    found, least = fs.certify(problem), least_along(problem)
    return [(found[name].alpha or 0.0) / least for name in names]


by_width = {
    depth: [
        np.median(
            [
                shares(
                    fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, *[h] * (depth - 1), 1), seed=seed)),
                    "combined",
                )
                for seed in range(DRAWS)
            ]
        )
        for h in WIDTHS
    ]
    for depth in DEPTHS
}
NAMES = ("theorem-2", "ball", "path", "combined")
by_size = []
for size in SIZES:
    rows = []
    for seed in range(DRAWS):
        network = fs.fan_out((3, 100, 100, 3), seed=seed)
        step = np.random.default_rng(seed).standard_normal((3, 3))
        target = network.product + size * step / np.linalg.norm(step)
        rows.append(shares(fs.Problem(fs.SquaredLoss(target), network), *NAMES))
    by_size.append(np.median(rows, axis=0))
by_size = np.array(by_size)
print("\nalpha / least lambda_min(T), `combined`, fan_out (5, h, .., h, 1), target of ones, medians")
print(f"{'h':>8}" + "".join(f"{h:8}" for h in WIDTHS))
for depth in DEPTHS:
    print(f"L = {depth:4}" + "".join(f"{share:8.3f}" for share in by_width[depth]))
print("\nby the distance of the target from the initial product, fan_out (3, 100, 100, 3), medians")
print(f"{'':12}" + "".join(f"{size:8g}" for size in SIZES))
for name, column in zip(NAMES, by_size.T, strict=True):
    print(f"{name:12}" + "".join(f"{share:8.3f}" for share in column))
assert by_width[3][-1] > by_width[3][0]
assert by_size[0, -1] > 0.95

# %% [markdown]
# Wide networks and near targets: nearly all of the truth. Far targets: `path` ends at 0, for in its worst case the
# residual points, at every moment, where it harms T most; what is left is the imbalance, Theorem 2. A certificate that
# goes on from there would have to know in what direction the residual points, which is what a simulation finds out: see
# "After the simulation". Narrow networks: as soon as a hidden layer is narrower than both ends, lambda_min(T) = 0, and
# there is nothing to certify.
#
# ## The figure

# %%
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.2, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    first, end = flow.excess[0], float(flow.time[-1])
    times = np.linspace(0, end, 200)
    left.semilogy(1e3 * flow.step_time, flow.steps.excess / first, color=COLOURS[3], label="loss of the flow")
    for k, (name, label) in enumerate((("theorem-2", "Theorem 2"), ("ball", "ball"), ("combined", "combined"))):
        left.semilogy(1e3 * times, certificates[name].bound(times) / first, "--", color=COLOURS[k], label=label)
    left.set(xlabel="time $t\\ /\\ 10^{-3}$", ylabel=r"$L(t)\,/\,L(0)$", ylim=(1e-10, 2))
    left.set_title("fan_out (5, 300, 500, 1)", fontsize=8)
    left.legend(loc="lower left", frameon=False)
    for k, depth in enumerate(DEPTHS):
        style = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 4, "label": f"$L = {depth}$"}
        middle.semilogx(WIDTHS, by_width[depth], **style)
    middle.set(xlabel="hidden width $h$ (units)", ylabel=r"$\alpha\,/\,\min_t \lambda_{\min}(T(t))$")
    middle.set_ylim(-0.03, 1.05)
    middle.set_title("combined, fan_out $(5, h, .., h, 1)$", fontsize=8)
    middle.legend(loc="lower right", frameon=False)
    for k, name in enumerate(NAMES):
        style = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 7 - 1.4 * k, "label": name}
        right.semilogx(SIZES, by_size[:, k], **style)
    right.set(xlabel=r"distance of the target, $\|W^\star - W(0)\|_F$", ylim=(-0.03, 1.05))
    right.set_title("fan_out (3, 100, 100, 3)", fontsize=8)
    right.legend(loc="center left", frameon=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "how_fast.png", dpi=160)
print(f"Wrote {arguments.out / 'how_fast.png'}")
