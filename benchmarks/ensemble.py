"""Ensembles: members a second, flowsim side by side, one after the other, in processes, and on the full weights.

Work: (5, 300, 500, 1), fan_out, Y = 1, gradient flow until the loss has fallen by 1e-8. Side by side: fs.ensemble on
networks drawn in compressed form, drawing, compilation and diagnostics included. One at a time: fs.simulate on the same
members. In processes: a sweep of them on 1 and 2 workers, records written. Full width: a NumPy loop of gradient descent
with gradients by hand, at step size 5e-6, as many steps as the same fall takes, weights drawn in full. The loss curves
of the side-by-side members are compared with those of full-width flows before times are (Kolmogorov and Smirnov).

    python benchmarks/ensemble.py [--members 10000] [--json FILE]
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

import flowsim as fs

DIMS, FALL, ETA = (5, 300, 500, 1), 1e-8, 5e-6
LOSS = fs.SquaredLoss(np.ones((5, 1)))
T1 = 0.03


def drawn(seed: np.random.SeedSequence) -> fs.Problem:
    """A network drawn in compressed form."""
    return fs.Problem(LOSS, fs.sample_compressed("fan_out", DIMS, seed=seed))


def full(seed: np.random.SeedSequence) -> fs.Problem:
    """A network with all its weights."""
    return fs.Problem(LOSS, fs.fan_out(DIMS, seed=seed))


def full_width_loop(seed: int) -> float:
    """Seconds of gradient descent on the full weights until the loss has fallen."""
    begun = time.perf_counter()
    W1, W2, W3 = (W.copy() for W in fs.fan_out(DIMS, seed=seed).weights)
    first = None
    while True:
        A, B = W1 @ W2, W2 @ W3
        E = W1 @ B - LOSS.Y
        loss = 0.5 * (E * E).sum()
        first = loss if first is None else first
        if loss <= FALL * first:
            return time.perf_counter() - begun
        W1, W2, W3 = W1 - ETA * E @ B.T, W2 - ETA * (W1.T @ E) @ W3.T, W3 - ETA * A.T @ E


def agreement(ensemble: fs.Ensemble, count: int) -> dict[str, float]:
    """p-values of Kolmogorov and Smirnov between the members and full-width flows: time to the fall, and the loss at
    three times."""
    whole = fs.ensemble(full, count, t1=T1, stop_loss=FALL, save_points=33, seed=1)
    values = {"time to the fall": ks_2samp(ensemble.scalars["time_reached"], whole.scalars["time_reached"]).pvalue}
    for index in (2, 4, 6):
        curves = [e.excess[:, index] / e.excess[:, 0] for e in (ensemble, whole)]
        values[f"loss at t = {ensemble.time[index]:.3g}"] = ks_2samp(*curves).pvalue
    return {name: float(value) for name, value in values.items()}


def sweep_seconds(members: int, workers: int) -> float:
    """Seconds of a sweep of the same members."""
    table = {"dims": [list(DIMS)], "draw": "sampled", "seeds": members, "t1": T1, "stop_loss": FALL}
    spec = fs.SweepSpec.build({"sweep": {**table, "certificates": "none"}})
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        fs.sweep(spec, Path(folder) / "out", workers=workers)
        return time.perf_counter() - begun


def main() -> None:
    """Print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    begun = time.perf_counter()
    ensemble = fs.ensemble(drawn, arguments.members, t1=T1, stop_loss=FALL)
    side_by_side = time.perf_counter() - begun
    print(ensemble)
    p_values = agreement(ensemble, arguments.compared)
    print(f"against {arguments.compared} full-width flows, p: {p_values}")
    few = range(min(300, arguments.members))
    begun = time.perf_counter()
    for k in few:
        fs.simulate(drawn(np.random.SeedSequence(0, spawn_key=(k,))), t1=T1, stop_loss=FALL, save_points=33)
    one_at_a_time = (time.perf_counter() - begun) / len(few)
    loops = np.median([full_width_loop(seed) for seed in range(5)])
    some = min(2000, arguments.members)
    sweeps = {workers: sweep_seconds(some, workers) / some for workers in (1, 2)}
    rates = {
        "fs.ensemble, side by side": arguments.members / side_by_side,
        "fs.simulate, one at a time": 1 / one_at_a_time,
        "sweep, 1 process": 1 / sweeps[1],
        "sweep, 2 processes": 1 / sweeps[2],
        "NumPy loop on the full weights": 1 / loops,
    }
    slowest = rates["NumPy loop on the full weights"]
    print("| run | members a second | times the full-width loop |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.4g} | {rate / slowest:.4g} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.members} members in {side_by_side:.1f} s, compilation included; peak memory {peak:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rates, "p": p_values, "seconds": side_by_side}))


if __name__ == "__main__":
    main()
