"""Can rounding make a certificate false?

Random networks made to break the arithmetic: two to six layers, n and m from 1 to 4, hidden widths from 1 on
(bottlenecks among them), entries, rows, layers or whole networks scaled by powers of ten from 1e-8 to 1e8, entries that
are tied or 0, layers of low rank, and structured ones (unimodal, homogeneous, balanced, diagonal) that are nudged by a
relative 1e-16 to 1e-3. The loss is one of four, with a target near the product, so that the margins are positive, or
far from it.

Every certificate that applies is held against lambda_min(T). Floating point clears those below
(sigma_min(J) - error)^2, T = J J^T; the others, and all of every tenth network, go to multiple precision. Beside it,
the same formulas without the caution: how many of them are false, and how many true ones the caution costs (alpha 0, or
less than half). Prints all false certificates. 20,000 networks take about four minutes on two cores (extra
`test`).

    python studies/hostile_networks.py [--members 20000] [--small]
"""

import argparse
import time
from collections import Counter
from itertools import pairwise
from unittest import mock

import joblib
import numpy as np

import flowsim as fs
from flowsim.rates import imbalance, margin

NEARLY = 1 + 1e-13
"""Both sides are rounded to float64 in the end."""
FLOAT_ERROR = 1e-12
"""Of singular values of J, relative to ||J||_F: far above what they are off by."""


def shape(rng: np.random.Generator) -> tuple[int, ...]:
    """Depth 2 to 6, all widths from 1 on."""
    n, m = (int(k) for k in rng.integers(1, 5, 2))
    return (n, *(int(k) for k in rng.integers(1, 7, rng.integers(1, 6))), m)


def scaled(rng: np.random.Generator, layers: list[np.ndarray]) -> list[np.ndarray]:
    """Entries, rows and columns, or whole layers, times powers of ten."""
    kind, reach = int(rng.integers(5)), float(rng.choice([1, 3, 8]))
    powers = {
        0: [rng.uniform(-reach, reach, W.shape) for W in layers],
        1: [rng.uniform(-reach, reach, (W.shape[0], 1)) for W in layers],
        2: [rng.uniform(-reach, reach, (1, W.shape[1])) for W in layers],
        3: [np.full((1, 1), rng.uniform(-reach, reach)) for W in layers],
    }.get(kind)
    return layers if powers is None else [W * 10.0**p for W, p in zip(layers, powers, strict=True)]


def coarse(rng: np.random.Generator, layers: list[np.ndarray]) -> list[np.ndarray]:
    """Ties, zeros, zero rows and low rank, each sometimes."""
    changed = []
    for W in layers:
        if rng.random() < 0.3:
            W = np.round(W)
        if rng.random() < 0.3:
            W = W * (rng.random(W.shape) < 0.6)
        if rng.random() < 0.1:
            W = W * (rng.random((W.shape[0], 1)) < 0.6)
        if rng.random() < 0.1:
            W = np.outer(W[:, 0], W[0])
        changed.append(W)
    return changed


def structured(rng: np.random.Generator, dims: tuple[int, ...]) -> list[np.ndarray]:
    """Weights that a theorem asks for, nudged."""
    least, depth, seed = min(dims[0], dims[-1]), len(dims) - 1, int(rng.integers(2**31))
    dims = (dims[0], *(max(h, least) for h in dims[1:-1]), dims[-1])
    kind = int(rng.integers(4))
    if kind == 0:
        peak, levels = int(rng.integers(1, depth + 1)), rng.uniform(0, 2, depth - 1)
        made = fs.unimodal(dims, peak=peak, imbalance=levels, seed=seed)
    elif kind == 1:
        made = fs.homogeneous((least,) * len(dims), imbalance=rng.uniform(-2, 2, depth - 1), seed=seed)
    elif kind == 2:
        made = fs.balanced(dims, seed=seed)
    else:
        diagonals = [np.eye(r, k) * 10.0 ** rng.uniform(-4, 4, (r, 1)) for r, k in pairwise(dims)]
        made = fs.LinearNetwork(tuple(diagonals))
    size = 10.0 ** rng.uniform(-16, -3) * rng.integers(0, 2)
    factor = 10.0 ** float(rng.choice([0, 0, -8, -3, 3, 8]))
    return [factor * W * (1 + size * rng.standard_normal(W.shape)) for W in made.weights]


def network_of(seed: int) -> fs.LinearNetwork:
    """Member number `seed`."""
    rng = np.random.default_rng([7, seed])
    dims = shape(rng)
    if rng.random() < 0.3:
        layers = structured(rng, dims)
    else:
        layers = [rng.standard_normal((r, k)) for r, k in pairwise(dims)]
        layers = scaled(rng, coarse(rng, layers))
    return fs.LinearNetwork(tuple(layers), scale=float(10.0 ** rng.choice([0, 0, -3, 3])))


def problem_of(seed: int) -> fs.Problem:
    """That network and a loss: squared (near or far target), least squares, masked, exponential."""
    network, rng = network_of(seed), np.random.default_rng([8, seed])
    W = network.product
    near = W + 10.0 ** rng.uniform(-12, 0) * np.linalg.norm(W) * rng.standard_normal(W.shape) / np.sqrt(W.size)
    kind = int(rng.integers(6))
    if kind == 0:
        return fs.Problem(fs.SquaredLoss(rng.standard_normal(W.shape)), network)
    if kind == 1:
        X = rng.standard_normal((len(W) + 2, len(W))) * 10.0 ** rng.uniform(-3, 3, len(W))
        return fs.Problem(fs.LeastSquares(X, X @ near), network)
    if kind == 2:
        return fs.Problem(fs.MaskedSquaredLoss(near, np.maximum(rng.random(W.shape) < 0.7, np.eye(*W.shape))), network)
    if kind == 3:
        X = rng.standard_normal((6, len(W)))
        return fs.Problem(fs.ExponentialLoss(X, np.where(X @ rng.standard_normal(W.shape) > 0, 1.0, -1.0)), network)
    return fs.Problem(fs.SquaredLoss(near), network)


def certificates_of(problem: fs.Problem, cautious: bool) -> dict[str, float]:
    """alpha of all that apply, or (for the network alone) would without the loss."""
    if cautious:
        found = fs.certify(problem)
    else:
        with (
            mock.patch.object(imbalance, "uncertainty", return_value=0.0),
            mock.patch.object(margin, "rounding", return_value=0.0),
        ):
            found = fs.certify(problem)
    return {c.name: c.alpha for c in found if c.alpha is not None and (c.applies or c.scope == "trajectory")}


def judged(seed: int) -> dict[str, Counter]:
    """What became of the certificates of member number `seed`."""
    with np.errstate(over="ignore", under="ignore"):
        problem = problem_of(seed)
        network = problem.network
        careful, plain = certificates_of(problem, True), certificates_of(problem, False)
        J = network.jacobian_factors
        size = float(np.linalg.norm(J))
        surely = max(float(np.sqrt(network.lambda_min_T)) - FLOAT_ERROR * size, 0.0) ** 2
    exact = seed % 10 == 0 or max((*careful.values(), *plain.values()), default=0.0) > surely
    truth = fs.exact.least_eigenvalue_of_T(network) if exact else surely
    counts = {name: Counter() for name in {*careful, *plain, "all"}}
    for name in {*careful, *plain}:
        with_care, without = careful.get(name, 0.0), plain.get(name, 0.0)
        row = counts[name]
        row["positive"] += with_care > 0
        row["false"] += with_care > truth * NEARLY
        row["false without caution"] += without > truth * NEARLY
        row["true without caution"] += 0 < without <= truth * NEARLY
        row["lost"] += 0 < without <= truth * NEARLY and with_care == 0
        row["less than half left"] += 0 < without <= truth * NEARLY and 0 < with_care < 0.5 * without
        if with_care > truth * NEARLY:
            print(f"FALSE: member {seed}, {name}: alpha {with_care!r}, lambda_min(T) {truth!r}, dims {network.dims}")
    counts["all"]["in multiple precision"] += exact
    counts["all"]["bottlenecks"] += min(network.dims) < min(network.dims[0], network.dims[-1])
    return counts


def some(seeds: range) -> dict[str, Counter]:
    """judged, summed."""
    total: dict[str, Counter] = {}
    for seed in seeds:
        for name, row in judged(seed).items():
            total.setdefault(name, Counter()).update(row)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=20_000)
    parser.add_argument("--small", action="store_true", help="60 networks, on one process")
    arguments = parser.parse_args()
    members = 60 if arguments.small else arguments.members
    begun = time.perf_counter()
    blocks = [range(start, min(start + 50, members)) for start in range(0, members, 50)]
    parts = joblib.Parallel(n_jobs=1 if arguments.small else -1)(joblib.delayed(some)(block) for block in blocks)
    total: dict[str, Counter] = {}
    for part in parts:
        for name, row in part.items():
            total.setdefault(name, Counter()).update(row)
    whole = total.pop("all")
    heads = ("positive", "false", "false without caution", "true without caution", "lost", "less than half left")
    print(f"{'certificate':24}" + "".join(f"{head:>23}" for head in heads))
    for name in (name for name in fs.rates.THEOREMS if name in total):
        print(f"{name:24}" + "".join(f"{total[name][head]:23}" for head in heads))
    sums = {head: sum(row[head] for row in total.values()) for head in heads}
    print(f"{'all':24}" + "".join(f"{sums[head]:23}" for head in heads))
    print(
        f"{members} networks, {whole['bottlenecks']} with a bottleneck, {whole['in multiple precision']} in multiple"
        f" precision, {sums['false']} false certificates, {time.perf_counter() - begun:.0f} s"
    )


if __name__ == "__main__":
    main()
