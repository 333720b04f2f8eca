"""How much do the certified rates leave on the table, and is any of them ever wrong?

violations: every applying certificate against lambda_min(T) on random networks of two, three and (unimodal, or with
homogeneous imbalance) up to six layers. trajectories: the loss against the bounds with a margin and against Theorem 4
along simulated flows, several losses. tightness: bound over rate seen for the set-ups of the paper's Figure 1, and over
600 draws for several initializations and shapes. product: Theorem 2 with the margin of the product beside Theorem 2.
iris: the exponential loss on two classes of Fisher's iris data beside Theorem 4's bound. cost: Theorem 2 at widths
(3000, 5000).
Writes rates.png. All of it takes about twenty minutes on two cores, `--small` seconds.

    python studies/rates.py --out studies [--only violations trajectories tightness product iris cost]
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

import flowsim as fs
from flowsim.rates.imbalance import spectra
from flowsim.rates.product_bound import product_bound
from flowsim.rates.theorem_2 import delta_star

SLACK = 1e-9
TIGHT = fs.Scipy("DOP853", 1e-10, 1e-13)


def sigma_min(network: fs.LinearNetwork) -> float:
    """The least singular value of the product."""
    return float(np.linalg.svd(network.product, compute_uv=False)[-1])


def round_off(network: fs.LinearNetwork) -> float:
    """What an eigenvalue of T may be off by: the norm of T times 1e-13."""
    squares = [float((W**2).sum()) for W in network.weights]
    return 1e-13 * network.scale**2 * sum(np.prod(squares[:k] + squares[k + 1 :]) for k in range(len(squares)))


# ------------------------------------------------------------------------------------------------------ random networks


def random_dims(rng: np.random.Generator, depth: int) -> tuple[int, ...]:
    """n, m in 1..5, hidden widths from min(n, m) on: narrower than n or m, too."""
    n, m = (int(k) for k in rng.integers(1, 6, 2))
    return (n, *(int(k) for k in rng.integers(min(n, m), min(n, m) + 8, depth - 1)), m)


def gaussian(rng: np.random.Generator, depth: int) -> fs.LinearNetwork:
    """Gaussian layers whose sizes differ up to a hundredfold."""
    dims = random_dims(rng, depth)
    factors = 10 ** rng.uniform(-1, 1, depth)
    return fs.LinearNetwork(
        tuple(c * rng.standard_normal((r, k)) for c, r, k in zip(factors, dims, dims[1:], strict=False))
    )


def unimodal(rng: np.random.Generator, depth: int) -> fs.LinearNetwork:
    """Unimodal weights with any peak."""
    peak, levels = int(rng.integers(1, depth + 1)), rng.uniform(0, 2, depth - 1)
    return fs.unimodal(random_dims(rng, depth), peak=peak, imbalance=levels, seed=int(rng.integers(2**31)))


def homogeneous(rng: np.random.Generator, depth: int) -> fs.LinearNetwork:
    """Homogeneous imbalance, n = m; balanced in half of the cases."""
    levels = rng.uniform(-2, 2, depth - 1) * rng.integers(0, 2)
    return fs.homogeneous((int(rng.integers(1, 5)),) * (depth + 1), imbalance=levels, seed=int(rng.integers(2**31)))


FAMILIES: dict[str, Callable[[np.random.Generator], fs.LinearNetwork]] = {
    "two layers": lambda rng: gaussian(rng, 2),
    "three layers": lambda rng: gaussian(rng, 3),
    "unimodal, 2 to 6 layers": lambda rng: unimodal(rng, int(rng.integers(2, 7))),
    "homogeneous, 2 to 6 layers": lambda rng: homogeneous(rng, int(rng.integers(2, 7))),
}


def violations(family: str, seeds: range) -> tuple[Counter, Counter, float]:
    """(how often each certificate applied, how often it exceeded lambda_min(T), worst gap of products for L = 3)."""
    applied, broken, gap = Counter(), Counter(), 0.0
    for seed in seeds:
        network = FAMILIES[family](np.random.default_rng(seed))
        certificates = fs.certify(network)
        limit = network.lambda_min_T * (1 + SLACK) + round_off(network)
        for c in certificates:
            applied[c.name] += c.applies
            broken[c.name] += c.applies and c.alpha > limit
        if network.depth == 3:
            ours = product_bound(*spectra(network), network.dims[0], network.dims[-1], sigma_min(network))
            applied["theorem-2-product at sigma_min(W)"] += 1
            broken["theorem-2-product at sigma_min(W)"] += ours > limit
            if certificates["theorem-3-unimodal"].applies:
                here, there = certificates["theorem-3-unimodal"].alpha, certificates["theorem-2"].alpha
                gap = max(gap, abs(here - there) / max(there, 1e-4 * round_off(network) / 1e-13))
    return applied, broken, gap


def print_violations(small: bool) -> None:
    """All families, on all cores."""
    for start, family in enumerate(FAMILIES):
        count = 10 if small else 20000 if start < 2 else 5000
        first = 10**6 * start
        blocks = [range(k, min(k + 250, first + count)) for k in range(first, first + count, 250)]
        rows = Parallel(n_jobs=1 if small else os.cpu_count())(delayed(violations)(family, block) for block in blocks)
        applied, broken = (sum((row[k] for row in rows), Counter()) for k in (0, 1))
        print(f"{count} networks, {family}: certificate, applied, violations (relative slack {SLACK:g})")
        for name in applied:
            print(f"  {name:36}{applied[name]:7}{broken[name]:7}")
        if applied["theorem-2"] and applied["theorem-3-unimodal"]:
            print(
                f"  three unimodal layers: products of Theorem 3 and Theorem 2 differ by {max(r[2] for r in rows):.1e}"
            )


# --------------------------------------------------------------------------------------------------- along trajectories


def near(rng: np.random.Generator, network: fs.LinearNetwork, kind: str) -> fs.SquaredLoss | fs.LeastSquares:
    """A loss whose minimiser is so near the initial product that the margin is positive."""
    n, m = network.product.shape
    step = rng.standard_normal((n, m))
    aim = network.product + rng.uniform(0.1, 0.6) * sigma_min(network) * step / np.linalg.norm(step)
    if kind == "squared":
        return fs.SquaredLoss(aim)
    if kind == "weighted":
        return fs.MaskedSquaredLoss(aim, rng.uniform(0.8, 1.2, (n, m)))
    X = np.linalg.qr(rng.standard_normal((n + 5, n)))[0] * rng.uniform(0.9, 1.1, n)
    return fs.LeastSquares(X, X @ aim)


def separable(rng: np.random.Generator, n: int) -> fs.ExponentialLoss:
    """Thirty points on either side of a hyperplane."""
    X = rng.standard_normal((30, n))
    return fs.ExponentialLoss(X, np.sign(X @ rng.standard_normal(n)))


def excess_over_bound(name: str, seed: int) -> tuple[str, float]:
    """(loss, the greatest of loss over bound along a flow), for one random problem to which the certificate applies."""
    rng = np.random.default_rng(seed)
    kind = ("squared", "least squares", "weighted")[seed % 3]
    if name == "theorem-4":
        kind = "exponential"
        n, depth = int(rng.integers(1, 5)), int(rng.integers(2, 6))
        levels, peak = rng.uniform(0, 1, depth - 1), int(rng.integers(1, depth + 1))
        network = fs.unimodal((n, *[n + 1] * (depth - 1), 1), peak=peak, imbalance=levels, seed=seed, scale=0.5)
        loss = separable(rng, n)
    elif name == "corollary-2":
        depth, n = int(rng.integers(2, 6)), int(rng.integers(1, 4))
        network = fs.homogeneous((n,) * (depth + 1), imbalance=rng.uniform(-1, 1, depth - 1), seed=seed)
        loss = near(rng, network, kind)
    else:
        network = gaussian(rng, 2 if name == "theorem-1-A2" else 3)
        loss = near(rng, network, kind)
    problem = fs.Problem(loss, network)
    certificate = fs.certify(problem)[name]
    t1 = 20.0 if name == "theorem-4" else min(8.0 / max(network.lambda_min_T, 1e-3), 1e3)
    flow = fs.simulate(problem, TIGHT, t1=t1, stop_loss=1e-9)
    floor = 1e-11 * flow.excess[0]
    return kind, float((flow.excess / (certificate.bound(flow.time) + floor)).max())


def print_trajectories(small: bool) -> None:
    """200 flows for each certificate."""
    count = 2 if small else 200
    print(f"{count} flows each: certificate, flows by loss, greatest loss / bound, flows above 1 + 1e-6")
    for name in ("theorem-1-A2", "theorem-2-product", "corollary-2", "theorem-4"):
        jobs = (delayed(excess_over_bound)(name, seed) for seed in range(count))
        rows = Parallel(n_jobs=1 if small else os.cpu_count())(jobs)
        kinds = ", ".join(f"{kind} {k}" for kind, k in Counter(kind for kind, _ in rows).items())
        ratios = [ratio for _, ratio in rows]
        print(f"  {name:20}{kinds:50}{max(ratios):10.6f}{sum(r > 1 + 1e-6 for r in ratios):5}")


# ------------------------------------------------------------------------------------------------------------ tightness


def tightness(network: fs.LinearNetwork, height: float, folds: float = 1e-6) -> dict[str, float]:
    """All alphas of one flow, and half its rate seen: gamma = 2 for the squared loss."""
    target = np.full((network.dims[0], network.dims[-1]), height)
    problem = fs.Problem(fs.SquaredLoss(target), network)
    certificates = fs.certify(problem)
    flow = fs.simulate(problem, t1=1e3, save_points=2, stop_loss=folds)
    rate = fs.a_posteriori(flow, rtol=1e-4)
    return {
        "Theorem 2": certificates["theorem-2"].alpha,
        "path": certificates["path"].alpha,
        "combined": certificates["combined"].alpha,
        "least on the way": rate.least,
        "a posteriori": rate.alpha,
        "seen": float(-np.log(flow.excess[-1] / flow.excess[0]) / (2 * flow.time[-1])),
    }


def print_figure_1(small: bool) -> None:
    """The set-ups of the paper's middle and right panels, medians over seeds."""
    seeds = range(1 if small else 20)
    print("Figure 1's set-ups: alpha / (rate seen / gamma), medians over", len(seeds), "draws, loss down to 1e-6")
    for n, height in ((1, 2.0), (5, 1.0)):
        for widths in ((10, 20),) if small else ((100, 200), (200, 300), (300, 500)):
            rows = [tightness(fs.fan_out((n, *widths, 1), seed=seed), height) for seed in seeds]
            parts = (
                f"{name} {np.median([r[name] / r['seen'] for r in rows]):.3f}" for name in rows[0] if name != "seen"
            )
            print(f"  {(n, *widths, 1)!s:20}" + ", ".join(parts), flush=True)


SHAPES = ((1, 200, 200, 1), (5, 200, 200, 1), (3, 100, 200, 3))
SCHEMES = ("ntk", "fan_in", "fan_out", "xavier", "orthogonal")


def draws(scheme: str, dims: tuple[int, ...], count: int) -> list[dict[str, float]]:
    """Many networks of one kind."""
    return [tightness(fs.initialize(scheme, dims, seed=seed), 1.0) for seed in range(count)]


def all_draws(small: bool) -> dict[tuple[str, tuple[int, ...]], list[dict[str, float]]]:
    """600 draws for the shape of the paper's left panel, 30 for the others; a table of medians."""
    keys = [(scheme, dims) for dims in (((5, 20, 20, 1),) if small else SHAPES) for scheme in SCHEMES]
    counts = [2 if small else 600 if dims == SHAPES[1] else 30 for _, dims in keys]
    jobs = (delayed(draws)(*key, count) for key, count in zip(keys, counts, strict=True))
    results = dict(zip(keys, Parallel(n_jobs=1 if small else os.cpu_count())(jobs), strict=True))
    print("medians of alpha: scheme, dims, draws, " + ", ".join(results[keys[0]][0]))
    for (scheme, dims), rows in results.items():
        medians = "  ".join(f"{np.median([row[name] for row in rows]):9.4g}" for name in rows[0])
        print(f"  {scheme:12}{dims!s:20}{len(rows):4}  {medians}")
    return results


# --------------------------------------------------------------------------------------------- product, real data, cost


def print_product(small: bool) -> None:
    """Theorem 2 and Theorem 2 with the product, over lambda_min(T), on random three-layer networks."""
    rows = []
    for seed in range(40 if small else 4000):
        network = gaussian(np.random.default_rng(seed), 3)
        truth = network.lambda_min_T
        if truth > 1e3 * round_off(network):
            ours = product_bound(*spectra(network), network.dims[0], network.dims[-1], sigma_min(network))
            rows.append((max(delta_star(network), 0.0) / truth, ours / truth, network.dims[0] == network.dims[-1]))
    table = np.array(rows)
    print("bound / lambda_min(T), least, 25, 50, 75 %, greatest: Theorem 2 | with the product sigma_min(W)")
    for name, chosen in (("n = m", table[:, 2] == 1), ("n != m", table[:, 2] == 0)):
        part = table[chosen]
        before, after = (np.quantile(part[:, k], (0, 0.25, 0.5, 0.75, 1)) for k in (0, 1))
        above = np.mean(part[:, 1] > part[:, 0] * (1 + 1e-6) + 1e-12)
        text = " | ".join(" ".join(f"{q:.3g}" for q in quantiles) for quantiles in (before, after))
        print(f"  {name:8}{len(part)} networks: {text}; strictly above Theorem 2 in {100 * above:.0f} %")


def iris() -> tuple[fs.Trajectory, fs.Certificate]:
    """Setosa against versicolor: four features and a constant one, exponential loss, three layers."""
    from sklearn.datasets import load_iris

    features, species = load_iris(return_X_y=True)
    chosen = species < 2
    scaled = (features[chosen] - features[chosen].mean(0)) / features[chosen].std(0)
    loss = fs.ExponentialLoss(np.column_stack([scaled, np.ones(len(scaled))]), np.where(species[chosen] == 0, -1, 1))
    problem = fs.Problem(loss, fs.fan_out((5, 40, 60, 1), seed=0))
    certificate = fs.certify(problem)["theorem-4"]
    flow = fs.simulate(problem, t1=1.0, save_points=np.geomspace(1e-7, 1.0, 200))
    bound = certificate.bound(flow.time)
    print(
        f"iris, setosa and versicolor: margin {loss.margin:.4g}, alpha {certificate.alpha:.4g} ({certificate.reason}),"
        f" rate {certificate.rate:.4g}; loss / bound at most {(flow.excess / bound).max():.6f},"
        f" at t = {flow.time[-1]:g} {flow.excess[-1] / bound[-1]:.2e}"
    )
    return flow, certificate


def print_cost(small: bool) -> None:
    """Theorem 2 at widths (3000, 5000), by all eigenvalues and cheaply."""
    import resource

    widths = (60, 100) if small else (3000, 5000)
    for dims in ((1, *widths, 1), (5, *widths, 2)):
        network = fs.fan_out(dims, seed=0)
        problem = fs.Problem(fs.SquaredLoss(np.ones((dims[0], dims[-1]))), network)
        alphas, seconds = [], []
        for work in (
            lambda p=problem: p.gradients(list(p.network.weights)) and 0.0,
            lambda p=problem: fs.certify(p, cheap=True)["theorem-2"].alpha,
            lambda p=problem: fs.rates.theorem_2(p.network, p.loss).alpha,
        ):
            begun = time.perf_counter()
            alphas.append(work())
            seconds.append(time.perf_counter() - begun)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{dims}: Theorem 2 {alphas[2]:.5g} in {seconds[2]:.2f} s; cheap {alphas[1]:.5g} in {seconds[1]:.2f} s ="
            f" {seconds[1] / seconds[0]:.1f} full gradients; peak memory of the process {peak:.0f} MB"
        )


# --------------------------------------------------------------------------------------------------------------- figure


ZERO = 1e-9
"""A bound this small is 0 up to round-off."""
AT_THE_FLOOR = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}


def draw(out: Path, results: dict, flow: fs.Trajectory, certificate: fs.Certificate) -> None:
    """rates.png: boxes of alpha over 600 draws; bounds against the truth; the exponential loss on iris."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from flowsim.plots import COLOURS, STYLE

    shape = max(results, key=lambda key: len(results[key]))[1]
    names = {"Theorem 2": "Thm 2", "combined": "combined", "a posteriori": "posterior", "seen": "seen"}
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(10.2, 3.3), layout="constrained", width_ratios=(1.5, 1, 1)
        )
        for k, (name, label) in enumerate(names.items()):
            places = np.arange(len(SCHEMES)) + 0.19 * (k - 1.5)
            boxes = [[row[name] for row in rows] for (_, dims), rows in results.items() if dims == shape]
            left.boxplot(
                [[value for value in values if value > ZERO] for values in boxes],
                positions=places,
                widths=0.15,
                whis=(5, 95),
                showfliers=False,
                patch_artist=True,
                boxprops={"facecolor": COLOURS[k], "edgecolor": COLOURS[k], "linewidth": 1},
                whiskerprops={"color": COLOURS[k]},
                capprops={"color": COLOURS[k]},
                medianprops={"color": "black", "linewidth": 1},
                manage_ticks=False,
            )
            for place, values in zip(places, boxes, strict=True):
                if max(values) <= ZERO:
                    left.annotate("0", (place, 0), (0, 2), color=COLOURS[k], fontsize=7, ha="center", **AT_THE_FLOOR)
            left.plot([], [], "s", color=COLOURS[k], label=label)
        left.set_yscale("log")
        left.set_ylim(top=left.get_ylim()[1] * 4)
        left.set_xticks(range(len(SCHEMES)), SCHEMES)
        left.set_ylabel(r"$\alpha$ (seen: rate / $\gamma$)")
        left.set_title(f"dims {shape}, whiskers 5 and 95 %", fontsize=8)
        left.legend(loc="upper right", frameon=False, ncols=4)
        draw_bounds(middle, COLOURS)
        first = flow.excess[0]
        right.loglog(flow.time[1:], certificate.bound(flow.time[1:]) / first, "--", color=COLOURS[0], label="Theorem 4")
        right.loglog(flow.time[1:], flow.excess[1:] / first, color=COLOURS[3], label="loss")
        right.set_xlabel("time $t$")
        right.set_ylabel("$L(t) / L(0)$")
        right.set_title("exponential loss, iris: setosa, versicolor", fontsize=8)
        right.legend(loc="lower left", frameon=False)
        figure.savefig(out / "rates.png", dpi=200)
        plt.close(figure)


def draw_bounds(axes: object, colours: tuple[str, ...]) -> None:
    """One flow of Figure 1's right panel and all that bounds it."""
    network = fs.fan_out((5, 300, 500, 1), seed=0)
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), network)
    flow = fs.simulate(problem, t1=0.012, save_points=200)
    rate, certificates = fs.a_posteriori(flow, rtol=1e-6), fs.certify(problem)
    first, bounds = flow.excess[0], {"Theorem 2": "theorem-2", "combined": "combined"}
    for k, (label, name) in enumerate(bounds.items()):
        bound = certificates[name].bound(flow.time) / first
        axes.semilogy(1e3 * flow.time, bound, "--", color=colours[k], label=label)
    axes.semilogy(1e3 * flow.time, rate.bound / first, ":", color=colours[2], linewidth=2, label="a posteriori")
    axes.semilogy(1e3 * flow.time, flow.excess / first, color=colours[3], label="loss")
    axes.set_xlabel("time $t\\ /\\ 10^{-3}$")
    axes.set_ylabel("$L(t) / L(0)$")
    axes.set_title("fan_out (5, 300, 500, 1), squared loss", fontsize=8)
    axes.legend(loc="lower left", frameon=False)


def main() -> None:
    """Print the tables and draw the figure."""
    parts = ("violations", "trajectories", "tightness", "product", "iris", "cost")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    small, only = arguments.small, arguments.only
    arguments.out.mkdir(parents=True, exist_ok=True)
    if "violations" in only:
        print_violations(small)
    if "trajectories" in only:
        print_trajectories(small)
    if "product" in only:
        print_product(small)
    if "cost" in only:
        print_cost(small)
    if "tightness" in only:
        print_figure_1(small)
        results = all_draws(small)
    if "iris" in only:
        flow, certificate = iris()
    if {"tightness", "iris"} <= set(only):
        draw(arguments.out, results, flow, certificate)


if __name__ == "__main__":
    main()
