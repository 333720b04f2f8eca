"""Files out: written beside and renamed into place, folders and files checked before the work begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import TYPE_CHECKING

from flowsim.errors import InputError

if TYPE_CHECKING:
    import xarray

NETCDF = b"\x89HDF\r\n\x1a\n"
NPZ = b"PK\x03\x04"
"""How files begin."""
BESIDE = ".flowsim-"
"""How temporary files begin."""
MOST_SUFFIX = 16
"""So many letters of a suffix tell what is written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it when the block ends well, removed when it does not.

    A link stays one: its target is replaced. The file keeps the mode of the one that it replaces. Raises OSError.
    """
    path = path.resolve()
    handle, name = tempfile.mkstemp(prefix=BESIDE, suffix=path.suffix[:MOST_SUFFIX], dir=path.parent)
    os.close(handle)
    place = Path(name)
    try:
        yield place
        place.chmod(S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        os.replace(place, path)
    finally:
        with suppress(OSError):
            place.unlink()


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it when the block ends well, removed when it does not.

    A link is written through to its target, and the mode of a file that is replaced is kept.
    Raises InputError when the folder is missing or cannot be written.
    """
    path = Path(path)
    check_writable(path)
    try:
        with replacing(path) as place:
            yield place
    except OSError as error:
        raise InputError(f"File {path} could not be written: {error.strerror or error}.") from error


def write_netcdf(path: str | Path, dataset: xarray.Dataset) -> None:
    """Write a dataset as NetCDF; beside, then renamed. Raises InputError when the place cannot be written.

    The file is made in memory: HDF5 cannot close a file on a full disk, and takes the process down with it.
    """
    made = dataset.to_netcdf(engine="h5netcdf")
    with write_atomically(path) as place:
        place.write_bytes(made)


def check_writable(path: str | Path, begins: bytes = b"", inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse a file that could not be written later, or whose writing would destroy something else.

    begins: a file that is there is replaced only where it is empty or begins so; inputs: files that it must not be.
    Raises InputError saying why.
    """
    path = Path(path)
    try:
        place = path.resolve()
        if path.is_dir():
            raise InputError(f"File {path} cannot be written: it is a folder; name a file in it.")
        if path.exists() and not path.is_file():
            raise InputError(f"File {path} cannot be written: it is a pipe or a device; name a file.")
        if not place.parent.is_dir():
            raise InputError(f"File {path} cannot be written: its folder does not exist; create it first.")
        if path.exists():
            _check_replaceable(path, begins, inputs)
        tempfile.NamedTemporaryFile(prefix=BESIDE, dir=place.parent).close()
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"File {path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def _check_replaceable(path: Path, begins: bytes, inputs: Iterable[str | Path | None]) -> None:
    if any(given is not None and Path(given).exists() and path.samefile(given) for given in inputs):
        raise InputError(f"File {path} is an input and is not written over; name another file for the output.")
    if not os.access(path, os.W_OK):
        raise InputError(f"File {path} is there, is read-only, and is not written over; name another file.")
    with open(path, "rb") as stream:
        found = stream.read(len(begins))
    if found and found != begins:
        raise InputError(f"File {path} is there, holds something else, and is not written over; name another file.")


def make_folder(path: str | Path) -> Path:
    """The folder, created if need be, and checked to be writable. Raises InputError saying why it is not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"Folder {path} cannot be made: {cause}; choose another.") from error
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
