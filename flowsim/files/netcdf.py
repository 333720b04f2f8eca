"""NetCDF in: sizes checked before anything is read, and nothing followed out of the file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowsim.errors import InputError
from flowsim.files.opening import LARGEST_FILE, opened
from flowsim.files.writing import NPZ

if TYPE_CHECKING:
    import xarray

DEFLATE = 1032
"""No deflated file unpacks to more than so many times its size."""


def read_netcdf(path: str | Path, limit: int = LARGEST_FILE) -> xarray.Dataset:
    """The dataset of a NetCDF-4 file, in memory, its numbers as they stand there: no attribute scales or dates them.

    Raises InputError when the file is missing, damaged, declares more than `limit` bytes, or takes from other files.
    """
    import h5py
    import xarray

    path = Path(path)
    with opened(path, limit) as stream:
        try:
            with h5py.File(stream, "r") as file:
                _check_contained(path, file, limit)
            stream.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on variables without names for their axes
                with xarray.open_dataset(stream, engine="h5netcdf", decode_cf=False) as dataset:
                    return dataset.load()
        except InputError:
            raise
        except Exception as error:  # HDF5, h5netcdf and xarray raise all kinds for damaged files
            stream.seek(0)
            zipped = stream.read(len(NPZ)) == NPZ
            instead = "an .npz file, as weights are kept in" if zipped else "truncated, damaged or something else"
            raise InputError(f"File {path} must be NetCDF-4, as runs are saved, but it is {instead}.") from error


def _check_contained(path: Path, file: Any, limit: int) -> None:
    """Refuse links and raw data in other files, and more data than the file can hold."""
    import h5py

    declared = 0
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"File {path} must hold all of its data, but {name} is a link; save the run again.")
        value = file[name]
        if isinstance(value, h5py.Dataset):
            if value.external or value.is_virtual:
                raise InputError(f"File {path} must hold all of its data, but {name} is elsewhere; save the run again.")
            declared += value.size * value.dtype.itemsize if value.shape is not None else 0
    if declared > min(limit, DEFLATE * path.stat().st_size):
        raise InputError(
            f"File {path} declares {declared} bytes, more than it can hold (limit {limit}); it is damaged."
        )
