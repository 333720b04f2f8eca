"""How long one waits before anything happens: --help, the import, a small certificate, a small simulation.

Each in a fresh process, medians of --repeats; beside the interpreter alone, which none can undercut.

    python benchmarks/startup.py [--repeats 9]
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import flowsim as fs
from flowsim.files import save_weights

LIMITS = {"flowsim --help": 0.4, "import flowsim": 0.3, "flowsim certify": 1.5}
"""Seconds that should not be exceeded on a machine at rest."""


def seconds(command: list[str], repeats: int) -> float:
    """The median wall time of the command."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def main() -> None:
    """Print a table; exit code 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.npz"
        save_weights(path, fs.fan_out((5, 30, 50, 1), seed=0), np.ones((5, 1)))
        flowsim = [sys.executable, "-m", "flowsim"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import flowsim": [sys.executable, "-c", "import flowsim"],
            "flowsim --help": [*flowsim, "--help"],
            "flowsim certify": [*flowsim, "certify", str(path)],
            "flowsim simulate": [*flowsim, "simulate", str(path), "--t1", "0.1"],
        }
        found = {name: seconds(command, repeats) for name, command in commands.items()}
    print(f"{platform.machine()}, Python {platform.python_version()}, medians of {repeats}")
    print("| command | seconds | limit |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.3f} | {LIMITS.get(name, '')} |")
    sys.exit(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    main()
