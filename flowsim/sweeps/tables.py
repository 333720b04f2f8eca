"""The table of a sweep: a variable a scalar, dimension member, in the specification's order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsim.errors import InputError, StorageError
from flowsim.files import write_netcdf
from flowsim.runs.members import WORDS, column, meanings
from flowsim.runs.provenance import versions
from flowsim.sweeps.specification import Member, SweepSpec
from flowsim.sweeps.store import RECORDS, Record, Store, canonical, digest

if TYPE_CHECKING:
    import xarray

SETTINGS = {
    "dims": "layer sizes h_0, ..., h_L",
    "scheme": "initialization",
    "scale": "factor on the initial weights",
    "method": "integrator",
    "step_size": "step of gradient descent",
    "rtol": "relative tolerance",
    "atol": "absolute tolerance",
    "seed": "k of SeedSequence(root_seed).spawn(...)[k]",
}
def scalars_told() -> dict[str, str]:
    """name -> what it is, of all that a record tells of a member."""
    return {**meanings(), "seconds": "wall time of the member, certificates included"}


CURVES = ("loss_curve", "loss_curve_time")


def record_of(store: Store, member: Member) -> Record | None:
    """The record of a member; None where there is none, or where what there is cannot be its record."""
    record = store.read(member.key)
    if not isinstance(record, Mapping) or digest(record.get("settings")) != member.key:
        return None
    scalars = record.get("scalars")
    if not isinstance(scalars, Mapping) or not isinstance(scalars.get("status"), str):
        return None
    curves = [scalars.get(name) or [] for name in CURVES]
    most = max(member.settings["curve_points"], 2)
    if not all(isinstance(c, list) and len(c) <= most and all(map(_is_number, c)) for c in curves):
        return None
    words = {name: value for name, value in scalars.items() if name in WORDS}
    known = scalars_told().keys() - WORDS
    numbers = {name: value for name, value in scalars.items() if name in known}
    fit = all(isinstance(word, str | None) for word in words.values()) and all(map(_is_number, numbers.values()))
    return record if fit and numbers.get("seconds") is not None else None


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def write_table(store: Store, spec: SweepSpec) -> Path:
    """table.nc from every record there is; again where another process added records meanwhile.

    Raises StorageError when it cannot be written.
    """
    path, count = store.folder / "table.nc", -1
    while count != (now := sum(1 for _ in (store.folder / RECORDS).glob("*/[!.]*.json"))):
        count = now
        dataset = table(store, spec)
        try:
            write_netcdf(path, dataset)
        except InputError as error:
            raise StorageError(f"{error} The records are kept; mend that, and run the same command again.") from error
    return path


def table(store: Store, spec: SweepSpec) -> xarray.Dataset:
    """The records of all members that have one, in the specification's order: dimension member, a variable a scalar."""
    import xarray

    rows = [(k, record) for k, m in enumerate(spec.members()) if (record := record_of(store, m)) is not None]
    told = scalars_told()
    columns: dict[str, list[object]] = {name: [] for name in (*SETTINGS, *told)}
    for _, record in rows:
        for name in SETTINGS:
            value = record["settings"][name]
            columns[name].append(",".join(map(str, value)) if name == "dims" else value)
        for name in told:
            columns[name].append(record["scalars"].get(name))
    variables: dict[str, object] = {name: ("member", column(name, values)) for name, values in columns.items()}
    points = spec.sweep.curve_points
    if points:
        shape = len(rows), max(points, 2)
        for name in CURVES:
            curve = np.full(shape, np.nan)
            for row, (_, record) in zip(curve, rows, strict=True):
                values = record["scalars"].get(name) or []
                row[: len(values)] = [np.nan if v is None else v for v in values]
            variables[name] = (("member", "point"), curve)
    coordinates = {"member": ("member", np.array([k for k, _ in rows], dtype=np.int64))}
    attributes = {"specification": canonical(spec.model_dump()), "versions": canonical(versions())}
    dataset = xarray.Dataset(variables, coordinates, attributes)
    for name, words in (SETTINGS | told).items():
        dataset[name].attrs["long_name"] = words
    return dataset
