"""Targets and data: Y alone, or X and Y."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowsim.checks import as_matrix
from flowsim.errors import InputError
from flowsim.files.arrays import is_zip, map_folder, read_npy, read_npz
from flowsim.files.checkpoints import TORCH_ENDINGS, own_arrays
from flowsim.files.opening import LARGEST_FILE, is_folder, listed, named
from flowsim.files.tables import read_table, split_columns


def read_target(path: str | Path, limit: int = LARGEST_FILE) -> np.ndarray | None:
    """The target Y: an .npy file, the numbers of a .csv, or key Y of an .npz or .safetensors file or a folder.

    None where there is no such key. Raises InputError as read_weights does.
    """
    Y = _target(Path(path), limit)
    with named(path):
        return None if Y is None else as_matrix(Y, "Y")


def _target(path: Path, limit: int) -> np.ndarray | None:
    ending = path.suffix.lower()
    if is_folder(path):
        return map_folder(path).get("Y")
    if ending == ".csv":
        return read_table(path, limit)[1]
    if ending == ".safetensors":
        return own_arrays(path, limit).get("Y")
    if ending in TORCH_ENDINGS:
        return None
    return read_npz(path, limit).get("Y") if is_zip(path) else read_npy(path, limit)


def read_data(path: str | Path, limit: int = LARGEST_FILE) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y), X of shape rows x n and Y of shape rows x m, from an .npz file with these keys, or from a .csv file.

    A .csv begins with a line of names: columns whose names begin with y or Y are Y, all others X.
    Raises InputError as read_weights does.
    """
    X, Y = _data(Path(path), limit)
    with named(path):
        return as_matrix(X, "X"), as_matrix(Y, "Y")


def _data(path: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix.lower() == ".csv":
        return split_columns(path, *read_table(path, limit))
    if path.suffix.lower() == ".npy":
        raise InputError(f"File {path} must hold X and Y, but an .npy holds one array; use .npz or .csv.")
    arrays = read_npz(path, limit)
    if not {"X", "Y"} <= set(arrays):
        raise InputError(f"File {path} must hold the data as X and Y, but it holds {listed(arrays)}.")
    return arrays["X"], arrays["Y"]
