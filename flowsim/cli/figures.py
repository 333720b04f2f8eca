"""flowsim plot, report: a saved run as figures and as a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flowsim.cli.inputs import Json
from flowsim.cli.output import note, show

KIND = (
    "loss, drift, rate, singular-values, or all four; gradient, energy, sharpness, kernel-distance, effective-rank."
)


def plot(
    run: Path,
    *,
    out: Annotated[Path | None, Parameter(help=".png, .pdf or .svg; beside the run unless given.")] = None,
    kind: Annotated[str, Parameter(help=KIND)] = "all",
    json_: Json = False,
) -> int:
    """Draw a saved run: the loss with its certified bounds, the drift of D_l, the rate, the singular values."""
    from flowsim.checks import as_choice
    from flowsim.files import check_writable, write_atomically
    from flowsim.plots import KINDS, check_format, run_figure
    from flowsim.runs.loading import load

    place = _beside(run, ".png") if out is None else out
    as_choice(kind, "kind", (*KINDS, "all"))
    check_format(place)
    check_writable(place)
    trajectory = load(run)
    figure = run_figure(trajectory, kind, trajectory.certificates)
    with write_atomically(place) as path:
        figure.savefig(path, dpi=200)
    show({"run": str(run), "kind": kind, "out": str(place)}, json_, lambda: f"Wrote {place}")
    return 0


def report(
    run: Path,
    *,
    out: Annotated[Path | None, Parameter(help="The page, .html; beside the run unless given.")] = None,
    laws: Annotated[str, Parameter(help="Check the laws of diagnose: auto (not for long runs), always.")] = "auto",
    wall_limit: Annotated[float | None, Parameter(help="Check the laws for this many seconds at most.")] = None,
    json_: Json = False,
) -> int:
    """Write a saved run as one HTML page that loads nothing else: summary, curves to explore, figures, tables."""
    from flowsim.checks import as_choice
    from flowsim.files import check_writable
    from flowsim.laws import Diagnosis, diagnose
    from flowsim.reports import check_name, laws_of
    from flowsim.reports import report as write
    from flowsim.runs.loading import load

    place = _beside(run, ".html") if out is None else out
    as_choice(laws, "laws", ("auto", "always"))
    check_name(place)
    check_writable(place)
    trajectory = load(run)
    if laws == "always" or wall_limit is not None:
        found: Diagnosis | str = diagnose(trajectory, progress=sys.stderr.isatty(), wall_limit=wall_limit)
    else:
        found = laws_of(trajectory)
    write(trajectory, place, diagnosis=found)
    show({"run": str(run), "out": str(place), "bytes": place.stat().st_size}, json_, lambda: f"Wrote {place}")
    if isinstance(found, str) or found.status == "completed":
        return 0
    note(f"The laws were not all checked: {found.verdict}.")
    return found.exit_code


def _beside(run: Path, suffix: str) -> Path:
    """The run's own name with another ending. Raises InputError where the run is no file."""
    from flowsim.files import check_readable

    check_readable(run)
    return run.with_suffix(suffix)
