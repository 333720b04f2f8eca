"""What does each dynamics conserve, by which method, compressed or not? And are its runs right?

Laws: for gradient flow with and without weight decay, the heavy ball, Nesterov's flow and the modified flow of descent
the greatest residual of each law that `diagnose` judges, at rtol 1e-8, by every kind of method, on a network of widths
(2, 12, 9, 2), full and compressed: D_l(t) = exp(-2 x t) D_l(0) (of its size), M_l = 0 (over the weights squared), and
the energy (of its start). Independence: momentum against scipy's DOP853 at rtol 1e-13 on equations written out here, on
random networks of depth 2 to 5. Width: weight decay on 10^6 hidden units that were drawn compressed, and on 10^5 that
were not. Writes dynamics.png: the loss, the imbalance and the size of the state of each dynamics from one start. Takes
two minutes.

    python studies/dynamics.py --out studies
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.errors import InputError

DECAY = 0.2
OBEYED = {
    "gradient flow": (fs.GradientFlow(), 0.0),
    "with weight decay": (fs.GradientFlow(), DECAY),
    "heavy ball": (fs.HeavyBall(1.0), 0.0),
    "with weight decay ": (fs.HeavyBall(1.0), DECAY),
    "Nesterov": (fs.Nesterov(), 0.0),
    "modified flow": (fs.ModifiedFlow(0.01), 0.0),
}
METHODS = (
    fs.Scipy("DOP853"),
    fs.Scipy("LSODA"),
    fs.Scipy("Radau"),
    fs.Diffrax("Tsit5"),
    fs.Diffrax("Kvaerno5"),
    fs.GaussLegendre(4),
    fs.RKC(),
    fs.Projected(fs.Scipy("DOP853")),
    fs.Leapfrog(0.01),
    fs.Leapfrog(0.01, 4),
    fs.GradientDescent(0.01),
)
T1 = 5.0


def problem(weight_decay: float) -> fs.Problem:
    """Three layers, (2, 12, 9, 2), fan_in."""
    network = fs.fan_in((2, 12, 9, 2), seed=0)
    return fs.Problem(fs.SquaredLoss([[1.0, 2.0], [-1.0, 1.0]]), network, weight_decay=weight_decay)


def residuals(run: fs.Trajectory) -> dict[str, float]:
    """Of each law that the run should obey: "D", "M", "E"."""
    found = {}
    size = float((run.checkpoints.states**2).sum(axis=1).max())
    if run.dynamics.keeps_imbalance:
        found["D"] = float(run.imbalance_drift.max())
    momenta = [
        max(run.simulated_motion.residuals(float(t), run.checkpoints.whole(k)).values(), default=0.0)
        for k, t in enumerate(run.checkpoints.times)
    ]
    if run.dynamics.second_order:
        found["M"] = max(momenta) / size
    found["E"] = float(np.abs(run.energy_residual).max())
    return found


def laws(methods: tuple[fs.Method, ...] = METHODS) -> list[tuple[str, str, str, dict[str, float] | None]]:
    """(dynamics, method, "full" or "compressed", residuals; None where the method refuses the dynamics)."""
    rows = []
    for name, (dynamics, decay) in OBEYED.items():
        for method in methods:
            for reduce in ("never", "always"):
                try:
                    run = fs.simulate(
                        problem(decay), method, t1=T1, dynamics=dynamics, save_points=21, reduce=reduce, max_steps=10**5
                    )
                    assert run.status == "completed", run.message
                    found = residuals(run)
                except InputError:
                    found = None
                rows.append((name, method.key, "full" if reduce == "never" else "compressed", found))
    return rows


def written_out(subject: fs.Problem, dynamics: fs.HeavyBall | fs.Nesterov, t1: float) -> np.ndarray:
    """The weights at t1 as one vector, by scipy alone: theta'' + b(t) theta' = -grad L from rest."""
    dims, Y = subject.network.dims, subject.loss.Y
    ends = np.cumsum([0, *(a * b for a, b in pairwise(dims))])
    size, soon = int(ends[-1]), 1e-8

    def gradient(y: np.ndarray) -> np.ndarray:
        W = [y[s:e].reshape(shape) for (s, e), shape in zip(pairwise(ends), pairwise(dims), strict=True)]
        before, after = [np.eye(dims[0])], [np.eye(dims[-1])]
        for V in W[:-1]:
            before.append(before[-1] @ V)
        for V in reversed(W[1:]):
            after.append(V @ after[-1])
        E = before[-1] @ W[-1] - Y
        return np.concatenate([(A.T @ E @ B.T).ravel() for A, B in zip(before, reversed(after), strict=True)])

    def velocity(t: float, z: np.ndarray) -> np.ndarray:
        b = 3 / t if isinstance(dynamics, fs.Nesterov) else dynamics.friction
        return np.concatenate([z[size:], -gradient(z[:size]) - b * z[size:]])

    start = np.concatenate([W.ravel() for W in subject.network.weights])
    rest = -gradient(start) * (soon / 4 if isinstance(dynamics, fs.Nesterov) else soon)
    moved = np.append(start, rest)
    return solve_ivp(velocity, (soon, t1), moved, "DOP853", rtol=1e-13, atol=1e-15).y[:size, -1]


def independent(count: int = 50, t1: float = 3.0) -> dict[str, float]:
    """The greatest difference of any weight from `written_out`, over the greatest weight, of random networks."""
    worst = {"HeavyBall": 0.0, "Nesterov": 0.0}
    for seed in range(count):
        rng = np.random.default_rng([3, seed])
        n, m = (int(x) for x in rng.integers(1, 4, 2))
        dims = (n, *(int(h) for h in rng.integers(max(3, min(n, m)), 8, 1 + seed % 4)), m)
        subject = fs.Problem(fs.SquaredLoss(rng.standard_normal((n, m))), fs.fan_in(dims, seed=seed))
        for dynamics in (fs.HeavyBall(float(rng.uniform(0.1, 2.0))), fs.Nesterov()):
            run = fs.simulate(subject, fs.Scipy("DOP853", 1e-12, 1e-14), t1=t1, dynamics=dynamics)
            true = written_out(subject, dynamics, t1)
            gap = float(np.abs(run.checkpoints.states[-1] - true).max() / np.abs(true).max())
            worst[dynamics.name] = max(worst[dynamics.name], gap)
    return worst


def wide() -> list[tuple[str, int, float, float]]:
    """(how, width, greatest drift of D_1, what else: error estimate, or the distance from the full weights' run)."""
    rows, loss = [], fs.SquaredLoss([[1.0], [2.0]])
    for width in (10**6, 10**9):
        network = fs.sample_compressed("fan_out", (2, width, 1), seed=0)
        run = fs.simulate(fs.Problem(loss, network, weight_decay=width / 300), t1=5 / width)
        rows.append(("drawn compressed", width, float(run.imbalance_drift.max()), float(run.error_estimate.max())))
    width = 10**5
    subject = fs.Problem(loss, fs.fan_out((2, width, 1), seed=0), weight_decay=width / 300)
    full, small = (fs.simulate(subject, t1=5 / width, save_points=3, reduce=reduce) for reduce in ("never", "always"))
    ends = zip(full.weights_at(5 / width), small.weights_at(5 / width), strict=True)
    apart = float(np.sqrt(sum(((V - W) ** 2).sum() for V, W in ends)) / full.weights_change)
    rows.append(("full against compressed", width, float(full.imbalance_drift.max()), apart))
    return rows


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help="fewer methods and networks, seconds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    quick = [fs.Scipy("DOP853"), fs.GaussLegendre(4), fs.Projected(fs.Scipy("DOP853")), fs.Leapfrog(0.01, 4)]
    print("greatest residual of each law, full | compressed")
    table = laws(tuple(quick) if arguments.small else METHODS)
    for one, other in zip(table[::2], table[1::2], strict=True):
        if one[3] is not None:
            print(f"{one[0]:20} {one[1]:18} {_cells(one[3])}  |  {_cells(other[3])}")
    refused = [f"{name.strip()} by {key}" for name, key, form, found in table if found is None and form == "full"]
    print(f"refused: {', '.join(refused)}")
    count = 5 if arguments.small else 50
    for name, gap in independent(count).items():
        print(f"{name}: {count} random networks, greatest relative difference from scipy on its equations: {gap:.1e}")
    for how, width, drift, other in wide():
        print(f"weight decay, {width:.0e} hidden units, {how}: drift of D_1 {drift:.1e}, error {other:.1e}")
    draw(arguments.out)


def _cells(found: dict[str, float] | None) -> str:
    return "refused" if found is None else "  ".join(f"{law} {value:7.1e}" for law, value in found.items())


def draw(out: Path) -> None:
    """dynamics.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from flowsim.plots import COLOURS, STYLE

    runs = {
        name: fs.simulate(problem(decay), t1=8.0, dynamics=dynamics, save_points=400, reduce="never")
        for name, (dynamics, decay) in OBEYED.items()
        if name not in ("modified flow", "with weight decay ")
    }
    labels = ["gradient flow", f"with weight decay {DECAY:g}", "heavy ball, friction 1", "Nesterov, friction 3 / t"]
    lines = ["-", "--", "-.", ":"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.0), layout="constrained")
        for k, run in enumerate(runs.values()):
            look = {"color": COLOURS[k], "linestyle": lines[k], "linewidth": 1.5}
            axes[0].semilogy(run.time, run.excess, label=labels[k], **look)
            weights = [run.weights_at(t) for t in run.checkpoints.times]
            D = [np.linalg.norm(W[0].T @ W[0] - W[1] @ W[1].T) for W in weights]
            axes[1].plot(run.checkpoints.times, np.array(D) / D[0], **look)
            axes[2].plot(
                run.checkpoints.times, [np.linalg.norm(run.checkpoints.whole(j)) for j in range(len(D))], **look
            )
        axes[0].set(xlabel="time $t$", ylabel="loss $L(t)$", ylim=(1e-8, 10))
        axes[1].set(xlabel="time $t$", ylabel=r"imbalance $\|D_1(t)\|_F / \|D_1(0)\|_F$")
        axes[2].set(xlabel="time $t$", ylabel=r"weights and velocities $(\|W\|^2 + \|\dot W\|^2)^{1/2}$")
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(out / "dynamics.png", dpi=200)
        plt.close(figure)


if __name__ == "__main__":
    main()
