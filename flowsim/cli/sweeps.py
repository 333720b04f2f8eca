"""flowsim sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flowsim.cli.inputs import Json, Whole, numbers
from flowsim.cli.output import note, show
from flowsim.errors import InputError


def sweep(
    specification: Path,
    *,
    out: Path,
    workers: Annotated[int, Whole, Parameter(help="Processes of this machine.")] = 1,
    scheduler: Annotated[str | None, Parameter(help="Address of a Dask cluster that shares the folder.")] = None,
    shard: Annotated[str, Parameter(help="i/n: the i-th of n parts, counted from 1.")] = "1/1",
    plot: Annotated[bool, Parameter(negative="", help="Draw the table: table.png in the folder.")] = False,
    json_: Json = False,
) -> int:
    """Simulate every member of a sweep's specification (TOML) that has no record in the folder yet."""
    from flowsim.sweeps import SweepSpec
    from flowsim.sweeps import sweep as run

    parts = numbers("shard", shard.replace("/", ",", 1), int, "2/4")
    if len(parts) != 2:
        raise InputError(f"Argument `shard` must look like 2/4, but it is {shard!r}.")
    spec = SweepSpec.read(specification)
    settings: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "shard": (parts[0], parts[1])}
    result = run(spec, out, note=note, progress=sys.stderr.isatty(), **settings)
    if result.interrupted:
        note("Interrupted; what was finished is kept: run the same command again to go on.")
    if plot:
        _draw(result.table)
    show(
        result.to_json(),
        json_,
        lambda: f"{result.done} done, {result.skipped} skipped, {result.failed} failed; table: {result.table}",
    )
    return result.exit_code


def _draw(path: Path) -> None:
    """table.png beside table.nc."""
    import xarray

    from flowsim.files import write_atomically
    from flowsim.plots import sweep_figure

    with xarray.open_dataset(path, engine="h5netcdf") as opened:
        figure = sweep_figure(opened.load())
    with write_atomically(path.with_suffix(".png")) as place:
        figure.savefig(place, dpi=200)
