"""Tables of numbers as .csv: commas, decimal points, UTF-8, and at most one line of names first."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowsim.errors import InputError
from flowsim.files.opening import LARGEST_FILE, decoded, opened

GROWTH = 4
"""A byte of text becomes at most so many bytes of float64: `1,` is two."""


def read_table(path: Path, limit: int = LARGEST_FILE) -> tuple[list[str] | None, np.ndarray]:
    """(the names of the columns, or None where the first line holds numbers; the matrix).

    Raises InputError for a file that is empty, too large, ragged, or holds anything else than numbers.
    """
    with opened(path, limit // GROWTH) as stream:
        text = decoded(path, stream.read())
    lines = text.splitlines()
    names = _names(lines[0]) if lines else None
    rows = [line for line in lines[0 if names is None else 1 :] if line.strip()]
    if not rows:
        raise InputError(f"File {path} must hold numbers, but it is empty; check the path.")
    try:
        matrix = np.loadtxt(rows, delimiter=",", ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise InputError(f"File {path} must hold numbers with commas between them, but {_cause(error)}.") from error
    if names is not None and len(names) != matrix.shape[1]:
        raise InputError(f"File {path} must name each of its {matrix.shape[1]} columns, but it names {len(names)}.")
    return names, matrix


def split_columns(path: Path, names: list[str] | None, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y): the columns whose names begin with y or Y are Y, all others X. Raises InputError without such names."""
    is_target = np.array([name[:1] in ("y", "Y") for name in names or []], dtype=bool)
    if names is None or not is_target.any() or is_target.all():
        found = "names none" if names is None else f"names {', '.join(names[:8])}"
        raise InputError(
            f"File {path} must begin with a line of names, those of the targets beginning with y, such as x1,x2,y1;"
            f" but it {found}."
        )
    return matrix[:, ~is_target], matrix[:, is_target]


def _names(line: str) -> list[str] | None:
    """The fields of the first line where none of them is a number."""
    fields = [field.strip().strip('"') for field in line.split(",")]
    return None if any(_is_number(field) for field in fields) or not line.strip() else fields


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _cause(error: Exception) -> str:
    """NumPy's account without its last sentence's full stop."""
    return str(error).split(";")[0].rstrip(".")
