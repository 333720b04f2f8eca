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
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

import flowsim as fs
from flowsim.methods import METHODS
from flowsim.runs.record import Checkpoints, Reduction, Steps

SHAPES = ((3, 14, 2), (2, 12, 9, 3), (3, 9, 11, 8, 2))
SCHEMES = ("fan_in", "fan_out", "xavier", "orthogonal")
FIRST_ORDER = ("euler", "implicit-euler", "projected-euler", "gd")
NUDGE = 1e-6
QUICK = (
    "rk23",
    "rk45",
    "dop853",
    "radau",
    "lsoda",
    "gauss-legendre-2",
    "gauss-legendre-4",
    "projected-rk45",
    "gd",
    "leapfrog",
    "leapfrog-4",
)
"""Those that are not compiled."""


class Obeyed(NamedTuple):
    """What the weights obey; weight_decay: over the mean of T; descent: settings of gd, then the only method."""

    dynamics: fs.Dynamics = fs.GradientFlow()
    weight_decay: float = 0.0
    descent: Mapping[str, object] = MappingProxyType({})


PLAIN = Obeyed(fs.GradientFlow())
OBEYED = {
    "weight-decay": Obeyed(fs.GradientFlow(), 0.1),
    "heavy-ball": Obeyed(fs.HeavyBall(0.5)),
    "heavy-ball-decay": Obeyed(fs.HeavyBall(0.5), 0.1),
    "nesterov": Obeyed(fs.Nesterov()),
    "modified-flow": Obeyed(fs.ModifiedFlow(1e-3)),
    "momentum": Obeyed(descent={"momentum": 0.9}),
    "momentum-decay": Obeyed(weight_decay=0.1, descent={"momentum": 0.9, "nesterov": True}),
    "schedule": Obeyed(weight_decay=0.1, descent={"schedule": fs.Cosine(2500, warm_up=100)}),
    "batches": Obeyed(descent={"batch_size": 3, "seed": 1}),
    "label-noise": Obeyed(weight_decay=0.1, descent={"label_noise": 0.1, "batch_size": 2, "independent_batches": True}),
}


def suits(name: str, obeyed: Obeyed) -> bool:
    """Whether the method is made for the dynamics."""
    kind, dynamics = METHODS[name].kind, obeyed.dynamics
    if obeyed.descent:
        return name == "gd"
    if kind.inertial or dynamics.second_order:
        return (kind.inertial or not kind.stabilised) and dynamics.second_order and not is_projected_or_discrete(name)
    return dynamics == PLAIN.dynamics or not is_projected_or_discrete(name)


def is_projected_or_discrete(name: str) -> bool:
    """What takes gradient flow alone."""
    return name.startswith("projected-") or METHODS[name].kind.discrete


def simulated(index: int, name: str, obeyed: Obeyed = PLAIN) -> fs.Trajectory:
    """A run of that method on random problem number `index`, over about six times the inverse of the mean of T."""
    rng = np.random.default_rng([11, index])
    dims = SHAPES[list(METHODS).index(name) % len(SHAPES)]
    network = fs.initialize(SCHEMES[int(rng.integers(4))], dims, seed=rng, scale=float(10 ** rng.uniform(-0.5, 0)))
    mean = float(np.trace(network.dense_T()) / (dims[0] * dims[-1]))
    t1 = min(10.0, 6.0 / mean)
    step = t1 / 1000 if name in FIRST_ORDER or METHODS[name].kind.inertial else None
    loss = fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1])))
    problem = fs.Problem(loss, network, weight_decay=obeyed.weight_decay * mean)
    return fs.simulate(
        problem, fs.method_named(name, step_size=step, **obeyed.descent), t1=t1, dynamics=obeyed.dynamics
    )


def sabotaged(run: fs.Trajectory, place: int, weight: int, size: float = NUDGE) -> fs.Trajectory:
    """The run with one weight nudged at saved time number `place`, from where the same method goes on."""
    t, kept, until = float(run.checkpoints.times[place]), run.checkpoints, slice(0, place + 1)
    states, beside = kept.states[until].copy(), kept.beside[until]
    states[-1, weight] += size
    steps, before = run.steps, run.step_time < t
    stored = run.simulated_motion.stored(np.array([t]), kept.whole(place)[None])
    lost = steps.energy[0] - run.excess[place] - stored  # as the energy law has it
    begun = dataclasses.replace(
        run,
        problem=run.simulated,
        time=run.time[until],
        excess=run.excess[until],
        gradient_norm=run.gradient_norm[until],
        imbalance_change=run.imbalance_change[until],
        steps=Steps(
            np.append(steps.time[before], t),
            np.append(steps.excess[before], run.excess[place]),
            np.append(steps.dissipated[before], lost),
            np.append(steps.stored[before], stored),
        ),
        checkpoints=Checkpoints(kept.times[until], states, beside),
        reduction=Reduction(None, np.zeros(place + 1), "as it was compressed"),
    )
    gone_on = fs.resume(begun, t1=float(kept.times[-1]), save_points=kept.times[place:])
    forged = gone_on.checkpoints.states.copy()
    forged[place] = kept.states[place]
    return dataclasses.replace(
        run,
        excess=gone_on.excess,
        gradient_norm=gone_on.gradient_norm,
        checkpoints=Checkpoints(gone_on.checkpoints.times, forged, gone_on.checkpoints.beside),
        steps=gone_on.steps,
    )


def false_alarms(count: int, names: list[str], obeyed: Obeyed = PLAIN) -> list[str]:
    """A line for each undisturbed run that is found broken."""
    lines = []
    for index in range(count):
        name = names[index % len(names)]
        diagnosis = fs.diagnose(simulated(index, name, obeyed))
        lines += [f"{index}, {name}: {law}" for law in diagnosis.broken]
        _note(index, count, name)
    return lines


def misses(count: int, names: list[str], obeyed: Obeyed = PLAIN) -> tuple[list[str], Counter]:
    """(a line for each sabotage that is not found, how often each law was found broken)."""
    lines, found = [], Counter()
    for index in range(count):
        name = names[index % len(names)]
        run, rng = simulated(1000 + index, name, obeyed), np.random.default_rng([12, index])
        place = int(rng.integers(1, len(run.checkpoints.times) - 1))
        weight = int(rng.integers(run.checkpoints.states.shape[1]))
        broken = fs.diagnose(sabotaged(run, place, weight)).broken
        found.update(law.name.split(" D_")[0].split(" M_")[0] for law in broken)
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
    parser.add_argument("--dynamics", choices=OBEYED, help="what the weights obey, instead of plain gradient flow")
    arguments = parser.parse_args()
    obeyed = OBEYED.get(arguments.dynamics, PLAIN)
    count = 10 if arguments.small else 100
    suited = [name for name in METHODS if name != "gauss-legendre" and suits(name, obeyed)]
    names = [name for name in suited if name in QUICK] if arguments.small or arguments.dynamics else suited
    alarms = false_alarms(count, names, obeyed)
    print(
        f"{count} undisturbed runs, {len(names)} methods: {len(alarms)} false alarms", *alarms, sep="\n  ", flush=True
    )
    names = [name for name in names if name not in FIRST_ORDER or name == "gd"]
    lines, found = misses(count, names, obeyed)
    print(f"{count} sabotaged runs, {len(names)} methods: {count - len(lines)} found", *lines, sep="\n  ")
    print("laws found broken: " + ", ".join(f"{name} {times}" for name, times in found.most_common()))


if __name__ == "__main__":
    main()
