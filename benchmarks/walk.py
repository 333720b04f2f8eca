"""The walk of a reader: which functions `flowsim simulate` passes on its way to a NetCDF file, and `load` on the way
back; how many, in how many modules and rooms. With --list all of them, in order.

    python benchmarks/walk.py
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import flowsim as fs
from flowsim import cli

ROOT = Path(fs.__file__).parent


def walk(way: Callable[[], Any]) -> list[tuple[str, str]]:
    """(module, function) of flowsim in the order of their first calls."""
    passed: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)) and not code.co_name.startswith("<"):
            passed.setdefault((str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname))

    sys.setprofile(note)
    try:
        way()
    finally:
        sys.setprofile(None)
    return list(passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print all functions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights, run = Path(folder) / "w.npz", Path(folder) / "run.nc"
        np.savez(weights, W1=np.full((2, 4), 0.3), W2=np.full((4, 1), 0.2), Y=np.ones((2, 1)))
        words = ["simulate", str(weights), "--t1", "1", "--out", str(run)]
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(words)  # what is imported on the way is no part of it
            ways = {"to the file": walk(lambda: cli.main(words)), "and back": walk(lambda: fs.load(run))}
    for name, passed in ways.items():
        modules = {module for module, _ in passed}
        rooms = {module.split("/")[0] for module in modules}
        print(f"{name}: {len(passed)} functions in {len(modules)} modules of {len(rooms)} rooms")
        for module, function in passed if options.list else ():
            print(f"  {module}: {function}")


if __name__ == "__main__":
    main()
