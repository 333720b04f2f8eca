"""How much do the certificates say that come from how far the weights can travel: path, ball, descent, tails?

Tightness: alpha over the least lambda_min(T) along the flow, medians of 20 draws, of `path` and of Theorem 2, and the
seconds that a certificate takes. Descent: at step size 5e-6, rate certified over rate seen; the greatest certified step
over 2 / lambda_max(T). Tails: at t = 3 / lambda_min(T(0)), whatever was certified at the start. Time: until the excess
has fallen by 1e-8, certified over true, by the best constant rate and by the curve of `combined`. Violations: random
networks of depth 2 to 6, n and m from 1 to 6, widths from 1 to 60 with ties and bottlenecks, squared, least-squares,
masked and exponential losses: every certificate against lambda_min(T) along the flow of some; of the others, at random
points of the ball that `ball` certifies, and at the weights; the loss along random runs of descent of certified step
sizes against its bound; and a climb uphill towards the greatest alpha over the least lambda_min(T).

    python studies/travel.py [--networks 100000]
"""

import argparse
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np

import flowsim as fs
from flowsim.rates import DESCENTS, combined, descent_path, greatest_step, path, theorem_2

CASES = (
    ((1, 300, 500, 1), "fan_out"),
    ((5, 300, 500, 1), "fan_out"),
    ((5, 300, 500, 1), "fan_in"),
    ((5, 300, 500, 1), "ntk"),
    ((5, 300, 500, 2), "fan_out"),
    ((5, 200, 200, 200, 1), "fan_out"),
    ((1, 100, 100, 100, 100, 1), "ntk"),
    ((3, 100, 200, 3), "fan_out"),
    ((3, 100, 200, 3), "xavier"),
)
ETA = 5e-6
SLACK = 1 + 1e-9
TIGHT = fs.Scipy("DOP853", 1e-12, 1e-14)
"""What a certificate is held against has to be known better than SLACK."""
MEASURED_ALONG_FLOWS = 50
"""Of so many random networks one has its flow simulated."""


def ones(dims: tuple[int, ...]) -> fs.SquaredLoss:
    return fs.SquaredLoss(np.ones((dims[0], dims[-1])))


def least_along(problem: fs.Problem) -> float:
    """The least lambda_min(T) at the saved times until the loss has fallen by 1e-8."""
    run = fs.simulate(problem, t1=1e4 / problem.network.lambda_min_T, stop_loss=1e-8, save_points=3)
    flow = fs.simulate(problem, t1=float(run.time[-1]), save_points=25)
    return min(flow.core_at(t).lambda_min_T for t in flow.checkpoints.times)


def tightness(draws: int) -> None:
    print("| dims | scheme | path | Theorem 2 | combined | seconds of path |")
    print("|---|---|---|---|---|---|")
    for dims, scheme in CASES:
        found = []
        for seed in range(draws):
            problem = fs.Problem(ones(dims), fs.initialize(scheme, dims, seed=seed))
            least = least_along(problem)
            begun = time.perf_counter()
            alpha = path(problem.network, problem.loss).alpha or 0.0
            seconds = time.perf_counter() - begun
            second = theorem_2(problem.network, problem.loss).alpha if len(dims) == 4 else None
            both = combined(problem.network, problem.loss).alpha or 0.0
            found.append((alpha / least, np.nan if second is None else second / least, both / least, seconds))
        medians = np.median(found, axis=0)
        print(f"| {dims} | {scheme} | " + " | ".join(f"{value:.3f}" for value in medians) + " |", flush=True)
    for dims in ((3000, 5000), (10**9, 10**9)):
        drawn = fs.sample_compressed("fan_out", (5, *dims, 1), seed=0)
        begun = time.perf_counter()
        share = (path(drawn, ones(drawn.dims)).alpha or 0.0) / drawn.lambda_min_T
        print(f"(5, {dims[0]}, {dims[1]}, 1) drawn compressed: {share:.4f} in {time.perf_counter() - begun:.3f} s")


def descent(draws: int) -> None:
    for dims, height in (((1, 300, 500, 1), 2.0), ((5, 300, 500, 1), 1.0)):
        shares, steps = [], []
        for seed in range(draws):
            network = fs.fan_out(dims, seed=seed)
            problem = fs.Problem(fs.SquaredLoss(np.full((dims[0], dims[-1]), height)), network)
            run = fs.simulate(problem, fs.GradientDescent(ETA), t1=0.5, stop_loss=1e-10, save_points=2)
            certificate = descent_path(network, problem.loss, ETA)
            shares.append((certificate.rate or 0.0) / (run.rate_seen or np.nan))
            top = float(np.linalg.eigvalsh(network.dense_T())[-1])
            steps.append((greatest_step(network, problem.loss) or 0.0) * top / 2)
        low, middle, high = np.quantile(steps, (0.25, 0.5, 0.75))
        print(
            f"descent at {ETA:g}, {dims}: certified / seen rate, {np.median(shares):.3f}; greatest certified step"
            f" / (2 / lambda_max(T)): {low:.3f} {middle:.3f} {high:.3f}",
            flush=True,
        )


def times(draws: int) -> None:
    for dims in ((3, 10, 3), (3, 10, 10, 3), (3, 10, 10, 10, 3)):
        found = []
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            network = fs.initialize("xavier", dims, seed=rng)
            target = network.product + 0.5 * rng.standard_normal((3, 3))
            problem = fs.Problem(fs.SquaredLoss(target), network)
            certificates = fs.certify(problem)
            curve, best = certificates["combined"], certificates.best
            if not curve.rate:
                found.append((np.inf, np.inf))
                continue
            true = float(fs.simulate(problem, t1=1e6, stop_loss=1e-8 * problem.initial_excess).time[-1])
            x, t = np.interp(np.log(1e8), curve.knots[1], curve.knots[0]), np.log(1e8) / best.rate
            found.append((t / true, x / true))
        constant, falling = np.median(found, axis=0)
        print(
            f"time to 1e-8 of the excess, {dims}, certified over true: {constant:.2f} by the best constant rate,"
            f" {falling:.2f} by the curve of `combined`",
            flush=True,
        )


def random_problem(rng: np.random.Generator, size: float) -> tuple[str, fs.Problem]:
    depth = int(rng.integers(2, 7))
    n, m = (int(k) for k in rng.integers(1, 7, 2))
    hidden = rng.integers(1, 61, depth - 1)
    if rng.random() < 0.3:
        hidden[:] = hidden[0]  # ties
    dims = (n, *(int(h) for h in hidden), m)
    weights = tuple(rng.standard_normal(pair) / pair[int(rng.integers(2))] ** 0.5 for pair in pairwise(dims))
    network = fs.LinearNetwork(weights, scale=float(10 ** rng.uniform(-0.5, 0.5)))
    near = network.product + size * rng.standard_normal((n, m))
    kind = str(rng.choice(["squared", "least squares", "masked", "exponential"]))
    if kind == "least squares":
        X = rng.standard_normal((n + int(rng.integers(4)), n))
        return kind, fs.Problem(fs.LeastSquares(X, X @ near), network)
    if kind == "masked":
        return kind, fs.Problem(fs.MaskedSquaredLoss(near, rng.uniform(0.3, 2, (n, m))), network)
    if kind == "exponential":
        dims = (*dims[:-1], 1)
        network = fs.LinearNetwork((*weights[:-1], weights[-1][:, :1]), scale=network.scale)
        return kind, fs.Problem(fs.ExponentialLoss(*separable(rng, n)), network)
    return kind, fs.Problem(fs.SquaredLoss(near), network)


def separable(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels that a line through 0 separates."""
    X, direction = rng.standard_normal((8, n)), rng.standard_normal(n)
    return X, np.where(X @ direction >= 0, 1.0, -1.0)


def moved(rng: np.random.Generator, network: fs.LinearNetwork, radius: float) -> fs.LinearNetwork:
    """The weights at a random place at most so far away: anywhere, or where each layer is changed by one rank."""
    steps = [rng.standard_normal(W.shape) for W in network.weights]
    if rng.random() < 0.5:
        steps = [np.outer(step[:, 0], step[0]) for step in steps]
    length = radius * rng.random() ** 0.2 / np.sqrt(sum(float((step**2).sum()) for step in steps))
    weights = tuple(W + length * step for W, step in zip(network.weights, steps, strict=True))
    return fs.LinearNetwork(weights, scale=network.scale)


def along(problem: fs.Problem, t1: float) -> tuple[float, fs.Trajectory]:
    """The least lambda_min(T) at the saved times, and the flow."""
    run = fs.simulate(problem, TIGHT, t1=t1, save_points=9, max_steps=20_000)
    return min(run.core_at(t).lambda_min_T for t in run.checkpoints.times), run


def violations(networks: int, seed: int = 0) -> int:
    rng, certified, false, tight = np.random.default_rng(seed), Counter(), Counter(), []
    names, followed, points = Counter(), 0, 0
    for index in range(networks):
        kind, problem = random_problem(rng, float(10 ** rng.uniform(-3, 0.5)))
        network = problem.network
        entries = [c for c in fs.certify(problem) if c.scope == "trajectory" and c.applies and c.rate]
        if not entries:
            continue
        best = max(entries, key=lambda c: c.rate or 0.0)
        certified[kind, network.depth] += 1
        names.update(c.name for c in entries)
        least = network.lambda_min_T
        if index % MEASURED_ALONG_FLOWS == 0:
            along_flow, run = along(problem, 6 / max(best.rate, 1e-3))
            least, followed = min(least, along_flow), followed + 1
            for c in entries:
                above = run.steps.excess > c.bound(run.step_time) * (1 + 1e-5) + 1e-12
                false[c.name, "loss"] += bool(above.any())
        elif (ball := next((c for c in entries if c.name == "ball"), None)) is not None:
            points += 1
            there = moved(rng, network, ball.radius).lambda_min_T
            false["ball", "point"] += ball.alpha > there * SLACK
        for c in entries:
            false[c.name, "alpha"] += c.alpha > least * SLACK
        tight.append(best.alpha / least)
    total, wrong = sum(certified.values()), sum(false.values())
    quantiles = np.quantile(tight, (0.05, 0.25, 0.5, 0.75, 0.95)).round(3) if tight else "none"
    print(f"{networks} random networks, seed {seed}: {total} certified, {followed} along their flow, {points} at a")
    print(f"random point of the ball: {wrong} violations; tightness 5 25 50 75 95 %: {quantiles}")
    print("certified by loss and depth: " + ", ".join(f"{k} {d}: {v}" for (k, d), v in sorted(certified.items())))
    print("certified by theorem: " + ", ".join(f"{name}: {count}" for name, count in names.most_common()))
    if wrong:
        print("violated: " + ", ".join(f"{' '.join(key)}: {count}" for key, count in false.items() if count))
    return wrong


def climb(trials: int, seed: int = 3) -> int:
    """Random changes of weights and target, kept where alpha over the least lambda_min(T) along the flow grows."""
    rng, above = np.random.default_rng(seed), 0
    for name in ("path", "ball", "combined"):
        greatest = []
        for dims in ((1, 1, 1), (2, 3, 2), (1, 2, 2, 1), (2, 4, 3, 2), (1, 2, 1, 2, 1)):
            shapes, share, spread = list(pairwise(dims)), 0.0, 0.3
            state = [rng.standard_normal(shape) for shape in (*shapes, (dims[0], dims[-1]))]
            for _ in range(trials):
                tried = [W + spread * rng.standard_normal(W.shape) for W in state]
                network = fs.LinearNetwork(tuple(tried[:-1]))
                problem = fs.Problem(fs.SquaredLoss(network.product + 0.3 * tried[-1]), network)
                alpha = fs.certify(problem)[name].alpha or 0.0
                if alpha <= 1e-9:
                    continue
                least = min(along(problem, 4 / alpha)[0], network.lambda_min_T)
                if alpha / least > share:
                    state, share, spread = tried, alpha / least, min(spread * 1.5, 1.0)
                else:
                    spread *= 0.93
            greatest.append(share)
        above += max(greatest) > SLACK
        print(f"uphill, {name}: greatest alpha / least lambda_min(T) {max(greatest):.12f}", flush=True)
    return above


def descents(runs: int, seed: int = 1) -> int:
    rng, done, above = np.random.default_rng(seed), 0, 0
    while done < runs:
        _, problem = random_problem(rng, float(10 ** rng.uniform(-3, -0.5)))
        greatest = greatest_step(problem.network, problem.loss)
        if greatest is None:
            continue
        eta = float(rng.uniform(0.05, 1)) * greatest
        found = [theorem(problem.network, problem.loss, eta) for theorem in DESCENTS]
        certificate = max(found, key=lambda c: c.rate or 0.0)
        if not certificate.rate:  # at the very greatest step
            continue
        steps = int(min(5 / (certificate.rate * eta), 500)) + 5
        run = fs.simulate(problem, fs.GradientDescent(eta), t1=steps * eta, save_points=2)
        above += bool((run.steps.excess > certificate.bound(run.step_time) * SLACK + 1e-13 * run.excess[0]).any())
        done += 1
    print(f"{runs} random runs of descent with certified step sizes: {above} above their bounds")
    return above


def tails(draws: int, seed: int = 2) -> None:
    rng, shares, outside = np.random.default_rng(seed), [], 0
    for index in range(draws):
        depth = 2 + index % 4
        n, m = (int(k) for k in rng.integers(1, 5, 2))
        dims = (n, *(int(h) for h in rng.integers(max(n, m), 60, depth - 1)), m)
        scheme = str(rng.choice(["fan_in", "fan_out", "xavier"]))
        problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((n, m))), fs.initialize(scheme, dims, seed=rng))
        t = 3 / problem.network.lambda_min_T
        run = fs.simulate(problem, t1=t, save_points=2, max_steps=20_000, wall_limit=20.0)
        tail = run.certify_tail()
        shares.append(tail.share)
        if tail.radius is not None and run.exit_code == 0:
            later = fs.resume(run, t1=t + 6 / tail.rate, save_points=3, max_steps=20_000)
            moved = np.linalg.norm(later.checkpoints.states[-1] - run.checkpoints.states[-1])
            outside += bool(moved > tail.radius * (1 + 1e-6) + 1e-6)
    low, quarter, middle = np.quantile(shares, (0.1, 0.25, 0.5))
    print(
        f"tails of {draws} random networks at 3 / lambda_min(T(0)): alpha / lambda_min(T(t)) 10 25 50 %:"
        f" {low:.3f} {quarter:.3f} {middle:.3f}; limits outside the radius: {outside}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few of each, seconds")
    parser.add_argument("--networks", type=int, default=100_000, help="random networks")
    parser.add_argument("--only-networks", action="store_true", help="the random networks alone")
    parser.add_argument("--seed", type=int, default=0, help="of the random networks")
    options = parser.parse_args()
    small = options.small
    if options.only_networks:
        sys.exit(1 if violations(options.networks, options.seed) else 0)
    tightness(1 if small else 20)
    descent(2 if small else 20)
    tails(8 if small else 200)
    times(2 if small else 20)
    wrong = descents(4 if small else 500)
    wrong += climb(3 if small else 150)
    wrong += violations(60 if small else options.networks, options.seed)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
