"""What does label noise do to a network, in the mean?

With fresh noise on the labels, Y + sigma xi_k at step k, descent does not come to rest: it hovers above the minimum,
and drifts along the set of minima. The noise of a gradient cancels in the imbalance D_l, its square does not: in the
mean a step changes D_l by eta^2 (G_l^T G_l - G_{l+1} G_{l+1}^T + Q_l), Q_l the mean of the same with sigma xi in the
place of the residual. Of two layers on a squared loss Q = sigma^2 (n W_2 W_2^T - m W_1^T W_1): where n = m the noise
takes from D_1 what there is of it, and balances the layers. Two thousand paths of descent beside the prediction, with
its standard error, and of the stochastic flow, from whose law Euler-Maruyama is off by O(its step). Writes
label_noise.png. Takes two minutes.

    python studies/label_noise.py --out studies
"""

import argparse
from pathlib import Path

import numpy as np

import flowsim as fs

ETA, SIGMA, T1 = 0.05, 0.5, 60.0


def problem() -> fs.Problem:
    """Two layers, (2, 4, 2), unbalanced: the first layer twice as large as the second."""
    W, V = fs.fan_in((2, 4, 2), seed=0).weights
    return fs.Problem(fs.SquaredLoss([[1.0, 0.5], [0.0, 1.0]]), fs.LinearNetwork((1.5 * W, 0.75 * V)))


def walked(paths: int) -> tuple[fs.StochasticPaths, fs.StochasticPaths, fs.StochasticPaths]:
    """(descent, the stochastic flow, the same with half the step), from the same start."""
    noise = {"label_noise": SIGMA}
    descent = fs.stochastic_paths(problem(), fs.GradientDescent(ETA, **noise), t1=T1, paths=paths, save_points=61)
    flow, finer = (
        fs.stochastic_paths(
            problem(), fs.StochasticFlow(ETA, **noise), t1=T1, paths=paths, save_points=61, seed=1, step_size=h
        )
        for h in (ETA / 4, ETA / 8)
    )
    return descent, flow, finer


def told(many: fs.StochasticPaths) -> tuple[float, float, float, float]:
    """(||mean change of D_1||_F at the end, its distance from the prediction, the standard error of that, the greatest
    score of any entry at any time)."""
    change, prediction = many.changes[0][-1], many.predictions[0][-1]
    error = float(np.sqrt((many.deviations[0][-1] ** 2).sum() / len(many)))
    gap = float(np.linalg.norm(change - prediction))
    return float(np.linalg.norm(change)), gap, error, float(np.abs(many.scores(1)).max())


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help="a hundred paths, seconds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    descent, flow, finer = walked(100 if arguments.small else 2000)
    named = ("descent", descent), ("stochastic flow, steps of eta/4", flow), ("of eta/8", finer)
    for name, many in named:
        change, gap, error, score = told(many)
        print(
            f"{name}, {len(many)} paths: D_1 changed by {change:.5f} in the mean, {gap:.5f} from its prediction, whose"
            f" standard error is {error:.5f}; greatest of all scores {score:.2f}; mean loss at the end"
            f" {many.mean[-1]:.5f} +- {many.standard_error[-1]:.5f}"
        )
    D0, ends = imbalance_norms(descent)
    print(f"||D_1||_F in the mean: {D0:.4f} at the start, {ends[-1]:.4f} at t = {T1:g}")
    draw(arguments.out, descent, finer)


def imbalance_norms(many: fs.StochasticPaths) -> tuple[float, np.ndarray]:
    """||D_1(0)||_F, and (S): ||D_1(0) + mean change||_F."""
    W, V = problem().network.weights
    start = W.T @ W - V @ V.T
    return float(np.linalg.norm(start)), np.linalg.norm(start + many.changes[0], axis=(1, 2))


def draw(out: Path, descent: fs.StochasticPaths, flow: fs.StochasticPaths) -> None:
    """label_noise.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from flowsim.plots import COLOURS, STYLE

    silent = fs.simulate(problem(), fs.GradientDescent(ETA), t1=T1, save_points=121)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.0), layout="constrained")
        low, middle, high = descent.quantiles((0.05, 0.5, 0.95))
        left.fill_between(
            descent.time, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="5 to 95 % of paths"
        )
        left.semilogy(descent.time, middle, color=COLOURS[0], label="median of descent's paths")
        left.semilogy(
            flow.time, np.median(flow.excess, axis=0), color=COLOURS[1], linestyle="--", label="of the flow's"
        )
        left.semilogy(silent.time, silent.excess, color="black", linestyle=":", label="descent without noise")
        left.set(xlabel=r"time $t = k\,\eta$", ylabel="loss $L(t)$", ylim=(1e-5, 10), title="The loss hovers")
        left.legend(frameon=False, fontsize=7)
        start, norms = imbalance_norms(descent)
        expected = np.linalg.norm(descent.predictions[0] + _start(), axis=(1, 2))
        right.plot(descent.time, norms, color=COLOURS[0], label="mean over descent's paths")
        right.plot(descent.time[::5], expected[::5], "o", color="black", markersize=3, label="its prediction")
        _, flowed = imbalance_norms(flow)
        right.plot(flow.time, flowed, color=COLOURS[1], linestyle="--", label="mean over the flow's paths")
        right.axhline(start, color="black", linestyle=":", linewidth=1, label="gradient flow: conserved")
        right.set(xlabel=r"time $t = k\,\eta$", ylabel=r"$\|\mathrm{mean}\ D_1(t)\|_F$", title="The imbalance decays")
        right.set_ylim(bottom=0)
        right.legend(frameon=False, fontsize=7)
        figure.savefig(out / "label_noise.png", dpi=200)
        plt.close(figure)


def _start() -> np.ndarray:
    W, V = problem().network.weights
    return W.T @ W - V @ V.T


if __name__ == "__main__":
    main()
