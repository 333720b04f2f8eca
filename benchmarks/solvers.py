"""Which solver reaches an error of 1e-6 and of 1e-10 first, warm and from a cold process? flowsim beside its peers.

Work: the named problems of flowsim, weights at eleven times. Error: the greatest over these times of
||W - W_ref||_F over the change of the weights, against DOP853 at rtol 1e-13 checked by a second method. Every method
takes the loosest rtol = 10^-k (atol = rtol / 100) that reaches the error. warm: the least of several runs in one
process, after one that compiles; compile: how much longer that first one took. cold: a whole new process, interpreter,
imports, compilation and reading the weights included. flowsim compresses the width, its peers (extra `peers`: scipy,
diffrax, torchdiffeq) integrate the full weights; PyTorch SGD stands beside them with the error it reaches.

    python benchmarks/solvers.py [--problems paper-middle staircase] [--json FILE]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import PEERS, TooLong, torch_sgd

import flowsim as fs
from flowsim.named_problems import QUICK

TARGETS = (1e-6, 1e-10)
OURS = ("auto", "dop853", "rk45", "lsoda", "krylov-bdf", "rkc", "gauss-legendre-4", "tsit5", "dopri8")
DEFAULT = "auto"
LIMIT = 5.0
"""Seconds for one run."""
SGD_STEPS = 20_000
SMALL = 3000
"""LSODA without a Jacobian function needs a dense one by differences: only for fewer weights than this."""


def task_of(problem: fs.Problem, times: np.ndarray) -> dict[str, np.ndarray]:
    """What a peer needs: weights, times, the loss."""
    loss, network = problem.loss, problem.network
    arrays = {f"W{k}": W for k, W in enumerate(network.weights, start=1)} | {"times": times}
    if isinstance(loss, fs.SquaredLoss):
        return arrays | {"G": np.eye(len(loss.Y)), "H": np.asarray(loss.Y)}
    if isinstance(loss, fs.LeastSquares):
        return arrays | {"G": loss.factor.T @ loss.factor, "H": loss.factor.T @ loss.seen}
    return arrays | {"X": loss.X, "y": loss.labels}


def ours(problem: fs.Problem, times: np.ndarray, name: str) -> Callable[[float], Any]:
    """rtol -> the weights at the times by flowsim."""

    def run(rtol: float) -> Any:
        method = fs.method_named(name, rtol=rtol, atol=rtol / 100)
        flow = fs.simulate(problem, method, t1=float(times[-1]), save_points=times, wall_limit=LIMIT)
        if flow.status != "completed":
            raise TooLong(flow.status)
        return flow

    return run


def theirs(task: dict[str, np.ndarray], name: str) -> Callable[[float], Any]:
    """rtol -> the weights at the times by a peer."""
    return lambda rtol: PEERS[name](task, rtol, time.perf_counter() + LIMIT)


def contest(
    run: Callable[[float], Any], error: Callable[[Any], float], targets: tuple[float, ...] = TARGETS
) -> dict[float, dict[str, Any]]:
    """target -> the loosest rtol that reaches it, its error, warm and compile seconds; or why it is not reached."""
    found: dict[float, dict[str, Any]] = {}
    compiling, k, reason = None, 3, "no tolerance reaches it"
    for target in targets:
        while k <= 13:
            try:
                begun = time.perf_counter()
                with np.errstate(all="ignore"):
                    result = run(10.0**-k)
                first = time.perf_counter() - begun
            except TooLong:
                found[target] = {"reason": f"over {LIMIT:g} s"}
                break
            except (RuntimeError, AssertionError, MemoryError, fs.errors.FlowsimError) as problem:
                reason, k = str(problem).split(";")[0], k + 1
                continue
            compiling = first if compiling is None else compiling
            reached = error(result)
            if reached <= target:
                warm = min(timed(run, 10.0**-k) for _ in range(5 if first < 0.5 else 1))
                found[target] = {"rtol": 10.0**-k, "error": reached, "warm": warm}
                break
            k += 1
        found.setdefault(target, {"reason": reason})
    quickest = min((row["warm"] for row in found.values() if "warm" in row), default=0.0)
    for row in found.values():
        row["compile"] = None if compiling is None else max(compiling - quickest, 0.0)
    return found


def timed(run: Callable[[float], Any], rtol: float) -> float:
    """Seconds of one run."""
    begun = time.perf_counter()
    run(rtol)
    return time.perf_counter() - begun


def cold(name: str, file: Path, rtol: float) -> float:
    """Seconds of a whole process, the least of a few."""
    here = Path(__file__).parent
    if name in PEERS:
        command = [sys.executable, str(here / "peers.py"), name, str(file), str(rtol)]
    else:
        command = [sys.executable, str(here / "cold.py"), name, str(file), str(rtol)]
    seconds: list[float] = []
    while not seconds or (len(seconds) < 5 and sum(seconds) < 3):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def benchmark(name: str, folder: Path) -> dict[str, Any]:
    """All methods on one named problem."""
    from flowsim.comparison import solve_reference

    named = fs.problem_named(name)
    times = np.linspace(0.0, named.t1, 11)
    truth, task = solve_reference(named.problem, times), task_of(named.problem, times)
    file = folder / f"{name}.npz"
    np.savez(file, **task)
    by_time = dict(zip(times.tolist(), range(len(times)), strict=True))
    rows: dict[str, Any] = {}
    for method in OURS:
        rows[method] = contest(
            ours(named.problem, times, method), lambda flow: float(truth.errors(flow.weights_at).max())
        )
    for method in PEERS:
        if method == "scipy LSODA" and named.problem.network.size > SMALL:
            continue
        rows[method] = contest(theirs(task, method), lambda path: float(truth.errors(lambda t: path[by_time[t]]).max()))
    for method, targets in rows.items():
        for row in targets.values():
            if "rtol" in row:
                row["cold"] = cold(method, file, row["rtol"])
    path = torch_sgd(task, named.t1 / SGD_STEPS, np.inf)
    sgd_error = float(truth.errors(lambda t: path[by_time[t]]).max())
    return {"rows": rows, "uncertainty": truth.uncertainty, "sgd error": sgd_error}


def print_table(name: str, result: dict[str, Any]) -> None:
    """One problem."""
    print(f"\n{name}: reference known to {result['uncertainty']:.0e}")
    print(
        "| method | " + " | ".join(f"rtol, {t:g} | error | warm / s | cold / s" for t in TARGETS) + " | compile / s |"
    )
    print("|---" * (2 + 4 * len(TARGETS)) + "|")
    for method, targets in result["rows"].items():
        cells, label = [], f"flowsim {method}" if method in OURS else method
        for row in targets.values():
            cells += (
                [f"{row['rtol']:.0e}", f"{row['error']:.1e}", f"{row['warm']:.4f}", f"{row['cold']:.2f}"]
                if "rtol" in row
                else [row["reason"], "", "", ""]
            )
        compiling = next(iter(targets.values()))["compile"]
        print(f"| {label} | " + " | ".join(cells) + f" | {'' if compiling is None else f'{compiling:.2f}'} |")
    print(f"PyTorch SGD, {SGD_STEPS} steps: error {result['sgd error']:.1e}", flush=True)


def verdicts(results: dict[str, Any]) -> None:
    """How far simulate's default is from the best cold one, and which method is the best warm."""
    print("\n| problem | error | default / best, cold | best cold | best warm | best of flowsim / best peer, warm |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        for target in TARGETS:
            rows = {m: targets[target] for m, targets in result["rows"].items() if "rtol" in targets[target]}
            coldest, warmest = (min(rows, key=lambda m: rows[m][kind]) for kind in ("cold", "warm"))
            ours_warm = min((rows[m]["warm"] for m in rows if m in OURS), default=np.inf)
            peer_warm = min((rows[m]["warm"] for m in rows if m in PEERS), default=np.inf)
            ratio = rows[DEFAULT]["cold"] / rows[coldest]["cold"] if DEFAULT in rows else np.inf
            print(f"| {name} | {target:g} | {ratio:.2f} | {coldest} | {warmest} | {ours_warm / peer_warm:.2f} |")


def main() -> None:
    """Print tables, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(QUICK), choices=list(fs.PROBLEMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.problems:
            results[name] = benchmark(name, Path(folder))
            print_table(name, results[name])
    verdicts(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, default=str))


if __name__ == "__main__":
    main()
