"""When is gradient descent gradient flow, and when not?

Gradient descent with step size eta follows the flow of L to first order in eta, and to second order the modified flow
dW/dt = -grad(L + eta/4 ||grad L||_F^2) (Barrett and Dherin 2021; backward error analysis as in Hairer, Lubich and
Wanner, chapter IX): the greatest distance of the weights falls with slope 1 and slope 2. It leaves both where
eta lambda_max passes 2, lambda_max the greatest eigenvalue of the Hessian: the steps along that eigenvector then
overshoot, the loss rises, and descent comes to rest, if at all, at weights where lambda_max is at most 2 / eta: flatter
ones than the flow's. Writes descent_vs_flow.png: distance against eta; the loss of
descent beside the flow for several eta lambda_max. Takes half a minute.

    python studies/descent_vs_flow.py --out studies
"""

import argparse
from pathlib import Path

import numpy as np

import flowsim as fs

T1 = 1.0
SHARES = (0.2, 1.0, 2.0, 3.0, 4.0, 5.0)
"""eta lambda_max(0)."""


def problem() -> fs.Problem:
    """Three layers, (4, 20, 30, 3), fan_in, a Gaussian target."""
    Y = np.random.default_rng(0).standard_normal((4, 3))
    return fs.Problem(fs.SquaredLoss(Y), fs.fan_in((4, 20, 30, 3), seed=0))


def sharpness(subject: fs.Problem, state: np.ndarray) -> float:
    """lambda_max of the Hessian of L."""
    return float(np.linalg.eigvalsh(-subject.jacobian_product(state, np.eye(state.size)))[-1])


def distances(subject: fs.Problem, eta: float) -> tuple[float, float]:
    """The greatest distance of descent's weights from the flow and from the modified flow, over the change of W."""
    descent = fs.simulate(subject, fs.GradientDescent(eta), t1=T1, save_points=11, reduce="never")
    times = descent.time
    tight = fs.Scipy("DOP853", 1e-12, 1e-14)
    flow, modified = (
        fs.simulate(subject, tight, t1=times[-1], dynamics=obeyed, save_points=times, reduce="never")
        for obeyed in (fs.GradientFlow(), fs.ModifiedFlow(eta))
    )
    apart = [run.checkpoints.states - descent.checkpoints.states for run in (flow, modified)]
    from_flow, from_modified = (float(np.linalg.norm(gap, axis=1).max()) / flow.weights_change for gap in apart)
    return from_flow, from_modified


def edge(subject: fs.Problem, share: float) -> tuple[fs.Trajectory, float]:
    """Descent at eta = share / lambda_max(0), 60 steps; the greatest gap of its loss from the flow."""
    eta = share / sharpness(subject, subject.initial_state)
    descent = fs.simulate(subject, fs.GradientDescent(eta), t1=60 * eta, save_points=61, reduce="never")
    flow = fs.simulate(subject, t1=float(descent.time[-1]) or eta, save_points=descent.time, reduce="never")
    return descent, float(np.abs(descent.excess - flow.excess[: len(descent.excess)]).max() / flow.excess[0])


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help="fewer step sizes, seconds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    subject = problem()
    etas = np.array([0.02, 0.01] if arguments.small else [0.04, 0.02, 0.01, 0.005, 0.0025, 0.00125])
    table = np.array([distances(subject, eta) for eta in etas])
    slopes = [float(np.polyfit(np.log(etas[-4:]), np.log(column[-4:]), 1)[0]) for column in table.T]
    print("step size, distance from the flow, from the modified flow")
    for eta, row in zip(etas, table, strict=True):
        print(f"{eta:8g}  {row[0]:.3e}  {row[1]:.3e}")
    print(f"slopes {slopes[0]:.3f} and {slopes[1]:.3f}")
    start = sharpness(subject, subject.initial_state)
    print(
        f"lambda_max of the Hessian at the start {start:.4g}; eta lambda_max, status, last loss / first, greatest gap"
    )
    runs = {share: edge(subject, share) for share in SHARES}
    for share, (run, gap) in runs.items():
        end = sharpness(subject, run.checkpoints.states[-1]) / start
        print(
            f"{share:5.2f}  {run.status:10}  {run.excess[-1] / run.excess[0]:.2e}  {gap:.2e}"
            f"  (lambda_max at the end {end:.3f} of that at the start)"
        )
    draw(arguments.out, subject, etas, table, slopes, runs)


def draw(
    out: Path,
    subject: fs.Problem,
    etas: np.ndarray,
    table: np.ndarray,
    slopes: list[float],
    runs: dict[float, tuple[fs.Trajectory, float]],
) -> None:
    """descent_vs_flow.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from flowsim.plots import COLOURS, MARKERS, STYLE

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
        for k, name in enumerate(("flow of $L$", r"flow of $L + \frac{\eta}{4}\|\nabla L\|^2$")):
            label = f"{name}, slope {slopes[k]:.2f}"
            left.loglog(etas, table[:, k], marker=MARKERS[k], color=COLOURS[k], markersize=4, label=label)
        left.set(xlabel=r"step size $\eta$", ylabel="distance of descent, relative to the change of $W$")
        left.xaxis.set_minor_formatter("")
        left.legend(frameon=False)
        longest = max(float(run.time[-1]) for run, _ in runs.values())
        flow = fs.simulate(subject, t1=longest, save_points=400, reduce="never")
        right.semilogy(flow.time, flow.excess / flow.excess[0], color="black", linewidth=2, label="flow")
        for k, (share, (run, _)) in enumerate(runs.items()):
            label = rf"$\eta\lambda_{{\max}} = {share:g}$"
            right.semilogy(
                run.time, run.excess / run.excess[0], marker=MARKERS[k], color=COLOURS[k], markersize=3, label=label
            )
        right.set(xlabel="time $t = k \\eta$", ylabel="$L(t) / L(0)$", xlim=(-0.1, 4), ylim=(1e-8, 1e3))
        right.legend(frameon=False, ncols=2, loc="upper right")
        figure.savefig(out / "descent_vs_flow.png", dpi=200)
        plt.close(figure)


if __name__ == "__main__":
    main()
