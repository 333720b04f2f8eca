"""Opening files: regular ones alone, below a limit, with one sentence for what is wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO

from flowsim.errors import InputError
from flowsim.values import Json

LARGEST_FILE = 2**33
"""Arrays of more bytes than this (8 GiB) in one file are refused."""
LARGEST_TEXT = 2**24
"""Specifications of more bytes than this (16 MiB) are refused."""


@contextmanager
def opened(path: Path, limit: int = LARGEST_FILE) -> Iterator[IO[bytes]]:
    """A regular file of at most `limit` bytes, open for reading. Raises InputError saying why it is not."""
    check_readable(path, limit)
    try:
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        raise InputError(f"File {path} cannot be read: {error.strerror or error}.") from error


def check_readable(path: Path, limit: int = LARGEST_FILE) -> None:
    """Refuse what is no regular file (a pipe or a device may never end), and one above the limit."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"File {path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"File {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if S_ISDIR(found.st_mode):
        raise InputError(f"File {path} cannot be read: it is a folder; name a file in it.")
    if not S_ISREG(found.st_mode):
        raise InputError(f"File {path} must be a regular file, but it is a pipe or a device; copy it to a file first.")
    if found.st_size > limit:
        raise InputError(f"File {path} must have at most {limit} bytes, but it has {found.st_size}.")


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; False where that cannot be told, so that opening it says why."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_text(path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises InputError when it is missing or no such text."""
    with opened(Path(path), limit) as stream:
        content = stream.read(limit)
    return decoded(path, content)


def read_toml(path: str | Path) -> Json:
    """The tables of a TOML file. Raises InputError when it is missing or no TOML."""
    try:
        return tomllib.loads(read_text(path))
    except InputError:
        raise
    except (RecursionError, ValueError) as error:  # a TOMLDecodeError is a ValueError
        raise InputError(f"File {path} must be TOML, but {error}.") from error


def decoded(path: str | Path, content: bytes) -> str:
    """UTF-8 text, without a byte order mark. Raises InputError for anything else."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"File {path} must be UTF-8 text, but byte {error.start} is not; save it as UTF-8.") from error


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Complaints about an array say which file it came from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"File {path}: {error}") from error


def listed(names: Iterable[str]) -> str:
    """The first few names, in order."""
    ordered = sorted(names)
    return (", ".join(ordered[:8]) + (", ..." if len(ordered) > 8 else "")) if ordered else "no array"
