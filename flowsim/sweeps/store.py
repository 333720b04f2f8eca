"""Results on disk, one record a member: written beside and renamed, with a checksum, so that a power cut harms none.

A folder belongs to one specification (specification.json). records/ab/abcdef....json holds {"checksum", "record"};
its name is a hash of the member's configuration and seed. Several processes may work on one folder: a record that both
write is the same record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowsim.checks import check_schema
from flowsim.errors import InputError, StorageError
from flowsim.files import make_folder, replacing
from flowsim.values import Json

SPECIFICATION = "specification.json"
RECORDS = "records"
SCHEMA = 1
"""Raised when records can no longer be read as before."""
Record = Mapping[str, Any]


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """The records of one specification in one folder."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path, specification: Mapping[str, Any], growing: Sequence[str] = ()) -> Store:
        """The store in a folder, which is made, and claimed for the specification, if it is new.

        growing: numbers in it, by their paths such as sweep.seeds, that may be greater than they were.

        Raises InputError when the folder cannot be written or belongs to another specification.
        """
        store = cls(make_folder(folder))
        place = store.folder / SPECIFICATION
        if not place.exists():
            # another process may be claiming the folder at the same moment
            names = {path.name for path in store.folder.iterdir() if not path.name.startswith(".")}
            if names - {SPECIFICATION, RECORDS}:
                raise InputError(
                    f"Folder {folder} must be empty or hold a sweep, but it holds other files; choose a new one."
                )
            store._write(place, canonical({"schema": SCHEMA, **specification}))
        try:
            found = dict(json.loads(place.read_text()))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"File {place} is damaged; restore it, or choose a new folder.") from error
        check_schema(found.pop("schema", SCHEMA), SCHEMA, f"Folder {folder}")
        before, now = flat(found), flat(specification)
        differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        grown = [key for key in growing if isinstance(before.get(key), int) and before[key] < now[key]]
        if differing and differing == grown:
            store._write(place, canonical({"schema": SCHEMA, **specification}))
        elif differing:
            raise InputError(
                f"Folder {folder} holds the sweep of another specification (it differs in {', '.join(differing)});"
                " choose a new folder, or restore the specification."
            )
        (store.folder / RECORDS).mkdir(exist_ok=True)
        return store

    def path(self, key: str) -> Path:
        """Where the record of that key lives."""
        return self.folder / RECORDS / key[:2] / f"{key}.json"

    def write(self, key: str, record: Record) -> None:
        """Keep a record. Raises StorageError when the disk is full or the folder cannot be written."""
        place = self.path(key)
        try:
            place.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise _refused(place, error) from error
        self._write(place, canonical({"checksum": digest(record), "record": record}))

    def read(self, key: str) -> Record | None:
        """The record of that key; None where there is none, or where its checksum does not fit."""
        try:
            found = json.loads(self.path(key).read_text())
            record = found["record"]
            return record if found["checksum"] == digest(record) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _write(self, place: Path, text: str) -> None:
        """Beside, flushed to the disk, renamed; nothing is left where that fails."""
        try:
            with replacing(place) as beside, open(beside, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise _refused(place, error) from error


def flat(tables: Mapping[str, Any], path: str = "") -> Json:
    """path.to.key -> value, of nested mappings."""
    found: Json = {}
    for key, value in tables.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def _refused(place: Path, error: OSError) -> StorageError:
    return StorageError(
        f"File {place} could not be written: {error.strerror or error}. What was finished is kept; make room or mend"
        " the folder, and run the same command again."
    )
