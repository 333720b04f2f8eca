# %% [markdown]
"""From weights to a certified rate: the first steps with flowsim.

A multi-layer linear model has the loss L = f(W_1 W_2 ... W_L). Gradient flow is gradient descent with a vanishing step
size: dW_l/dt = -dL/dW_l. This page simulates it, looks at the result, asks how fast the loss must fall, compares with
gradient descent, and saves and loads the run. It writes quickstart.png and takes a few seconds.

    python studies/quickstart.py [--out studies]

The `# %%` marks are cells: editors that know the percent format open this file as a notebook.
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.plots import COLOURS, STYLE

HERE = Path(__file__).parent if "__file__" in globals() else Path()
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=HERE, help="the folder for quickstart.png")
parser.add_argument("--small", action="store_true", help="no difference here: it takes seconds as it is")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)

# %% [markdown]
# ## Simulate
#
# A problem is a loss together with a network, whose weights are the initial point. Here f(W) = 1/2 ||Y - W||_F^2 with
# a target Y of five rows, and three layers of widths 300 and 500 with entries from N(0, 1/h_l), "fan_out".
# `simulate` integrates the flow from t = 0 to t1. The table that a run prints says how it ended, what it cost, how far
# the loss fell, whether the width was compressed, and how well the invariants were kept.

# %%
problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
flow = fs.simulate(problem, t1=0.02)
print(flow)
assert flow.status == "completed"

# %% [markdown]
# Time is in the flow's own unit, the inverse of [loss per squared weight]: it depends on the scale of the weights, and
# here the loss is gone by t = 0.02 because wide fan_out networks have large gradients.
#
# ## Look
#
# `flow.time`, `flow.loss` and `flow.gradient_norm` are arrays over the saved times; `step_time` and `step_loss` know
# every accepted step. The product W(t) = W_1 ... W_L and the weights can be had at any time, not only at saved ones.
# The full weights come back although a network of a few units was integrated in their place.

# %%
for t in (0.0, 0.00123, 0.02):
    W = flow.product_at(t)
    print(f"t = {t:.5f}: W = {np.round(W.ravel(), 4)}, |Y - W| = {np.linalg.norm(problem.loss.Y - W):.2e}")
W_1, W_2, W_3 = flow.weights_at(0.00123)
print("shapes of the weights:", W_1.shape, W_2.shape, W_3.shape)
assert np.allclose(W_1 @ W_2 @ W_3, flow.product_at(0.00123), atol=1e-6)

# %% [markdown]
# ## The invariants
#
# The imbalance matrices D_l = W_l^T W_l - W_{l+1} W_{l+1}^T do not change along the flow. They are quadratic in the
# weights, and a solver keeps them about as well as its tolerance; `imbalance_drift` is the change of each D_l, relative
# to its norm where that exceeds 1. Gauss-Legendre collocation keeps quadratic invariants to round-off, whatever the
# tolerance.

# %%
loose = fs.simulate(problem, fs.method_named("rk45", rtol=1e-4), t1=0.02)
kept = fs.simulate(problem, fs.method_named("gauss-legendre-2", rtol=1e-4), t1=0.02)
for name, run in (("RK45, rtol 1e-4", loose), ("DOP853, rtol 1e-8", flow), ("Gauss-Legendre, rtol 1e-4", kept)):
    print(f"{name:26} drift of the D_l {run.imbalance_drift.max():.1e}")
assert kept.imbalance_drift.max() < 1e-12

# %% [markdown]
# ## Certify
#
# The product moves by dW/dt = -T(t) grad f(W) with a positive semidefinite operator T, and for this loss
# L(t) <= L(0) exp(-2 alpha t) whenever lambda_min(T(t)) >= alpha for all t. Theorems give such an alpha at t = 0
# already, most of them from the D_l. `certify` asks all it knows and says of each whether it applies, and why not.

# %%
certificates = fs.certify(problem)
print(certificates.summary())
best = certificates.best
assert (flow.loss <= best.bound(flow.time) + 1e-12 * flow.loss[0]).all()

# %% [markdown]
# An alpha known in advance has to hold for every flow with these D_l. Once the flow has been simulated,
# lambda_min(T(t)) itself can be integrated along it: the a-posteriori bound. The two rates show how much the
# certificate leaves on the table.

# %%
posterior = fs.a_posteriori(flow)
seen = np.log(flow.loss[0] / flow.loss[50]) / flow.time[50]
print(f"certified in advance    rate {best.rate:8.1f}")
print(f"a posteriori            rate {2 * posterior.alpha:8.1f}")
print(f"seen until t = {flow.time[50]:g}     rate {seen:8.1f}")
assert best.rate < 2 * posterior.alpha < seen

# %% [markdown]
# ## Compare with gradient descent
#
# Step k of gradient descent with step size eta stands at time t = k eta. Its distance from the flow is proportional
# to eta. So is the drift of its D_l: descent conserves them in the limit only. Both columns should halve with eta.

# %%
descents = {
    eta: fs.simulate(problem, fs.GradientDescent(eta), t1=0.02, save_points=flow.time) for eta in (4e-5, 2e-5, 1e-5)
}
gaps = {eta: np.abs(descent.loss - flow.loss).max() / flow.loss[0] for eta, descent in descents.items()}
for eta, descent in descents.items():
    drift = descent.imbalance_drift.max()
    print(f"eta {eta:.0e}: {descent.stats['steps']} steps, gap of the loss {gaps[eta]:.2e}, drift {drift:.2e}")
assert 1.9 < gaps[2e-5] / gaps[1e-5] < 2.1

# %% [markdown]
# ## Save, load, check
#
# A saved run is one NetCDF file: the curves, the weights at checkpoints, the loss, the method. The loaded one goes on
# from there: it gives the weights at any time. `diagnose` checks a run against every law that it should obey, each to
# the level that its method and tolerance let expect.

# %%
with tempfile.TemporaryDirectory() as folder:
    flow.save(Path(folder) / "run.nc")
    again = fs.load(Path(folder) / "run.nc")
print(fs.diagnose(again))
assert not fs.diagnose(again).broken
assert np.allclose(again.product_at(0.00123), flow.product_at(0.00123))

# %% [markdown]
# ## The figure
#
# Left: the loss of the flow, of gradient descent at eta = 4e-5, and the two bounds above it. Right: the drift of the
# D_l, which separates the methods by many orders of magnitude.

# %%
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    short, first = flow.time <= 0.012, flow.loss[0]
    left.semilogy(flow.time[short], flow.loss[short] / first, color=COLOURS[0], label="gradient flow")
    marks = descents[4e-5].time[short][::5], descents[4e-5].loss[short][::5] / first
    left.semilogy(*marks, "o", markersize=3, color=COLOURS[1], label=r"gradient descent, $\eta = 4\cdot10^{-5}$")
    left.semilogy(flow.time[short], posterior.bound[short] / first, ":", color="0.2", label="bound, a posteriori")
    left.semilogy(flow.time[short], best.bound(flow.time[short]) / first, "--", color="0.5", label="bound, in advance")
    left.set(xlabel="time $t$ (flow's unit)", ylabel="$L(t)\\,/\\,L(0)$")
    left.set_xticks([0, 0.004, 0.008, 0.012])
    runs = {
        r"gradient descent, $\eta = 4\cdot10^{-5}$": (descents[4e-5], COLOURS[1], "-"),
        r"gradient descent, $\eta = 10^{-5}$": (descents[1e-5], COLOURS[1], "--"),
        "RK45, rtol $10^{-4}$": (loose, COLOURS[2], "-"),
        "DOP853, rtol $10^{-8}$": (flow, COLOURS[0], "-"),
        "Gauss-Legendre, rtol $10^{-4}$": (kept, COLOURS[3], "-"),
    }
    for name, (run, colour, line) in runs.items():
        right.semilogy(run.time[1:], run.imbalance_drift[1:].max(axis=1), line, color=colour, label=name)
    right.set_xticks([0, 0.01, 0.02])
    right.set(xlabel="time $t$ (flow's unit)", ylabel="relative drift of $D_l$, greatest over $l$")
    for ax in (left, right):
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "quickstart.png", dpi=160)
print(f"Wrote {arguments.out / 'quickstart.png'}")
