"""Can the verdicts of diagnose be believed?

False alarms: a hundred undisturbed runs, every method of flowsim in turn, at the default tolerances (the first-order
ones, for which these are out of reach, at fixed steps), on random networks of two to four layers and four
initializations. Misses: a hundred runs at the default tolerances in which one weight, chosen at random, is nudged by
1e-6 at a random one of the saved times, and the same method goes on from there. Printed are the laws that were found
broken. Takes about a quarter of an hour, most of it jax compiling.

    python tests/laws/sabotage.py
"""

import argparse
import dataclasses
import sys
from collections import Counter

import numpy as np

import flowsim as fs
from flowsim.methods import METHODS
from flowsim.network import unflatten
from flowsim.runs.record import Checkpoints, Steps

SHAPES = ((3, 14, 2), (2, 12, 9, 3), (3, 9, 11, 8, 2))
SCHEMES = ("fan_in", "fan_out", "xavier", "orthogonal")
FIRST_ORDER = ("euler", "implicit-euler", "projected-euler", "gd")
NUDGE = 1e-6


def simulated(index: int, name: str) -> fs.Trajectory:
    """A run of that method on random problem number `index`, over about six times the inverse of the mean of T."""
    rng = np.random.default_rng([11, index])
    dims = SHAPES[list(METHODS).index(name) % len(SHAPES)]
    network = fs.initialize(SCHEMES[int(rng.integers(4))], dims, seed=rng, scale=float(10 ** rng.uniform(-0.5, 0)))
    t1 = min(10.0, 6.0 / float(np.trace(network.dense_T()) / (dims[0] * dims[-1])))
    method = fs.method_named(name, step_size=t1 / 1000 if name in FIRST_ORDER else None)
    return fs.simulate(fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), network), method, t1=t1)


def sabotaged(run: fs.Trajectory, place: int, weight: int, size: float = NUDGE) -> fs.Trajectory:
    """The run with one weight nudged at saved time number `place`, from where the same method goes on."""
    times, states = run.checkpoints.times, run.checkpoints.states
    nudged = states[place].copy()
    nudged[weight] += size
    start = run.simulated.network.with_weights(unflatten(nudged, run.simulated.network.dims))
    rest = fs.simulate(
        fs.Problem(run.problem.loss, start),
        run.method,
        t1=float(times[-1] - times[place]),
        save_points=times[place:] - times[place],
        reduce="never",
    )
    before, kept = run.step_time <= times[place], slice(0, place + 1)
    first, last = run.steps, rest.steps
    steps = Steps(
        np.append(first.time[before], last.time[1:] + times[place]),
        np.append(first.excess[before], last.excess[1:]),
        np.append(first.dissipated[before], last.dissipated[1:] + first.dissipated[before][-1]),
    )
    return dataclasses.replace(
        run,
        excess=np.append(run.excess[kept], rest.excess[1:]),
        gradient_norm=np.append(run.gradient_norm[kept], rest.gradient_norm[1:]),
        checkpoints=Checkpoints(times, np.concatenate([states[kept], rest.checkpoints.states[1:]])),
        steps=steps,
    )


def false_alarms(count: int, names: list[str]) -> list[str]:
    """A line for each undisturbed run that is found broken."""
    lines = []
    for index in range(count):
        name = names[index % len(names)]
        diagnosis = fs.diagnose(simulated(index, name))
        lines += [f"{index}, {name}: {law}" for law in diagnosis.broken]
        _note(index, count, name)
    return lines


def misses(count: int, names: list[str]) -> tuple[list[str], Counter]:
    """(a line for each sabotage that is not found, how often each law was found broken)."""
    lines, found = [], Counter()
    for index in range(count):
        name = names[index % len(names)]
        run, rng = simulated(1000 + index, name), np.random.default_rng([12, index])
        place = int(rng.integers(1, len(run.checkpoints.times) - 1))
        weight = int(rng.integers(run.checkpoints.states.shape[1]))
        broken = fs.diagnose(sabotaged(run, place, weight)).broken
        found.update(law.name.split(" D_")[0] for law in broken)
        if not broken:
            lines.append(f"{index}, {name}: place {place}, weight {weight}")
        _note(index, count, name)
    return lines, found


def _note(index: int, count: int, name: str) -> None:
    print(f"{index + 1}/{count} {name}", end="\r", file=sys.stderr)


def main() -> None:
    """Print both counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="ten of each, without jax, seconds")
    small = parser.parse_args().small
    count = 10 if small else 100
    plain = ["rk23", "rk45", "dop853", "radau", "lsoda", "gauss-legendre-2", "gauss-legendre-4", "projected-rk45", "gd"]
    names = plain if small else [name for name in METHODS if name != "gauss-legendre"]
    alarms = false_alarms(count, names)
    print(
        f"{count} undisturbed runs, {len(names)} methods: {len(alarms)} false alarms", *alarms, sep="\n  ", flush=True
    )
    names = [name for name in names if name not in FIRST_ORDER or name == "gd"]
    lines, found = misses(count, names)
    print(f"{count} sabotaged runs, {len(names)} methods: {count - len(lines)} found", *lines, sep="\n  ")
    print("laws found broken: " + ", ".join(f"{name} {times}" for name, times in found.most_common()))


if __name__ == "__main__":
    main()
