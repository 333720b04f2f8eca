"""Saved runs in which one entry is of a wrong kind or value: every entry, every value, every array.

    python tests/hostile_runs.py [N]

calls every command that reads a run on each such file (on every N-th), and prints how often it ended with which exit
code.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import flowsim as fs
from flowsim import cli

MISSING = type("Missing", (), {"__repr__": lambda self: "(left out)"})()
VALUES: tuple[Any, ...] = (
    MISSING,
    None,
    True,
    0,
    -1,
    3,
    2**63,
    10**400,
    0.5,
    -1e-3,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "abc",
    "1e-8",
    "\x1b[2J\n",
    [],
    [1],
    [[-1.0]],
    {},
    {"a": None},
)
NAMES = ("drawn", "labelled", "masked", "moving", "narrow", "projected", "wide")
Place = tuple[Any, ...]


@cache
def runs() -> dict[str, bytes]:
    """Valid runs by name: the full weights, gone on with; a compressed one on data; labels; gradient descent."""
    X, rng = np.diag([1.0, 2.0, 0.5]), np.random.default_rng(0)
    narrow = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_in((2, 4, 3, 1), seed=0))
    wide = fs.Problem(fs.LeastSquares(np.vstack([X, X]), np.ones((6, 1))), fs.fan_out((3, 200, 300, 1), seed=0))
    drawn = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.sample_compressed("fan_out", (2, 10**6, 10**6, 1), seed=1))
    labelled = fs.Problem(fs.ExponentialLoss(np.eye(2), [1, -1]), fs.ntk((2, 4, 1), seed=0))
    masked = fs.Problem(fs.MaskedSquaredLoss(rng.normal(size=(2, 2)), [[1, 1], [1, 0]]), fs.fan_in((2, 3, 2), seed=0))
    made = {
        "narrow": fs.resume(fs.simulate(narrow, t1=0.1, save_points=4), t1=0.2, save_points=3),
        "wide": fs.simulate(wide, t1=1e-3, save_points=4),
        "drawn": fs.simulate(drawn, t1=1e-7, save_points=3),
        "labelled": fs.simulate(labelled, fs.GaussLegendre(2, step_size=0.1), t1=0.5, save_points=3),
        "masked": fs.simulate(masked, fs.GradientDescent(1e-2), t1=0.1, save_points=3),
        "moving": fs.simulate(masked, fs.GradientDescent(1e-2, momentum=0.9), t1=0.1, save_points=3),
        "projected": fs.simulate(masked, "projected-rk45", t1=0.1, save_points=3),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, run in made.items():
            run.save(Path(folder) / name)
        return {name: (Path(folder) / name).read_bytes() for name in made}


def record_of(content: bytes) -> dict[str, Any]:
    """The JSON object of a run."""
    with h5py.File(io.BytesIO(content), "r") as file:
        return json.loads(file.attrs["flowsim"])


def places(record: Any, path: Place = ()) -> Iterator[Place]:
    """The paths of all entries, of a list the first."""
    inner = record.items() if isinstance(record, dict) else enumerate(record[:1]) if isinstance(record, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def with_entry(record: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    """The object with another value at the path."""
    changed = copy.deepcopy(record)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def entries(name: str) -> Iterator[tuple[Place, Any, dict[str, Any]]]:
    """(path, value, object) for every entry of a run and every value that the entry cannot have."""
    record = record_of(runs()[name])
    record["provenance"] = {"python": "3", "configuration": {"method": "dop853", "t1": 0.1}}
    for path, value in product(places(record), VALUES):
        changed = with_entry(record, path, value)
        if json.dumps(changed) != json.dumps(record) and not may_be(record, path, value):
            yield path, value, changed


def may_be(record: dict[str, Any], path: Place, value: Any) -> bool:
    """Whether a run may have that value there, so that nothing tells it from one that it was saved with."""
    text = ".".join(str(key) for key in path)
    number = type(value) in (int, float) and -1e300 < value < 1e300
    json_has = not isinstance(value, float) or math.isfinite(value)
    open_ = ("provenance.configuration.t1", "provenance.python", "origin.")
    if text.startswith(open_) and record["origin"].get("form") != "sampled":
        return json_has and (path[-1] != "scheme" or isinstance(value, str) or value is MISSING)
    if text.startswith(open_[:2]):
        return json_has
    adaptive = record["method"]["family"] != "GradientDescent"  # of which steps below the size are the last ones
    known: dict[str, Callable[[], bool]] = {
        "detail": lambda: isinstance(value, str),
        "reduction.reason": lambda: isinstance(value, str),
        "provenance": lambda: isinstance(value, dict),
        "provenance.configuration": lambda: isinstance(value, dict) or value is MISSING,
        "provenance.configuration.method": lambda: isinstance(value, str) or value is MISSING,
        "origin": lambda: isinstance(value, dict) and json_has,
        "origin.scale": lambda: (number and value > 0) or value == 1e308,
        "origin.seed": lambda: value is None or (type(value) is int and value >= 0),
        "origin.scheme": lambda: isinstance(value, str),
        "origin.form": lambda: json_has,
        "restarts": lambda: value in ([], MISSING),
        "before": lambda: value in ([], MISSING),
        "restarts.0": lambda: value is MISSING or (number and 0 < value < 0.2),
        "stats.seconds": lambda: (number and value >= 0) or value == 1e308,
        "stats.compile_seconds": lambda: (number and value >= 0) or value == 1e308,
        "stats.rhs_evaluations": lambda: type(value) is int and 0 <= value < 2**53,
        "stats.rejected_steps": lambda: value is None or (type(value) is int and 0 <= value < 2**53),
        "stats.jacobians": lambda: value is None or (type(value) is int and 0 <= value < 2**53),
        "reduction.complete": lambda: isinstance(value, bool) or value is MISSING,
        "reduction.imbalance_norms.0": lambda: (number and value >= 0) or value == 1e308,
        "loss_numbers.minimum": lambda: (number and value >= 0) or value == 1e308,
        "scale": lambda: number and 0.3 <= value <= 3,
        "method.rtol": lambda: value is MISSING or (number and 1e-13 <= value <= 1),
        "method.atol": lambda: value is MISSING or (number and value >= 0) or value == 1e308,
        "method.stages": lambda: value == 3 or value is MISSING,
        "method.step_size": lambda: adaptive and (value in (None, MISSING, 1e308) or (number and value > 0.1)),
        "method.momentum": lambda: (
            number and 0 < value < 1 if record["method"]["momentum"] else value is MISSING or (number and value == 0)
        ),
        "method.nesterov": lambda: value is MISSING or (value is True and record["method"]["momentum"] > 0),
        "method.backend": lambda: value is MISSING,
        "method.name": lambda: value is MISSING,
        "method.schedule": lambda: value is MISSING,
        "method.batch_size": lambda: value is MISSING or (type(value) is int and value >= 1),
        "method.label_noise": lambda: value is MISSING or (number and value >= 0) or value == 1e308,
        "method.independent_batches": lambda: value is MISSING,
        "method.seed": lambda: value is MISSING or (type(value) is int and value >= 0),
        "dynamics": lambda: value is MISSING,
        "weight_decay": lambda: value is MISSING or (number and 0 <= value < 1e-300),
    }
    inner = "method." + str(path[-1]) if text.startswith("method.method.") else text
    if inner in ("reduction.counts", "reduction.imbalance_norms", "reduction.complete") and _full(record):
        return False
    if inner == "reduction.steps" and not _full(record):
        return type(value) is int and 0 <= value <= 3
    return inner in known and known[inner]()


def _full(record: dict[str, Any]) -> bool:
    return record["reduction"]["steps"] is None


def with_record(content: bytes, record: Any) -> bytes:
    """The run with another JSON object."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        file.attrs["flowsim"] = json.dumps(record)
    return stream.getvalue()


def _nan(array: np.ndarray) -> np.ndarray:
    array.flat[-1] = np.nan
    return array


def _put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return change


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "left out": lambda array: None,
    "float32": lambda array: array.astype("f4"),
    "integers": lambda array: array.astype("i8"),
    "complex": lambda array: array.astype("c16"),
    "text": lambda array: np.full(array.shape, b"abc"),
    "one less": lambda array: array[:-1],
    "one more": lambda array: np.concatenate([array, array[-1:]]),
    "empty": lambda array: array[:0],
    "a number": lambda array: np.float64(1.0),
    "another axis": lambda array: array[..., None],
    "NaN": _nan,
    "-inf": _put(-np.inf),
    "1e308": _put(1e308),
}
DERIVED = ("loss", "imbalance_drift", "singular_values", "step_loss", "energy_residual", "layer", "mode")
"""Variables for other programs, which flowsim computes anew."""
HARMLESS = {("gradient_norm", "1e308"), ("imbalance_change", "1e308"), ("error_estimate", "1e308")}
HARMLESS |= {("dissipated", "1e308")}


def arrays(name: str) -> Iterator[tuple[str, str, Any]]:
    """(variable, change, array) for every array that is read, and every change that it cannot bear; None: left out."""
    with h5py.File(io.BytesIO(runs()[name]), "r") as file:
        found = {key: value[()] for key, value in file.items() if value.dtype == np.float64 and key not in DERIVED}
    for variable, how in product(found, ARRAYS):
        fewer_data = variable.startswith("loss_") and how in ("one less", "one more", "1e308")
        optional = variable in ("initial_W1", "basis_P1") and how == "left out"
        if (variable, how) not in HARMLESS and not fewer_data and not optional:
            yield variable, how, ARRAYS[how](found[variable].copy())


def with_array(content: bytes, name: str, array: Any) -> bytes:
    """The run with another array of that name; None: without."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        del file[name]
        if array is not None:
            file.create_dataset(name, data=array)
    return stream.getvalue()


FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"hello\n",
    "half": lambda content: content[: len(content) // 2],
    "head": lambda content: content[:100],
    "no signature": lambda content: b"\0" * 8 + content[8:],
    "an .npz": lambda content: b"PK\x03\x04" + content,
    "no attribute": lambda content: _edited(content, lambda file: file.attrs.__delitem__("flowsim")),
    "bytes": lambda content: _edited(content, lambda file: file.attrs.__setitem__("flowsim", np.bytes_(b"\xff\xfe"))),
    "texts": lambda content: _edited(content, lambda file: file.attrs.__setitem__("flowsim", ["{}", "{}"])),
    "a list": lambda content: with_record(content, [1, 2]),
    "a part more": lambda content: _edited(content, lambda file: file.__setitem__("loss_more", np.eye(2))),
    "a method's name": lambda content: _edited(content, lambda file: file.__setitem__("loss_excess", np.eye(2))),
    "groups": lambda content: _edited(content, lambda file: (file.__delitem__("time"), file.create_group("time"))),
}


def _edited(content: bytes, change: Callable[[h5py.File], object]) -> bytes:
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        change(file)
    return stream.getvalue()


COMMANDS: dict[str, tuple[str, ...]] = {
    "diagnose": ("diagnose", "run.nc", "--json"),
    "plot": ("plot", "run.nc", "--out", "run.png", "--json"),
    "report": ("report", "run.nc", "--out", "run.html", "--json"),
    "resume": ("simulate", "--resume", "run.nc", "--t1", "1.0", "--out", "run.nc", "--json"),
    "cite": ("cite", "run.nc", "--json"),
}


def call(command: str, content: bytes) -> tuple[int, str]:
    """(exit code, what was said) of the command on the run in a folder of its own. Asserts that nothing is lost."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        Path("run.nc").write_bytes(content)
        code = cli.main(list(COMMANDS[command]))
        assert os.listdir() == ["run.nc"] or code == 0, os.listdir()
        assert code == 0 or Path("run.nc").read_bytes() == content, "the run was written over"
        assert code == 0 or not out.getvalue(), "something was printed"
    return code, err.getvalue()


def every_file() -> Iterator[tuple[str, bytes]]:
    """(what is wrong, file)."""
    for name, content in runs().items():
        for path, value, record in entries(name):
            yield f"{name} {'.'.join(map(str, path))} = {value!r}"[:100], with_record(content, record)
        for variable, how, array in arrays(name):
            yield f"{name} {variable}: {how}", with_array(content, variable, array)
        for how, change in FILES.items():
            yield f"{name}: {how}", change(content)


def main() -> int:
    """Call everything on everything, and tell."""
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for what, content in islice(every_file(), 0, None, every):
        for command in COMMANDS:
            code, said = call(command, content)
            counts[command][code] += 1
            if code != 2 or not said.startswith("Error: ") or said.count("\n") != 1:
                print(f"{command}: {what}: exit code {code}: {said.strip()[:200]}")
    print(f"{'command':10}{'files':>8}{'exit code 2':>13}{'others':>8}")
    for command, found in counts.items():
        print(f"{command:10}{found.total():8}{found[2]:13}{found.total() - found[2]:8}")
    return 0 if all(set(found) == {2} for found in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
