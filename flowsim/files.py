"""Files in and out, hardened: no pickle, sizes checked before anything is allocated, outputs renamed into place.

Weights travel as .npz with keys W1..WL (and optionally `scale`, `origin`, a target Y), a target as .npy, data as .npz
with X and Y.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from flowsim.checks import as_matrix, as_number
from flowsim.errors import InputError
from flowsim.network import LinearNetwork
from flowsim.reduction import CompressedNetwork, sample_compressed

if TYPE_CHECKING:
    import xarray

LARGEST_FILE = 2**33
"""Arrays of more bytes than this (8 GiB) in one file are refused."""


def read_weights(path: str | Path, limit: int = LARGEST_FILE) -> LinearNetwork | CompressedNetwork:
    """The network in an .npz file with keys W1..WL, W_l of shape h_{l-1} x h_l, and optionally `scale`.

    A folder with W1.npy .. WL.npy is mapped into memory rather than read: it may be larger than the memory. A file
    that `flowsim initialize --compressed` wrote gives the network in compressed form.
    Raises InputError when the file is missing, damaged, too large, or does not hold a network.
    """
    arrays = _map_folder(Path(path)) if Path(path).is_dir() else _read_npz(Path(path), limit)
    if "recipe" in arrays:
        return _follow(arrays["recipe"], path)
    layers = sorted(int(key[1:]) for key in arrays if key[:1] == "W" and key[1:].isdigit())
    if not layers:
        raise InputError(f"File {path} must hold the weights as W1, W2, ..., but it holds {_listed(arrays)}.")
    if layers != list(range(1, len(layers) + 1)):
        named = ", ".join(f"W{layer}" for layer in layers)
        raise InputError(
            f"File {path} must hold all of W1 to W{layers[-1]}, but it holds {named}; add or rename layers."
        )
    with _named(path):
        weights = tuple(as_matrix(arrays[f"W{layer}"], f"W{layer}") for layer in layers)
        scale = as_number(arrays["scale"], "scale", above=0.0) if "scale" in arrays else 1.0
        return LinearNetwork(weights, scale, _origin(arrays))


def read_target(path: str | Path, limit: int = LARGEST_FILE) -> np.ndarray | None:
    """The target Y: an .npy file, or key Y of an .npz file (None where it has none). Raises InputError as above."""
    path = Path(path)
    if path.is_dir():
        Y = _map_folder(path).get("Y")
    elif _is_zip(path):
        Y = _read_npz(path, limit).get("Y")
    else:
        with _opened(path) as stream:
            Y = _read_array(stream, path.stat().st_size, f"File {path}", limit)
    with _named(path):
        return None if Y is None else as_matrix(Y, "Y")


def read_data(path: str | Path, limit: int = LARGEST_FILE) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y), X of shape rows x n and Y of shape rows x m, from an .npz file. Raises InputError as above."""
    arrays = _read_npz(Path(path), limit)
    if not {"X", "Y"} <= set(arrays):
        raise InputError(f"File {path} must hold the data as X and Y, but it holds {_listed(arrays)}.")
    with _named(path):
        return as_matrix(arrays["X"], "X"), as_matrix(arrays["Y"], "Y")


def save_weights(
    path: str | Path, network: LinearNetwork | CompressedNetwork, target: np.ndarray | None = None
) -> None:
    """Write W1..WL, scale, origin and, if given, the target Y as .npz. Raises InputError when it cannot be written.

    Of a network drawn in compressed form the file keeps how it was drawn: that is all it takes, and it fits any width.
    """
    if isinstance(network, CompressedNetwork) and network.origin.get("form") == "sampled":
        with write_atomically(path) as place, open(place, "wb") as stream:
            np.savez(stream, recipe=np.array(json.dumps({**network.origin, "steps": network.steps})))
        return
    arrays = {f"W{layer}": W for layer, W in enumerate(network.weights, start=1)}
    if target is not None:
        arrays["Y"] = target
    origin = np.array(json.dumps(dict(network.origin)))
    with write_atomically(path) as place, open(place, "wb") as stream:
        np.savez(stream, scale=np.array(network.scale), origin=origin, **arrays)  # type: ignore[arg-type]


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary file in the same folder, renamed to `path` when the block ends well, removed when it does not.

    Raises InputError when the folder is missing or cannot be written.
    """
    path = Path(path)
    check_writable(path)
    place = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        place = Path(name)
        yield place
        place.chmod(0o666 & ~_umask())
        os.replace(place, path)
    except OSError as error:
        raise InputError(f"File {path} could not be written: {error.strerror or error}.") from error
    finally:
        if place is not None:
            with suppress(OSError):
                place.unlink()


def write_netcdf(path: str | Path, dataset: xarray.Dataset) -> None:
    """Write a dataset as NetCDF; beside, then renamed. Raises InputError when the place cannot be written.

    The file is made in memory: HDF5 cannot close a file on a full disk, and takes the process down with it.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file))
    with write_atomically(path) as place:
        place.write_bytes(buffer.getbuffer())


def check_writable(path: str | Path) -> None:
    """Refuse a file that could not be written later. Raises InputError saying why."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"File {path} cannot be written: it is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise InputError(f"File {path} cannot be written: its folder does not exist; create it first.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"File {path} cannot be written: {error.strerror or error}.") from error


def make_folder(path: str | Path) -> Path:
    """The folder, created if need be, and checked to be writable. Raises InputError saying why it is not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Folder {path} cannot be made: {error.strerror or error}; choose another.") from error
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(
            f"Folder {path} cannot be written: {error.strerror or error}; mend that, or choose another."
        ) from error
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Complaints about an array say which file it came from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"File {path}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError(f"File {path} does not exist; check the path.") from error
    except OSError as error:
        raise InputError(f"File {path} cannot be read: {error.strerror or error}.") from error


def _is_zip(path: Path) -> bool:
    with _opened(path) as stream:
        return stream.read(2) == b"PK"


def _read_npz(path: Path, limit: int) -> dict[str, np.ndarray]:
    with _opened(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
                total = sum(member.file_size for member in members)
                if total > limit:
                    raise InputError(f"File {path} must unpack to at most {limit} bytes, but it declares {total}.")
                arrays = {}
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    with archive.open(member) as content:
                        arrays[name] = _read_array(content, member.file_size, f"File {path}: array {name}", limit)
                return arrays
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"File {path} must be an .npz file, but it is truncated, damaged or something else."
            ) from error


def _read_array(stream: IO[bytes], size: int, what: str, limit: int) -> np.ndarray:
    """One .npy stream of `size` bytes; the header is compared with the size before anything is allocated."""
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(stream)
        if dtype.hasobject:
            raise InputError(f"{what} must hold numbers, but it holds Python objects, which are never loaded.")
        count = prod(shape)
        declared = count * dtype.itemsize
        if declared > limit or declared > size:
            raise InputError(f"{what} declares {declared} bytes but {size} are there (limit {limit}); it is damaged.")
        content = stream.read(declared)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, SyntaxError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} is not a readable .npy array: truncated, damaged or something else.") from error
    if len(content) < declared:
        raise InputError(f"{what} is truncated: {len(content)} of {declared} bytes are there; copy the file again.")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _map_folder(path: Path) -> dict[str, np.ndarray]:
    """The .npy files of a folder, memory-mapped, by their names without the ending."""
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        with _opened(file) as stream:
            header = stream.read(6)
        if header != b"\x93NUMPY":
            raise InputError(f"File {file} is not a readable .npy array: truncated, damaged or something else.")
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(
                f"File {file} is not a readable .npy array: truncated, damaged or something else."
            ) from error
    return arrays


def _follow(recipe: np.ndarray, path: str | Path) -> CompressedNetwork:
    """The network that was drawn in compressed form as the recipe says."""
    try:
        origin = json.loads(str(recipe[()]))
        words = {key: origin[key] for key in ("scheme", "dims", "seed", "scale", "steps")}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"File {path} must say how its network was drawn, but its recipe is damaged.") from error
    with _named(path):
        return sample_compressed(words.pop("scheme"), words.pop("dims"), **words)


def _origin(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    try:
        origin = json.loads(str(arrays["origin"])) if "origin" in arrays else {}
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _listed(arrays: Mapping[str, np.ndarray]) -> str:
    names = sorted(arrays)
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) if names else "no array"
