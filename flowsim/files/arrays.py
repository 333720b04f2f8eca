"""NumPy's files: .npy, .npz, and folders of .npy. Headers are compared with sizes before anything is allocated."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Literal

import numpy as np

from flowsim.errors import InputError
from flowsim.files.opening import LARGEST_FILE, check_readable, opened

READERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes; other ways of packing may take any memory to unpack."""
BROKEN = (
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    TokenError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""What NumPy raises for headers that are none."""
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


def is_zip(path: Path) -> bool:
    """Whether the file begins as .npz files do."""
    with opened(path) as stream:
        return stream.read(2) == b"PK"


def read_npz(path: Path, limit: int = LARGEST_FILE) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises InputError when it is damaged or unpacks to more than the limit."""
    with opened(path, limit) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
                _check_members(path, members, limit)
                arrays = {}
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    with archive.open(member) as content:
                        arrays[name] = read_array(content, member.file_size, f"File {path}: array {name}", limit)
                return arrays
        except InputError:
            raise
        except DAMAGED_ZIP as error:
            raise InputError(
                f"File {path} must be an .npz file, but it is truncated, damaged or something else."
            ) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    total = sum(member.file_size for member in members)
    if total > limit:
        raise InputError(f"File {path} must unpack to at most {limit} bytes, but it declares {total}.")
    names = [member.filename for member in members]
    for member in members:
        if "/" in member.filename or "\\" in member.filename:
            raise InputError(f"File {path} must hold arrays by name, but {member.filename} is a path; pack it again.")
        if member.compress_type not in PLAIN:
            raise InputError(f"File {path} must be stored or deflated, but {member.filename} is not; use np.savez.")
        if names.count(member.filename) > 1:
            raise InputError(f"File {path} must hold each array once, but {member.filename} is there twice.")


def read_npy(path: Path, limit: int = LARGEST_FILE) -> np.ndarray:
    """The array of an .npy file. Raises InputError when it is damaged or holds more than `limit` bytes."""
    with opened(path, limit) as stream:
        return read_array(stream, path.stat().st_size, f"File {path}", limit)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _read_header(stream: IO[bytes], size: int, what: str, limit: int) -> _Header:
    """The header of an .npy stream of `size` bytes, compared with that size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "required additional header parsing": files of Python 2
        shape, fortran, dtype = READERS[np.lib.format.read_magic(stream)](stream)
    header = _Header(shape, "F" if fortran else "C", dtype)
    if dtype.hasobject:
        raise InputError(f"{what} must hold numbers, but it holds Python objects, which are never loaded.")
    if any(extent < 0 for extent in shape):
        raise InputError(f"{what} declares the shape {shape}; it is damaged.")
    if header.bytes > limit or header.bytes > size:
        raise InputError(f"{what} declares {header.bytes} bytes but {size} are there (limit {limit}); it is damaged.")
    return header


def read_array(stream: IO[bytes], size: int, what: str, limit: int) -> np.ndarray:
    """One .npy stream of `size` bytes; the header is compared with the size before anything is allocated."""
    try:
        header = _read_header(stream, size, what, limit)
        content = stream.read(header.bytes)
        if len(content) < header.bytes:
            raise InputError(
                f"{what} is truncated: {len(content)} of {header.bytes} bytes are there; copy the file again."
            )
        return np.frombuffer(content, dtype=header.dtype).reshape(header.shape, order=header.order)
    except InputError:
        raise
    except (*BROKEN, *DAMAGED_ZIP) as error:
        raise InputError(f"{what} is not a readable .npy array: truncated, damaged or something else.") from error


def map_folder(path: Path) -> dict[str, np.ndarray]:
    """The .npy files of a folder, memory-mapped, by their names without the ending.

    Raises InputError for a damaged one, and for links that lead out of the folder.
    """
    return {file.stem: _map(file, path) for file in sorted(path.glob("*.npy"))}


def _map(file: Path, folder: Path) -> np.ndarray:
    try:
        target = file.resolve()
        inside = target.parent == folder.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"File {file} cannot be read: {error}.") from error
    if not inside:
        raise InputError(f"File {file} leads out of its folder, to {target}; copy that file into the folder.")
    check_readable(file, limit=2**63)
    size = file.stat().st_size
    with opened(file, limit=2**63) as stream:
        try:
            header = _read_header(stream, size, f"File {file}", size)
            if not header.bytes:
                return np.empty(header.shape, header.dtype)
            return np.memmap(stream, header.dtype, "r", stream.tell(), header.shape, header.order)
        except InputError:
            raise
        except BROKEN as error:
            raise InputError(
                f"File {file} is not a readable .npy array: truncated, damaged or something else."
            ) from error
