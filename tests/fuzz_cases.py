"""Random calls and spoiled files: what is drawn, and what must hold. For test_fuzz.py and benchmarks/fuzz.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

import flowsim as fs
from flowsim import cli, files
from flowsim.cli import configuration
from flowsim.errors import ConversionNotice, FlowsimError
from flowsim.sweeps import SweepSpec

SWEEP = (
    '[sweep]\ndims = [[2, 5, 1]]\nscheme = ["ntk"]\nseeds = 2\nt1 = 0.1\ncurve_points = 3\n[target]\nkind = "ones"\n'
)
LARGEST = 2**24
"""Bytes that readers may take: fuzzed sizes are refused, not tried."""


@cache
def samples() -> dict[str, bytes]:
    """Valid files by name: every kind that a reader knows."""
    network, Y = fs.fan_in((2, 4, 3, 1), seed=0), np.ones((2, 1))
    layers = {f"{k}.weight": np.ascontiguousarray(W.T) for k, W in enumerate(network.weights)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files.save_weights(folder / "w.npz", network, Y)
        fs.simulate(fs.Problem(fs.SquaredLoss(Y), network), t1=0.1, save_points=3).save(folder / "run.nc")
        np.save(folder / "y.npy", Y)
        np.savez(folder / "d.npz", X=np.eye(2), Y=Y)
        np.savez_compressed(folder / "packed.npz", **{f"W{k}": W for k, W in enumerate(network.weights, start=1)})
        (folder / "m.safetensors").write_bytes(save(layers))
        (folder / "d.csv").write_text("a,b,y\n1,0,1\n0,1,2\n")
        (folder / "s.toml").write_text(SWEEP)
        (folder / "c.toml").write_text("[simulate]\nsave_points = 3\nrtol = 1e-5\n")
        with contextlib.suppress(ImportError):
            import torch

            torch.save({key: torch.tensor(value) for key, value in layers.items()}, folder / "m.pt")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def inner(kind: str) -> bytes:
    """The part of a file that its checksums protect from being spoiled."""
    content = samples()[kind]
    if kind == "run.nc":
        with h5py.File(io.BytesIO(content), "r") as file:
            return str(file.attrs["flowsim"]).encode()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(_part(archive))


def with_inner(kind: str, part: bytes) -> bytes:
    """The file with that part exchanged and its checksums right."""
    stream = io.BytesIO(samples()[kind])
    if kind == "run.nc":
        with h5py.File(stream, "r+") as file:
            file.attrs["flowsim"] = part.decode("latin-1").replace("\0", "0")[:60_000]
        return stream.getvalue()
    changed = io.BytesIO()
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(changed, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, part if name == _part(archive) else archive.read(name))
    return changed.getvalue()


def _part(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.endswith(("W2.npy", "X.npy", "data.pkl")))


WITH_INNER = ("w.npz", "d.npz", "m.pt", "run.nc")

READERS: dict[str, tuple[Any, ...]] = {
    "w.npz": (files.read_weights, files.read_target, files.read_data),
    "packed.npz": (files.read_weights,),
    "d.npz": (files.read_data,),
    "y.npy": (files.read_target,),
    "d.csv": (files.read_data, files.read_target),
    "m.safetensors": (files.read_weights, files.read_target),
    "m.pt": (files.read_weights,),
    "s.toml": (lambda path, limit: SweepSpec.read(path),),
    "c.toml": (lambda path, limit: configuration.read(str(path), GOOD),),
    "run.nc": (lambda path, limit: _looked_at(fs.load(path)),),
}


def _looked_at(run: Any) -> None:
    """What diagnose, plots and a reader take from a run."""
    run.summary()
    run.weights_at(0.0)
    fs.diagnose(run).to_json()


def _change_digit(content: bytearray, start: int, digit: int) -> None:
    """Another digit in the place of the first one from `start` on: sizes and numbers that still look like some."""
    at = next((k for k in range(start, len(content)) if chr(content[k]).isdecimal()), None)
    if at is not None:
        content[at] = ord("0") + digit


@st.composite
def spoiled(draw: Any, kind: str) -> bytes:
    """A file of that kind, changed a little or a lot, or any bytes at all."""
    within = kind in WITH_INNER and draw(st.booleans())
    content = bytearray(inner(kind) if within else samples()[kind])
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(EDITS))
        at = draw(st.integers(0, len(content)))
        if how == "cut":
            del content[at:]
        elif how == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "digit":
            _change_digit(content, at, draw(st.integers(0, 9)))
        elif how == "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            content[at : at + len(new)] = new
        elif how == "insert":
            content[at:at] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(NASTY)))
        elif how == "splice":
            start = draw(st.integers(0, len(content)))
            content[at:at] = content[start : start + draw(st.integers(0, 64))]
        else:
            content[at:at] = content[at : at + 8] * draw(st.integers(1, 50))
    spoiled = bytes(content) or draw(st.binary(max_size=200))
    return with_inner(kind, spoiled) if within else spoiled


EDITS = (*["flip"] * 5, *["overwrite"] * 3, "digit", "digit", "cut", "insert", "splice", "repeat")
NASTY = (
    b"\0",
    b"\xff" * 8,
    b"9" * 30,
    b"-1",
    b"nan",
    b"1e999",
    b"[" * 2000,
    b"PK\x05\x06",
    b"\x93NUMPY",
    b"\xef\xbb\xbf",
)


def read_spoiled(kind: str, content: bytes) -> str:
    """Read the bytes as that kind of file; "read" or "refused". Anything but a FlowsimError escapes."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionNotice)
        path = Path(folder) / kind
        path.write_bytes(content)
        outcome = "refused"
        for read in READERS[kind]:
            with contextlib.suppress(FlowsimError):
                read(path, limit=LARGEST)
                outcome = "read"
        assert os.listdir(folder) == [kind], "a reader made a file"
        return outcome


# The command: flags with values that are good, odd and bad

ODD = (
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e-300",
    "1e300",
    "9" * 30,
    "x",
    "2.5",
    "\x1b[2J",
    "é",
    "--json",
    "a\0b",
    "pipe",
)
FILES = (
    "w.npz",
    "packed.npz",
    "m.safetensors",
    "m.pt",
    "y.npy",
    "d.npz",
    "d.csv",
    "s.toml",
    "run.nc",
    "none",
    ".",
    "folder",
)
WEIGHTS = (*["w.npz"] * 20, *["m.safetensors", "packed.npz"] * 3, *FILES)
TARGETS = (*["y.npy"] * 20, *FILES)
DATA = (*["d.npz", "d.csv"] * 10, *FILES)
GOOD: dict[str, dict[str, tuple[str, ...]]] = {
    "initialize": {
        "--dims": ("2,4,3,1", "1,2,1", "3,9,9,9,2", "5,1", "2,1000000,1000000,1", "2,99999999999,1"),
        "--scheme": (
            "fan_in",
            "ntk",
            "orthogonal",
            "balanced",
            "spectral",
            "diagonal",
            "unimodal",
            "homogeneous",
            "lambda_balanced",
        ),
        "--seed": ("0", "7"),
        "--scale": ("1.0", "0.1"),
        "--imbalance": ("0.5", "0.5,0.25", "1,1,1"),
        "--peak": ("1", "2"),
        "--compressed": (),
        "--out": ("o.npz", "o.npz", "o.npz", "folder/o.npz", "nowhere/o.npz", "."),
        "--json": (),
    },
    "certify": {
        "": WEIGHTS,
        "--target": TARGETS,
        "--data": DATA,
        "--mask": TARGETS,
        "--loss": ("squared", "exponential", "logistic"),
        "--tolerance": ("1e-8", "0"),
        "--cheap": (),
        "--json": (),
    },
    "simulate": {
        "": WEIGHTS,
        "--t1": ("0.1", "1e-3"),
        "--target": TARGETS,
        "--data": DATA,
        "--mask": TARGETS,
        "--loss": ("squared", "exponential", "logistic"),
        "--method": ("dop853", "rk45", "radau", "lsoda", "rkc", "gauss-legendre-2", "projected-rk23", "gd"),
        "--step-size": ("0.01", "1e-3"),
        "--rtol": ("1e-6", "1e-3"),
        "--atol": ("1e-6", "0"),
        "--save-points": ("2", "5"),
        "--stop-loss": ("0.5", "1e-3"),
        "--stop-gradient": ("0.1",),
        "--max-steps": ("1", "50"),
        "--wall-limit": ("0.2",),
        "--reduce": ("auto", "always", "never"),
        "--backend": ("numpy",),
        "--resume": ("run.nc", "run.nc", *FILES),
        "--config": ("c.toml", "c.toml", *FILES),
        "--print-config": (),
        "--out": ("o.nc", "o.nc", "o.nc", "folder/o.nc", "."),
        "--json": (),
    },
    "compare": {
        "": ("w.npz", "w.npz", "w.npz", "none", "m.safetensors"),
        "--target": TARGETS,
        "--t1": ("1e-3", "0.1"),
        "--methods": ("rk45", "rkc,gd", "dop853", "lsoda,,"),
        "--rtols": ("1e-3", "1e-3,1e-4"),
        "--step-sizes": ("1e-2", "1e-3"),
        "--times": ("2", "3"),
        "--repeats": ("1",),
        "--time-limit": ("0.2",),
        "--reduce": ("auto", "never"),
        "--json": (),
    },
    "diagnose": {"": ("run.nc", "run.nc", *FILES), "--json": ()},
    "sweep": {
        "": ("s.toml", "s.toml", "s.toml", "none", "w.npz", "."),
        "--out": ("o", "o", "o", "folder", "w.npz"),
        "--workers": ("1",),
        "--shard": ("1/2", "2/2", "1/1", "2/2", "1/3", "3/2", "1/0", "a"),
        "--json": (),
    },
    "reproduce": {"--out": ("/proc/nowhere", "w.npz"), "--json": ()},
    "plot": {
        "": ("run.nc", "run.nc", *FILES),
        "--kind": ("loss", "rate", "drift", "singular-values"),
        "--out": ("o.svg", "o.png", "o.txt", "folder/o.svg", "nowhere/o.svg"),
        "--json": (),
    },
    "report": {
        "": ("run.nc", *FILES),
        "--out": ("o.html", "o.html", "o.txt", "."),
        "--laws": ("auto", "auto", "never"),
        "--json": (),
    },
    "cite": {"": ("run.nc", *FILES), "--json": ()},
    "methods": {"--json": ()},
    "problems": {"--json": ()},
}
ALWAYS = {
    "simulate": ("--wall-limit", "0.5", "--max-steps", "200"),
    "compare": ("--time-limit", "0.2", "--t1", "1e-3", "--repeats", "1", "--times", "2"),
    "reproduce": ("--out", "/proc/nowhere"),
}
"""Flags that keep a case short, given where no others of that name were drawn."""


COMMANDS = (*GOOD, *["simulate"] * 9, *["certify", "initialize"] * 4, *["compare", "sweep", "diagnose"] * 2)
RARELY = st.integers(0, 19).map(lambda number: number == 7)  # Hypothesis prefers the ends of a range


@st.composite
def calls(draw: Any) -> list[str]:
    """A command with some of its flags; one value of twenty is odd."""
    command = draw(st.sampled_from(COMMANDS))
    flags = GOOD[command]
    chosen = draw(st.lists(st.sampled_from(sorted(flags)), unique=True, max_size=6))
    wanted = [name for name in ("", "--t1", "--dims", "--out") if name in flags and not draw(RARELY)]
    words = [command]
    for name in dict.fromkeys([*wanted, *chosen]):
        words += [name] if name else []
        if flags[name]:
            odd = draw(RARELY) and command != "reproduce"
            words.append(draw(st.sampled_from(ODD if odd else flags[name])))
    return words + _bounds(words)


def _bounds(words: list[str]) -> list[str]:
    limits = ALWAYS.get(words[0], ())
    pairs = zip(limits[::2], limits[1::2], strict=True)
    return [word for name, value in pairs if name not in words for word in (name, value)]


def call(words: list[str]) -> int:
    """Call the command in a folder with all samples; its exit code. Asserts the contract."""
    with (
        _in_samples(),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        warnings.simplefilter("default", RuntimeWarning)
        code = cli.main(words)
    printed, said = out.getvalue(), err.getvalue()
    assert code in (0, 2, 3), (code, said)
    assert "Traceback" not in said
    assert code == 0 or said, "a sentence says why"
    if code == 2:
        assert not printed
    elif "--json" in words and not {"--help", "--version", "--print-config"} & set(words):
        json.loads(printed, parse_constant=_no_constant)
    return code


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} in the JSON")


@contextlib.contextmanager
def _in_samples() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in samples().items():
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / "folder").mkdir()
        os.mkfifo(Path(folder) / "pipe")
        with contextlib.chdir(folder):
            yield
