"""Ensembles: members a second of fs.ensemble, of fs.simulate one by one, and of diffrax under vmap as a user writes it.

Work: (5, 300, 500, 1), fan_out, Y = 1, gradient flow until the loss has fallen by 1e-8, by Dopri8 with the tolerances
of flowsim, in one process. fs.ensemble is timed with everything: drawing, compilation (what an earlier process has kept
is used; FLOWSIM_CACHE= switches that off), diagnostics. The peer integrates the same cores, which it is given:
diffeqsolve with an Event that locates the level, vmap, jit, saving at the same times. Answers are compared before times
are: time_reached and the curves. Floor: the compiled gradients alone that the members' steps take, of one batch, in a
loop.

    python benchmarks/ensemble.py [--members 10000] [--json FILE]
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

import flowsim as fs

DIMS, FALL, T1, TIMES = (5, 300, 500, 1), 1e-8, 0.03, np.linspace(0.0, 0.03, 33)
LOSS, METHOD = fs.SquaredLoss(np.ones((5, 1))), fs.Diffrax("Dopri8")
STAGES = 13
"""Gradients that a step of Dopri8 takes: 14 stages, the last of which is the first of the next step."""
PEERS, ALONE = 256, 100
"""Members of the peer and of fs.simulate."""


def drawn(seed: np.random.SeedSequence) -> fs.Problem:
    """A network drawn in compressed form."""
    return fs.Problem(LOSS, fs.sample_compressed("fan_out", DIMS, seed=seed))


def member(k: int) -> fs.Problem:
    """Member k of fs.ensemble(drawn, ...)."""
    return drawn(np.random.SeedSequence(0, spawn_key=(k,)))


def excess(weights: list[jax.Array]) -> jax.Array:
    """L - f*, as a user writes it."""
    W1, W2, W3 = weights
    return 0.5 * ((W1 @ W2 @ W3 - 1.0) ** 2).sum()


def solved(weights: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """One member by diffrax: when it stops, and its curve."""
    first = excess(weights)
    level = diffrax.Event(
        lambda t, y, args, **_: jnp.log(excess(y) / (FALL * first)), optimistix.Newton(1e-10, 1e-10)
    )
    curve = diffrax.SubSaveAt(ts=TIMES, fn=lambda t, y, args: excess(y))
    end = diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: t)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: jax.tree.map(jnp.negative, jax.grad(excess)(y))),
        diffrax.Dopri8(),
        0.0,
        T1,
        None,
        weights,
        saveat=diffrax.SaveAt(subs=(curve, end)),
        stepsize_controller=diffrax.PIDController(METHOD.rtol, METHOD.atol),
        event=level,
    )
    return solution.ys[1][0], solution.ys[0]


def seconds_of(function, *arguments) -> tuple[float, object]:
    """Of one call."""
    begun = time.perf_counter()
    found = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begun, found


def gradients_seconds(weights: list[jax.Array], steps: int) -> float:
    """Seconds of the gradients alone of so many steps of each member."""

    @jax.jit
    def repeated(weights: list[jax.Array]) -> list[jax.Array]:
        def moved(_: int, y: list[jax.Array]) -> list[jax.Array]:
            return jax.tree.map(lambda W, G: W - 1e-9 * G, y, jax.vmap(jax.grad(excess))(y))

        return jax.lax.fori_loop(0, STAGES * steps, moved, weights)

    seconds_of(repeated, weights)
    return seconds_of(repeated, weights)[0]


def main() -> None:
    """Print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, jax {jax.__version__}")
    settings = {"t1": T1, "stop_loss": FALL}
    first, _ = seconds_of(lambda: fs.ensemble(drawn, 2, **settings))
    whole, ensemble = seconds_of(lambda: fs.ensemble(drawn, arguments.members, **settings))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(ensemble)

    runs = [fs.simulate(member(k), METHOD, save_points=33, **settings) for k in range(3)]
    alone, _ = seconds_of(lambda: [fs.simulate(member(k), METHOD, save_points=33, **settings) for k in range(ALONE)])
    apart = max(abs(run.time[-1] / ensemble.scalars["time_reached"][k] - 1) for k, run in enumerate(runs))
    print(f"fs.simulate against fs.ensemble, time to the fall: {apart:.1e} relative")

    with jax.enable_x64(True):
        usual = [k for k in range(arguments.members) if ensemble.scalars["core_width"][k] == 12][:PEERS]
        cores = [member(k).network.core.weights for k in usual]
        weights = [jnp.asarray(np.stack(layers)) for layers in zip(*cores, strict=True)]
        solve = jax.jit(jax.vmap(solved))
        cold, _ = seconds_of(solve, weights)
        peer, (reached, curves) = seconds_of(solve, weights)
        before = np.isfinite(curves) & (np.asarray(reached)[:, None] > TIMES)
        apart = np.abs(np.asarray(reached) / ensemble.scalars["time_reached"][usual] - 1).max()
        off = np.abs(np.asarray(curves) / ensemble.excess[usual] - 1)[before].max()
        print(f"diffrax against fs.ensemble: time to the fall {apart:.1e}, curves {off:.1e} relative")
        steps = int(np.ceil(ensemble.scalars["steps"].mean()))
        floor = gradients_seconds(weights, steps)

    rates = {
        "fs.ensemble, all included": arguments.members / whole,
        "diffrax under vmap, cores given": len(usual) / peer,
        "fs.simulate, one at a time": ALONE / alone,
        f"the gradients of {steps} steps alone": len(usual) / floor,
    }
    print("| run | members a second | of the floor | seconds to compile |\n|---|---|---|---|")
    compiling = (first, cold - peer, runs[0].stats["compile_seconds"], 0.0)
    for (name, rate), spent in zip(rates.items(), compiling, strict=True):
        print(f"| {name} | {rate:.4g} | {rate * floor / len(usual):.2g} | {spent:.2g} |")
    print(f"{arguments.members} members in {first + whole:.1f} s with compilation; peak memory {peak:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rates, "seconds": first + whole, "peak_mb": peak}))


if __name__ == "__main__":
    main()
