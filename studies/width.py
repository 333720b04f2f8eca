"""How wide is wide enough to compress, how few Krylov steps suffice, and can the error estimate be believed?

steps: the true error of the weights (both runs integrated at rtol 1e-12) against the number of Krylov steps, for
several initializations and depths; it falls super-linearly. cost: gradient flow until the loss has fallen by 1e-8, full
against compressed, for widths from 20 to 10^9: with few weights compression gains nothing, with many its cost is that
of a few products with the layers, and a network drawn in compressed form costs the same at any width. large: networks
of widths (3000, 5000) in units of one full gradient. effectivity: true error over estimate on random problems of depth
2 to 6, and the error of reduce="auto". drawn: networks drawn in compressed form against full ones, Kolmogorov-Smirnov
tests and mean losses.
Writes width.png. All of it takes about a quarter of an hour, `--small` seconds.

    python studies/width.py --out studies [--only steps cost large effectivity drawn]
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import flowsim as fs
from flowsim.methods import Method

TIGHT = fs.Scipy("DOP853", 1e-12, 1e-14)
TIGHTER = fs.Scipy("DOP853", 1e-13, 1e-15)


def distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """||W - V||_F over all layers."""
    return float(np.sqrt(sum(np.linalg.norm(W - V) ** 2 for W, V in zip(one, other, strict=True))))


def horizon(problem: fs.Problem, folds: float, longest: float) -> float:
    """A time in which the loss falls by about `folds` e-foldings: T's mean eigenvalue sets the scale."""
    T = problem.network.dense_T()
    return min(longest, 0.5 * folds * len(T) / float(np.trace(T)))


def fixed_steps(problem: fs.Problem, steps: int, t1: float) -> tuple[list[np.ndarray], float, float]:
    """(weights at t1, estimate e(t1), ||W(t1) - W(0)||_F) of the compressed flow with that many Krylov steps."""
    compressed = fs.compress(problem.network, steps)
    core = fs.Problem(problem.loss, compressed.core)
    grid = t1 * (np.linspace(0.0, 1.0, 401) ** 2)
    run = fs.simulate(core, TIGHT, t1=t1, save_points=grid, reduce="never")
    states = run.checkpoints.states
    defects = compressed.defect(problem.loss, states)
    estimate = float(np.sum(0.5 * np.diff(run.checkpoints.times) * (defects[1:] + defects[:-1])))
    lifted = [compressed.lift(states[-1], layer, W) for layer, W in enumerate(problem.network.weights, start=1)]
    return lifted, estimate, run.weights_change


# ------------------------------------------------------------------------------------------------- error against steps

CASES = {
    "fan_out (5,300,300,1)": ("fan_out", (5, 300, 300, 1), 1.0),
    "fan_in (5,300,300,1)": ("fan_in", (5, 300, 300, 1), 1.0),
    "fan_out x 0.05 (10,120,120,10)": ("fan_out", (10, 120, 120, 10), 0.05),
    "xavier depth 4 (2,150,150,150,2)": ("xavier", (2, 150, 150, 150, 2), 1.0),
    "orthogonal depth 3 (3,150,150,3)": ("orthogonal", (3, 150, 150, 3), 1.0),
}


def error_against_steps(small: bool) -> dict[str, list[tuple[int, float, float]]]:
    """case -> [(steps, true error / change, estimate / change)]."""
    table = {}
    for name, (scheme, dims, scale) in CASES.items():
        if small:
            dims = (dims[0], *(h // 5 for h in dims[1:-1]), dims[-1])
        rng = np.random.default_rng(0)
        Y = rng.standard_normal((dims[0], dims[-1]))
        network = fs.initialize(scheme, dims, seed=0, scale=scale)
        problem = fs.Problem(fs.SquaredLoss(2 * Y / np.linalg.norm(Y, 2)), network)
        t1 = 10.0 if scale < 1 else horizon(problem, 6.0, 10.0)
        full = fs.simulate(problem, TIGHT, t1=t1, save_points=2, reduce="never").weights_at(t1)
        table[name] = []
        for steps in range(max(1, len(dims) - 3), 7):
            lifted, estimate, change = fixed_steps(problem, steps, t1)
            table[name].append((steps, distance(full, lifted) / change, estimate / change))
    return table


# ------------------------------------------------------------------------------------------------- cost against width


def best_seconds(problem: fs.Problem, reduce: str, repeats: int, method: Method | None = None) -> float:
    """The least wall time of a simulation until the loss has fallen by 1e-8, compression included."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run = fs.simulate(problem, method, t1=1e3, stop_loss=1e-8, save_points=2, reduce=reduce)
        times.append(time.perf_counter() - begun)
        assert run.status == "converged", run.message
    return min(times)


def cost_against_width(widths: list[int]) -> list[tuple[int, float | None, float | None, float]]:
    """(width, seconds full, seconds compressed from the weights, seconds sampled in compressed form)."""
    rows = []
    for width in widths:
        dims = (1, width, width, 1)
        loss = fs.SquaredLoss([[2.0]])
        full = compressed = None
        if width <= 5000:
            problem = fs.Problem(loss, fs.fan_out(dims, seed=0))
            full = best_seconds(problem, "never", 3 if width <= 1000 else 1) if width <= 2000 else None
            compressed = best_seconds(problem, "always", 3)
        begun = time.perf_counter()
        sampled = fs.Problem(loss, fs.sample_compressed("fan_out", dims, seed=0))
        rows.append((width, full, compressed, time.perf_counter() - begun + best_seconds(sampled, "auto", 3)))
    return rows


# ------------------------------------------------------------------------------------------------------- large networks


def large(small: bool) -> Iterator[dict[str, object]]:
    """Flow to a loss of 1e-12 L(0) at rtol 1e-8, in units of one full gradient; error against rtol 1e-12, both full.

    "floor" is how far two full runs, at rtol 1e-12 and 1e-13, are apart: a smaller true error cannot be measured.
    """
    for dims in ((1, 3000, 5000, 1), (5, 3000, 5000, 2)):
        if small:
            dims = (dims[0], 150, 200, dims[-1])
        for scheme in ("fan_out", "fan_in"):
            network = fs.initialize(scheme, dims, seed=0)
            problem = fs.Problem(fs.SquaredLoss(np.ones((dims[0], dims[-1]))), network)
            gradient = min(_timed(lambda p=problem: p.gradients(list(p.network.weights))) for _ in range(5))
            runs = []
            seconds = min(
                _timed(lambda p=problem, r=runs: r.append(fs.simulate(p, t1=1e3, stop_loss=1e-12, reduce="always")))
                for _ in range(5)
            )
            run = runs[-1]
            t1 = float(run.time[-1])
            times = t1 * np.array([0.1, 0.5, 1.0])
            run = fs.simulate(problem, t1=t1, save_points=times, reduce="always")
            full = fs.simulate(problem, TIGHT, t1=t1, save_points=times, reduce="never")
            steps = run.reduction.network.steps
            weights = full.weights_at(t1)
            again = fs.simulate(problem, TIGHTER, t1=t1, save_points=2, reduce="never").weights_at(t1)
            lifted, estimate, change = fixed_steps(problem, steps, t1)
            coarser, coarse_estimate, _ = fixed_steps(problem, steps - 1, t1)
            yield (
                {
                    "case": f"{scheme} {dims}",
                    "core": run.reduction.network.core.dims,
                    "steps": steps,
                    "gradients": seconds / gradient,
                    "estimate / change": float(run.error_estimate[-1] / run.weights_change),
                    "true / change": distance(weights, lifted) / change,
                    "floor / change": distance(weights, again) / change,
                    "true / estimate": distance(weights, lifted) / estimate,
                    "with one step fewer": distance(weights, coarser) / coarse_estimate,
                    "loss gap": float(np.abs(run.excess - full.excess).max() / full.excess[0]),
                }
            )


def _timed(action: object) -> float:
    begun = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - begun


# ---------------------------------------------------------------------------------------------------------- effectivity


def random_problem(index: int) -> tuple[fs.Problem, int]:
    """Depth 2 to 6, n, m in 1 .. 10, widths 20 .. 200, all initializations, scales 0.01 to 1; and a number of steps."""
    rng = np.random.default_rng([11, index])
    depth = 2 + index % 5
    dims = (int(rng.integers(1, 11)), *map(int, rng.integers(20, 201, depth - 1)), int(rng.integers(1, 11)))
    scheme = ("fan_in", "fan_out", "ntk", "xavier", "orthogonal", "balanced")[int(rng.integers(6))]
    network = fs.initialize(scheme, dims, seed=index, scale=float(10 ** rng.uniform(-2, 0)))
    Y = rng.standard_normal((dims[0], dims[-1]))
    return fs.Problem(fs.SquaredLoss(2 * Y / np.linalg.norm(Y, 2)), network), max(depth - 2, 1) + int(rng.integers(3))


def effectivity(index: int) -> dict[str, object]:
    """True error, estimate and their ratio at fixed steps; the error of "auto" at rtol 1e-8 beside its tolerance."""
    problem, steps = random_problem(index)
    t1 = horizon(problem, 6.0, 5.0)
    full = fs.simulate(problem, TIGHT, t1=t1, save_points=11, reduce="never")
    weights = full.weights_at(t1)
    lifted, estimate, change = fixed_steps(problem, steps, t1)
    auto = fs.simulate(problem, t1=t1, save_points=11)
    never = fs.simulate(problem, t1=t1, save_points=11, reduce="never")
    forced = fs.simulate(problem, t1=t1, save_points=11, reduce="always")
    core = forced.reduction.network
    compression = distance(weights, fixed_steps(problem, core.steps, t1)[0])
    tolerance = 1e-8 * change + 1e-10
    nudged = nudge_growth(problem, t1)
    return {
        "index": index,
        "dims": problem.network.dims,
        "scheme": problem.network.origin["scheme"],
        "steps": steps,
        "true": distance(weights, lifted),
        "estimate": estimate,
        "growth": nudged,
        "auto": "compressed" if auto.reduction.network else "full",
        "auto error / tolerance": distance(weights, auto.weights_at(t1)) / tolerance,
        "never error / tolerance": distance(weights, never.weights_at(t1)) / tolerance,
        "compression error / tolerance": compression / tolerance,
        "loss gap auto": float(np.abs(auto.excess - full.excess).max() / full.excess[0]),
        "loss gap never": float(np.abs(never.excess - full.excess).max() / full.excess[0]),
    }


def nudge_growth(problem: fs.Problem, t1: float) -> float:
    """How much the flow magnifies a small random change of the initial weights by t1, relative."""
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(W.shape) for W in problem.network.weights]
    size = np.sqrt(sum(float((N * N).sum()) for N in noise))
    moved = problem.network.with_weights(
        [W + 1e-7 * N / size for W, N in zip(problem.network.weights, noise, strict=True)]
    )
    ends = [
        fs.simulate(p, fs.Scipy("DOP853", 1e-10, 1e-13), t1=t1, save_points=2, reduce="never").weights_at(t1)
        for p in (problem, fs.Problem(problem.loss, moved))
    ]
    return distance(*ends) / 1e-7


# -------------------------------------------------------------------------------------------------- drawn compressed

DRAWN = (
    ("fan_in", (2, 12, 1), 1.0),
    ("fan_out", (1, 14, 17, 1), 1.0),
    ("ntk", (1, 14, 16, 1), 2.0),
    ("xavier", (2, 16, 15, 2), 1.0),
    ("fan_in", (1, 13, 15, 14, 1), 1.0),
    ("fan_out", (2, 12, 14, 13, 1), 1.0),
)
TIMES = (0.02, 0.1, 0.4)
FLOOR = 1e-7
"""Losses below this count as this: what integration errors leave of a loss is not compared."""


def losses(make: str, scheme: str, dims: tuple[int, ...], scale: float, seeds: range) -> np.ndarray:
    """(members, times): the loss at 0 and at TIMES, at least FLOOR."""
    loss, method = fs.SquaredLoss(np.ones((dims[0], dims[-1]))), fs.Scipy("DOP853", 1e-9, 1e-11)
    draw = fs.initialize if make == "full" else fs.sample_compressed
    problems = (fs.Problem(loss, draw(scheme, dims, seed=seed, scale=scale)) for seed in seeds)
    found = [fs.simulate(p, method, t1=TIMES[-1], save_points=TIMES).loss for p in problems]
    return np.maximum(found, FLOOR)


def print_drawn(members: int) -> None:
    """Kolmogorov-Smirnov tests and mean loss curves of networks drawn in full and in compressed form."""
    from joblib import Parallel, delayed
    from scipy.stats import ks_2samp

    jobs = [(make, *case) for case in DRAWN for make in ("full", "compressed")]
    starts = [5 * 10**7 + 10**6 * k for k in range(len(jobs))]
    found = Parallel(n_jobs=os.cpu_count())(
        delayed(losses)(*job, range(start, start + members)) for job, start in zip(jobs, starts, strict=True)
    )
    level = 0.01 / (len(DRAWN) * (len(TIMES) + 1))
    print(f"\n{members} + {members} members; a p-value below {level:.1e} would reject (family-wise level 0.01)")
    for case, full, drawn in zip(DRAWN, found[::2], found[1::2], strict=True):
        values = [ks_2samp(full[:, k], drawn[:, k]).pvalue for k in range(full.shape[1])]
        print(
            f"  {case[0]} {case[1]}: p "
            + " ".join(f"{p:.3f}" for p in values)
            + (" REJECTED" if min(values) < level else "")
        )
        for name, table in (("full", full), ("drawn", drawn)):
            error = table.std(axis=0) / np.sqrt(len(table))
            print(
                f"    mean loss {name:5} "
                + "  ".join(f"{m:.4f} +- {e:.4f}" for m, e in zip(table.mean(axis=0), error, strict=True))
            )


# --------------------------------------------------------------------------------------------------------------- output


def draw(out: Path, steps: dict[str, list[tuple[int, float, float]]], cost: list[tuple]) -> None:
    """Error against steps; cost against width."""
    import matplotlib
    from matplotlib.figure import Figure

    from flowsim.plots import COLOURS, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for colour, marker, (name, rows) in zip(COLOURS, "osD^v", steps.items(), strict=False):
            levels, true, _ = map(np.array, zip(*rows, strict=True))
            left.semilogy(levels, true, marker=marker, markersize=3.5, color=colour, linewidth=1, label=name)
        left.set_xlabel("Krylov steps")
        left.set_ylabel("error of the weights / their change")
        left.set_xticks(range(1, 7))
        left.set_ylim(1e-14, 1e3)
        left.legend(loc="upper right", frameon=False, fontsize=6)
        widths = np.array([row[0] for row in cost], float)
        names = ("full weights", "compressed", "drawn in compressed form")
        for colour, marker, column, name in zip(COLOURS, "osD", range(1, 4), names, strict=False):
            seconds = np.array([np.nan if row[column] is None else row[column] for row in cost], float)
            right.loglog(widths, seconds, marker=marker, markersize=3.5, color=colour, linewidth=1, label=name)
        right.set_xlabel("width $h$ of a $(1, h, h, 1)$ network")
        right.set_ylabel("seconds until the loss fell by $10^{-8}$")
        right.legend(loc="upper right", frameon=False)
        figure.savefig(out / "width.png", dpi=200)


def quantiles(values: list[float]) -> str:
    """min, 5, 25, 50, 75, 95 per cent, max."""
    return " ".join(f"{q:.3g}" for q in np.quantile(values, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))) if values else "none"


def print_effectivity(count: int) -> None:
    """Run the random problems on all cores and print the quantiles and every case outside the stated range."""
    from joblib import Parallel, delayed

    rows = Parallel(n_jobs=os.cpu_count())(delayed(effectivity)(index) for index in range(count))
    print("\ntrue error / estimate where the error is above 1e-11: min, 5, 25, 50, 75, 95 %, max")
    for name, depths, low, high in (("depth 3", (3,), 0.5, 2.0), ("depth 4 to 6", (4, 5, 6), 0.05, 5.0)):
        chosen = [r for r in rows if len(r["dims"]) - 1 in depths and r["true"] > 1e-11]
        ratios = [r["true"] / r["estimate"] for r in chosen]
        print(f"{name}: {len(chosen)} cases: {quantiles(ratios)}")
        for r, ratio in zip(chosen, ratios, strict=True):
            if not low <= ratio <= high:
                print(
                    f"  outside {low} to {high}: {ratio:.3g}, {r['scheme']} {r['dims']}, {r['steps']} steps, true"
                    f" {r['true']:.2g}, a nudge grows {r['growth']:.1f} times"
                )
    two = [r["true"] for r in rows if len(r["dims"]) == 3]
    print(f"depth 2: {len(two)} cases, greatest true error {max(two):.1e} (exact but for round-off)")
    print(f"reduce=auto compressed {sum(r['auto'] == 'compressed' for r in rows)} of {len(rows)}")
    for key in (
        "compression error / tolerance",
        "auto error / tolerance",
        "never error / tolerance",
        "loss gap auto",
        "loss gap never",
    ):
        print(f"{key}: {quantiles([r[key] for r in rows])}")


def main() -> None:
    """Print the tables and draw the figure."""
    parts = ("steps", "cost", "large", "effectivity", "drawn")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    small, only = arguments.small, arguments.only
    steps, cost = {}, []
    if "steps" in only:
        steps = error_against_steps(small)
        print("Krylov steps: true error (estimate) of the weights over their change")
        for name, rows in steps.items():
            print(f"  {name}: " + ", ".join(f"{k}: {true:.1e} ({guess:.1e})" for k, true, guess in rows))
    if "cost" in only:
        small_widths = [20, 50, 100, 200, 500, 1000, 2000, 5000]
        widths = [100, 500, 10**6] if small else small_widths + [10**power for power in range(4, 10)]
        cost = cost_against_width(widths)
        print("\nwidth, seconds: full, compressed, drawn in compressed form")
        for row in cost:
            print("  " + "  ".join("-" if cell is None else f"{cell:.4g}" for cell in row))
    if steps and cost:
        draw(arguments.out, steps, cost)
    if "large" in only:
        print()
        for row in large(small):
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    if "effectivity" in only:
        print_effectivity(10 if small else 200)
    if "drawn" in only:
        print_drawn(20 if small else 2000)


if __name__ == "__main__":
    main()
