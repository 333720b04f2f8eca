# %% [markdown]
"""What did my training do? A linear network that PyTorch trained on handwritten digits, judged by flowsim.

Three trainings of the same start with torch.optim.SGD (all data at every step; small batches; momentum), recorded while
they run, and the gradient flow beside them: how far each is from it, what becomes of the imbalance that the flow
conserves, what is proved of the rest, and how to go on in flowsim. It writes digits.png, needs the extras `torch` and
`data`, and takes about half a minute.

    python studies/digits.py [--out studies] [--small]

The `# %%` marks are cells: editors that know the percent format open this file as a notebook.
"""

# %%
import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import flowsim as fs
from flowsim.plots import COLOURS, STYLE

HERE = Path(__file__).parent if "__file__" in globals() else Path()
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=HERE, help="the folder for digits.png")
parser.add_argument("--small", action="store_true", help="fewer steps")
arguments = parser.parse_args([] if "ipykernel" in sys.modules else None)
STEPS, RATE, EVERY = 300 if arguments.small else 3000, 0.4, 30
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The data and the model
#
# 1797 images of 8 x 8 pixels, ten classes as unit vectors, both centred: a linear network has no bias. PyTorch's
# `Linear` stores (out, in) matrices A_l, flowsim's product acts on the rows of X: W_l = A_l^T.

# %%
images, labels = load_digits(return_X_y=True)
X = images / 16
X = X - X.mean(axis=0)
Y = np.eye(10)[labels]
Y = Y - Y.mean(axis=0)
LOSS = fs.LeastSquares(X, Y)


def model() -> torch.nn.Sequential:
    """64 - 48 - 32 - 10 units, linear, without bias; the same start every time."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b, bias=False) for a, b in ((64, 48), (48, 32), (32, 10))]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.7 * layer.in_features**-0.5)
    return torch.nn.Sequential(*layers)


# %% [markdown]
# ## Time
#
# `torch.nn.MSELoss` is a mean of squares over N m numbers, `fs.LeastSquares` half a sum of squares: the training
# minimises 2 / (N m) times the loss. k steps with learning rate eta are a time t = k eta 2 / (N m); with momentum mu a
# step goes 1 / (1 - mu) times as far in the end.

# %%
SCALE = 2 / Y.size


def trained(batch: int | None = None, momentum: float = 0.0) -> fs.Trajectory:
    """A run of torch.optim.SGD from the start, recorded every EVERY steps."""
    network, data, target = model(), torch.tensor(X), torch.tensor(Y)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE * (1 - momentum), momentum=momentum)
    recorder = fs.torch.Recorder(network, optimizer, every=EVERY)
    for _ in range(STEPS):
        seen = slice(None) if batch is None else torch.randint(len(X), (batch,))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(data[seen]), target[seen]).backward()
        optimizer.step()
    return recorder.observe(LOSS, loss_scale=SCALE / (1 - momentum))


runs = {
    "all data": trained(),
    "batches of 32": trained(batch=32),
    "momentum 0.9": trained(momentum=0.9),
}
start = runs["all data"].problem
end = float(runs["all data"].time[-1])
flow = fs.simulate(start, t1=end, save_points=runs["all data"].time)
print(runs["all data"])

# %% [markdown]
# ## Beside the flow
#
# Gradient descent with all data is close to the flow, and conserves the imbalance to first order in its step. Batches
# add noise: each step obeys descent's exact law for its own gradient, and the drift of D_l adds up. Momentum has no
# such law: what it conserves is another quantity.

# %%
def apart(run: fs.Trajectory) -> np.ndarray:
    """||W(t) - W_flow(t)||_F over all layers at the records, over the change of the flow's weights."""
    beside = [np.concatenate([W.ravel() for W in flow.weights_at(min(t, end))]) for t in run.time]
    return np.linalg.norm(run.checkpoints.states - beside, axis=1) / flow.weights_change


print(f"\n{'':16}{'loss':>9}{'from the flow':>16}{'drift of D_1':>14}{'drift of D_2':>14}")
for name, run in {"flow": flow, **runs}.items():
    drifts = "".join(f"{drift:14.2e}" for drift in run.imbalance_drift.max(axis=0))
    print(f"{name:16}{run.loss[-1]:9.3f}{apart(run)[-1]:16.2e}{drifts}")
assert runs["all data"].imbalance_drift.max() < 0.3 * runs["batches of 32"].imbalance_drift.max()

# %% [markdown]
# `diagnose` tells the residuals of the flow's laws and judges none of them, for nobody promised them:

# %%
print(fs.diagnose(runs["batches of 32"]))

# %% [markdown]
# ## What is proved, and going on
#
# From any record on the certificates speak of the flow that starts there. Here they are silent: the loss that is left,
# most of it of digits that no linear map tells apart, could still move the weights far. Going on in flowsim takes the
# weights at the end as the start of a problem.

# %%
print(runs["all data"].certify_tail().words())
further = fs.simulate(fs.Problem(LOSS, runs["all data"].network_at(end)), t1=end, save_points=21)
right = [float((np.argmax(X @ run.product_at(run.time[-1]), axis=1) == labels).mean()) for run in (flow, further)]
print(f"loss {further.loss[0]:.3f} to {further.loss[-1]:.3f}; digits told right {right[0]:.1%}, then {right[1]:.1%}")
assert further.loss[-1] < further.loss[0]

# %% [markdown]
# ## The figure
#
# The loss above its least value, the drift of the imbalance, and the distance from the flow.

# %%
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.2, 3.3), layout="constrained")
    left, middle, right_axes = figure.subplots(1, 3)
    left.semilogy(1e3 * flow.time, flow.excess / flow.excess[0], "k--", label="flow", zorder=3)
    for k, (name, run) in enumerate(runs.items()):
        style = {"color": COLOURS[k], "label": name, "linewidth": 4 - 1.3 * k}  # the first two lie on each other
        left.semilogy(1e3 * run.time, run.excess / run.excess[0], **style)
        middle.semilogy(1e3 * run.time[1:], run.imbalance_drift[1:].max(axis=1), **style)
        right_axes.semilogy(1e3 * run.time[1:], apart(run)[1:], **style)
    middle.semilogy(1e3 * flow.time[1:], np.maximum(flow.imbalance_drift[1:].max(axis=1), 1e-16), "k--", label="flow")
    left.set_ylabel(r"$(L - f^\star)\,/\,(L(0) - f^\star)$")
    middle.set_ylabel(r"greatest drift of $D_l$, relative")
    right_axes.set_ylabel("distance from the flow\n/ change of its weights")
    for axes in (left, middle, right_axes):
        axes.set_xlabel("time $t\\ /\\ 10^{-3}$")
    left.legend(frameon=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "digits.png", dpi=160)
print(f"Wrote {arguments.out / 'digits.png'}")
