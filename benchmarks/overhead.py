"""What does a small run pay beyond the steps of its method? Where the time of `simulate` goes, part by part.

Each run is warm and repeated under cProfile, which costs Python more than it costs compiled code; `gradients` is what
as many bare gradients take without a profiler. Parts do not overlap; they are shares of the profiled whole.

    python benchmarks/overhead.py [--repeats 30]
"""

import argparse
import cProfile
import platform
import pstats
import time
from typing import Any

import numpy as np

import flowsim as fs

RUNS = [("homogeneous", "auto"), ("homogeneous", "dopri8"), ("depth-6", "auto"), ("depth-6", "dopri8")]
RTOL = 1e-6
PARTS = {
    "steps": [("guard.py", "advance")],
    "start of the method": [("base.py", "start")],
    "choice of what is integrated": [("recorder.py", "begin")],
    "saved times and diagnostics": [("recorder.py", "_save_from"), ("recorder.py", "_flush")],
    "remarks": [("remarks.py", "remarks")],
    "provenance": [("provenance.py", "provenance_of")],
}


def profiled(run: Any, repeats: int) -> dict[str, float]:
    """Milliseconds of a run, part by part, and of all."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(repeats):
        run()
    profile.disable()
    table: Any = pstats.Stats(profile)
    cumulative: dict[tuple[str, str], float] = {}
    for (path, _, name), (_, _, _, seconds, _) in table.stats.items():
        key = path.rsplit("/", 1)[-1], name
        cumulative[key] = cumulative.get(key, 0.0) + 1e3 * seconds / repeats
    parts = {label: sum(cumulative.get(key, 0.0) for key in keys) for label, keys in PARTS.items()}
    whole = cumulative["simulation.py", "simulate"]
    return {**parts, "the rest": whole - sum(parts.values()), "all": whole}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; ms a run, rtol {RTOL:g}")
    columns = ["problem", "method", "steps taken", "unprofiled", "gradients", *PARTS, "the rest", "all"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for name, key in RUNS:
        named, method = fs.problem_named(name), fs.method_named(key, rtol=RTOL, atol=RTOL / 100)

        def run(named: Any = named, method: Any = method) -> fs.Trajectory:
            return fs.simulate(named.problem, method, t1=named.t1, save_points=11)

        stats = run().stats
        bare = least(run, repeats)
        start = named.problem.initial_state

        def gradients(named: Any = named, start: Any = start, count: Any = stats["rhs_evaluations"]) -> None:
            for _ in range(count):
                named.problem.velocity(start)

        alone = least(gradients, repeats)
        cells = " | ".join(f"{value:.2f}" for value in profiled(run, repeats).values())
        print(f"| {name} | {key} | {stats['steps']} | {bare:.2f} | {alone:.2f} | {cells} |", flush=True)


def least(run: Any, repeats: int) -> float:
    """The least milliseconds of a call."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return 1e3 * min(seconds)


if __name__ == "__main__":
    main()
