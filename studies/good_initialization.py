# %% [markdown]
"""Is my initialization good?

Given weights, or a scheme that draws them: which certificates hold, how large they are, what the flow then does, and
what to change. The page ends with a change that leaves the function at t = 0 as it is, and makes a weak certificate
sharp. It writes good_initialization.png and takes a few seconds.

    python studies/good_initialization.py [--out studies]

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

HERE = Path(__file__).parent if "__file__" in globals() else Path()
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=HERE, help="the folder for good_initialization.png")
parser.add_argument("--small", action="store_true", help="no difference here: it takes seconds as it is")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)

# %% [markdown]
# ## What good means
#
# The product W = W_1 W_2 W_3 moves by dW/dt = -T grad f(W), T a positive semidefinite operator that the weights make.
# For f = 1/2 ||Y - W||_F^2 the loss falls at least as exp(-2 alpha t) while lambda_min(T) >= alpha, so that an
# alpha > 0 known at t = 0 is a promise for all times: no saddle, a minimum in the end, in a time that is known.
#
# A large alpha alone is not a virtue: doubling the weights of three layers multiplies T, and so alpha, by 16, but the
# largest stable step of gradient descent falls alike. What remains is the quotient lambda_max(T) / alpha: up to a
# factor it is the number of steps in which descent is promised to bring the loss down by e, as long as T stays near
# T(0), and it does not depend on the unit of time.

# %%
Y = np.array([[1.0], [-0.5], [0.5], [2.0]])
loss = fs.SquaredLoss(Y)
DIMS = (4, 60, 80, 1)
FALL = 1e-6


def report(name: str, network: fs.LinearNetwork) -> tuple[fs.Certificate, float, fs.Trajectory]:
    """(the best certificate, lambda_max(T) at t = 0, the flow until the loss has fallen by FALL), printed as a row."""
    problem = fs.Problem(loss, network)
    flow = fs.simulate(problem, t1=2e3, stop_loss=FALL)
    found = fs.certify(problem)
    best, least, largest = found.best, network.lambda_min_T, float(np.linalg.eigvalsh(network.dense_T())[-1])
    quotient, promised = (largest / best.alpha, np.log(1 / FALL) / best.rate) if best.alpha else (np.inf, np.inf)
    print(
        f"{name:15}{found['theorem-2'].alpha:10.3g}{best.alpha:10.3g}  {best.name:20}{least:10.3g}{largest:10.3g}"
        f"{quotient:10.3g}{promised:10.3g}{flow.time[-1]:10.3g}"
    )
    assert flow.status == "converged"
    return best, largest, flow


def head() -> None:
    """The table's head."""
    words = ("Theorem 2", "alpha", "  of", "min T", "max T", "max/alpha", "promised", "time")
    print(f"{'':15}" + "".join(f"{word:22}" if word == "  of" else f"{word:>10}" for word in words))


# %% [markdown]
# ## Weights at hand
#
# Any list of matrices that chain is a network. Here they come from a generator; they might as well come from a file
# (`flowsim certify w.npz --target y.npy` asks the same on the command line). `certify` lists every theorem with its
# reason: it is the place to learn why a certificate fails.

# %%
rng = np.random.default_rng(7)
mine = fs.LinearNetwork(tuple(0.1 * rng.standard_normal(shape) for shape in ((4, 60), (60, 80), (80, 1))))
print(fs.certify(fs.Problem(loss, mine)).summary())

# %% [markdown]
# For three layers of any weights there is Theorem 2, which needs the imbalances D_l = W_l^T W_l - W_{l+1} W_{l+1}^T
# alone. Entries of one size throughout give an alpha well below lambda_min(T): the promise is true, but weak.
#
# ## Schemes
#
# The same question for the usual schemes, and for weights ten times smaller than fan_in's. The columns: alpha of
# Theorem 2, alpha of the best certificate and its name, the extreme eigenvalues of T at t = 0, lambda_max(T) / alpha,
# the time in which the certificate promises that the loss falls by 1e-6, and the time that the flow takes.

# %%
head()
judgements = {"mine": report("mine", mine)}
for scheme in ("fan_in", "fan_out", "xavier", "ntk", "orthogonal", "balanced"):
    judgements[scheme] = report(scheme, fs.initialize(scheme, DIMS, seed=0))
judgements["fan_in x 0.1"] = report("fan_in x 0.1", fs.fan_in(DIMS, seed=0, scale=0.1))
assert judgements["balanced"][0].alpha > 0.05
assert max(judgements, key=lambda name: judgements[name][0].alpha) == "fan_out"
slower = judgements["fan_in x 0.1"][2].time[-1] / judgements["fan_in"][2].time[-1]
print(f"with weights ten times smaller T(0) is 10^4 times smaller, the flow takes {slower:.0f} times as long")
assert 5 < slower < 100

# %% [markdown]
# What to read off:
#
# - Gaussian layers are unbalanced by chance, and Theorem 2 covers them all. Under fan_out, whose last layer outweighs
#   the middle one, it gives most, and under fan_in, whose first layer does, the next most.
# - Balanced layers have D_l = 0: Theorem 2 gives 0 up to round-off. Their certificate comes from the product, which
#   stays away from 0 because W(0) is nearer to Y than 0 is. A target of the opposite sign would take that away.
# - Small weights cost time, but less than lambda_min(T(0)) and the certificate say: T grows along the flow, which no
#   bound that has to hold from t = 0 on can use. `fs.a_posteriori(flow)` gives the rate that the flow had.
#
# A certificate of 0 is no verdict in general, but it can be right. With n = m = 1 and balanced weights of the wrong
# sign the flow ends in the saddle W = 0, never at the target.

# %%
saddle = fs.Problem(fs.SquaredLoss([[-1.0]]), fs.LinearNetwork(([[0.7]], [[0.7]])))
stuck = fs.simulate(saddle, t1=50.0)
print(f"W(0) = 0.49, target -1: alpha {fs.certify(saddle).best.alpha:g}, W(50) = {stuck.product_at(50.0).item():.2e}")
assert fs.certify(saddle).best.alpha == 0
assert abs(stuck.product_at(50.0).item()) < 1e-6

# %% [markdown]
# ## What to change
#
# Theorem 2 lives on the imbalance between the middle layer and its neighbours. Multiply the end layers by c and divide
# the middle one by c^2: the function W is the same, the imbalance is another. As c grows, the part
# ||W_1^T v||^2 ||W_3||^2 of T outweighs the others; the D_l know it, and so it cannot be lost along the flow.

# %%
start = fs.xavier(DIMS, seed=0)
factors = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
head()
moved = {}
for c in factors:
    W_1, W_2, W_3 = start.weights
    network = start.with_weights((c * W_1, W_2 / c**2, c * W_3))
    assert np.allclose(network.product, start.product)
    moved[c] = (network, *report(f"xavier, c = {c}", network))
shares = {c: best.alpha / network.lambda_min_T for c, (network, best, _, _) in moved.items()}
quotients = {c: largest / best.alpha for c, (_, best, largest, _) in moved.items()}
growth = {
    c: flow.core_at(flow.time[-1]).lambda_min_T / network.lambda_min_T for c, (network, _, _, flow) in moved.items()
}
for c in (1.0, 2.0, 4.0):
    print(
        f"c = {c}: alpha / lambda_min(T) {shares[c]:.2f}, lambda_max(T) / alpha {quotients[c]:.2f},"
        f" lambda_min(T) at the end over that at the start {growth[c]:.2f}"
    )
assert shares[2.0] > 0.9
assert quotients[4.0] < quotients[2.0] < quotients[1.0] / 2
assert abs(growth[4.0] - 1) < abs(growth[2.0] - 1) < abs(growth[1.0] - 1)

# %% [markdown]
# Below c = 1 the middle layer outweighs the ends, and the D_l say little about T. At c = 2 the certificate is nearly
# sharp. More is of little use: lambda_max(T) grows alike, and the quotient is close to the condition number of
# W_1 W_1^T. A recipe for three layers, then: make the ends outweigh the middle, and take the step size of descent from
# lambda_max(T).
#
# It has a price. The larger c, the less T moves along the flow, as the last column shows: this is lazy training. Where
# features are to be learned, a large alpha is not the aim.
#
# ## The figure
#
# Left: the loss of five initializations and, dashed, what their certificates promise. Right: the same function with its
# layers rebalanced by c.

# %%
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(7.0, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {name: judgements[name] for name in ("fan_in", "fan_in x 0.1", "balanced", "xavier")}
    shown["xavier, $c = 2$"] = moved[2.0][1:]
    t = np.geomspace(1e-3, 2e4, 400)
    for k, (name, (best, _, flow)) in enumerate(shown.items()):
        end = float(flow.time[-1])
        dense = fs.simulate(flow.problem, t1=end, save_points=np.geomspace(min(1e-3, 0.01 * end), end, 200))
        left.loglog(dense.time[1:], dense.excess[1:] / dense.excess[0], color=COLOURS[k], label=name)
        left.loglog(t, best.bound(t) / flow.excess[0], "--", color=COLOURS[k], linewidth=0.9)
    left.plot([], [], "--", color="0.3", linewidth=0.9, label="certified")
    left.set(xlim=(1e-3, 2e4), ylim=(1e-6, 2), xlabel="time $t$ (flow's unit)", ylabel="$L(t)\\,/\\,L(0)$")
    curves = {
        r"$\lambda_{\max}(T(0))$": [largest for _, _, largest, _ in moved.values()],
        r"$\lambda_{\min}(T(0))$": [network.lambda_min_T for network, *_ in moved.values()],
        r"$\alpha$, best certificate": [best.alpha for _, best, _, _ in moved.values()],
    }
    for k, (name, values) in enumerate(curves.items()):
        line = {"linestyle": ("-", "-", "--")[k], "marker": MARKERS[k], "markersize": (4, 6, 3)[k]}
        right.loglog(factors, values, color=COLOURS[k], label=name, **line)
    right.set(xlabel="$c$: ends times $c$, middle over $c^2$, the same $W$", ylabel="eigenvalue (1 / time)")
    right.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    right.minorticks_off()
    for ax in (left, right):
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "good_initialization.png", dpi=160)
print(f"Wrote {arguments.out / 'good_initialization.png'}")
