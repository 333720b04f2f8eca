"""The page: figures, tables and data put into the template, everything escaped."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from flowsim import __version__
from flowsim.display import Table
from flowsim.errors import InputError
from flowsim.files import write_atomically
from flowsim.laws import Diagnosis
from flowsim.plots import COLOURS, Chart, bounds_of, run_figure
from flowsim.plots.charts import drift_chart, loss_chart, rate_chart, remains, singular_values_chart
from flowsim.rates import Certificates
from flowsim.reports import contents
from flowsim.runs.trajectory import Trajectory, as_trajectory
from flowsim.values import Json

FIGURES = {
    "loss": "Loss, relative to its start; bounds of certificates dashed.",
    "rate": "Rate at which log(L − f*) falls; certified rates dashed.",
    "drift": "‖Dₗ(t) − {remains}Dₗ(0)‖ / max(1, ‖Dₗ(0)‖), Frobenius norms{conserved}.",
    "singular-values": "Singular values of the product W(t); dotted those of the minimiser.",
    "gradient": "Norm of the gradient over all layers.",
    "energy": "Energy residual: {energy} since t = 0; 0 for the exact flow.",
}
MOST_FRAMES = 500
"""Places of the time slider; more checkpoints than this are thinned."""


def report(trajectory: Trajectory, path: str | Path, *, diagnosis: Diagnosis | str | None = None) -> None:
    """Write the run as one self-contained HTML page: summary, curves to explore, figures, tables, provenance.

    diagnosis: `diagnose(trajectory)` where it is at hand, or in a sentence why there is none; else the laws are checked
    here, unless that takes more than a few seconds: then the page says so. The file is written beside and renamed.

    Raises InputError when path does not end in .html or cannot be written.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fs.report(fs.simulate(problem, t1=0.5), Path(folder) / "run.html")
    ...     page = (Path(folder) / "run.html").read_text()
    >>> page.count("<html"), "src=" in page, "theorem-1-A1" in page
    (1, False, True)
    """
    check_name(path)
    page = render(as_trajectory(trajectory), contents.laws_of(trajectory) if diagnosis is None else diagnosis)
    with write_atomically(path) as place:
        place.write_text(page, encoding="utf-8")


def check_name(path: str | Path) -> None:
    """Refuse a name that browsers do not take for a page. Raises InputError."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"File {path} must end in .html: the report is a page for a browser.")


def render(trajectory: Trajectory, laws: Diagnosis | str) -> str:
    """The page as text; laws: the diagnosis, or why there is none."""
    certificates = trajectory.certificates
    charts = _charts(trajectory, certificates)
    network = "-".join(map(str, trajectory.problem.network.dims))
    return Template(_part("page.html")).substitute(
        title=escape(f"{network}, {trajectory.method}"),
        style=_part("page.css"),
        script=_part("page.js"),
        data=embedded(_data(charts)),
        status=escape(trajectory.status),
        mood="good" if trajectory.exit_code == 0 else "bad",
        message=escape(trajectory.message),
        summary=_definitions(contents.summary(trajectory, certificates)),
        notes=_notes(charts),
        figures="".join(_figure(trajectory, kind, certificates) for kind in FIGURES),
        certificates=_table("Certificates", certificates.shown()),
        laws=_laws(laws),
        statistics=_definitions(contents.statistics(trajectory)),
        configuration=_definitions(contents.rows(contents.configuration(trajectory))),
        provenance=_definitions(contents.rows(contents.provenance(trajectory))) or "<p>None was stored.</p>",
        citation=escape(trajectory.citation()),
        version=escape(__version__),
    )


def embedded(value: object) -> str:
    """JSON for a script element: no NaN, and nothing in it can close the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _part(name: str) -> str:
    return files("flowsim.reports").joinpath(name).read_text(encoding="utf-8")


def _charts(trajectory: Trajectory, certificates: Certificates) -> list[Chart]:
    bounds = bounds_of(certificates)
    return [
        loss_chart(trajectory, bounds),
        drift_chart(trajectory),
        rate_chart(trajectory, bounds),
        singular_values_chart(trajectory),
    ]


def _data(charts: Sequence[Chart]) -> Json:
    *curves, singular = charts
    places = np.unique(np.linspace(0, len(singular.time) - 1, min(len(singular.time), MOST_FRAMES)).astype(int))
    run = [c.values[places] for c in singular.curves if c.role == "run"]
    return {
        "colours": COLOURS,
        "charts": [_chart(chart) for chart in curves],
        "frames": {
            "time": _numbers(singular.time[places], 12),
            "values": [_numbers(row) for row in zip(*run, strict=True)],
            "targets": _numbers([c.values[0] for c in singular.curves if c.role == "target"]),
        },
    }


def _chart(chart: Chart) -> Json:
    curves = [{"name": c.name, "role": c.role, "values": _numbers(c.values)} for c in chart.curves]
    return {
        "key": chart.key,
        "title": chart.title,
        "words": chart.words,
        "logarithmic": chart.logarithmic,
        "missing": chart.missing,
        "roundOff": chart.round_off,
        "fromZero": chart.from_zero,
        "time": _numbers(chart.time, 12),
        "curves": curves,
    }


def _numbers(values: Iterable[float], digits: int = 6) -> list[float | None]:
    """Rounded to so many digits; None where they are not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def _caption(trajectory: Trajectory, kind: str) -> str:
    """What a figure shows, of this run."""
    kept, plain = trajectory.dynamics.keeps_imbalance, trajectory.motion.is_plain
    return FIGURES[kind].format(
        remains=remains(trajectory),
        conserved=": 0 for the exact flow" if kept else f"; {trajectory.dynamics.name} does not conserve it",
        energy="L(0) − L(t) against the integral of ‖∇L‖²"
        if plain
        else "E(0) − E(t) against what was dissipated, E the loss and the energy of decay and motion,",
    )


def _figure(trajectory: Trajectory, kind: str, certificates: Certificates) -> str:
    import matplotlib

    stream = io.StringIO()
    silent = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": kind}):
        run_figure(trajectory, kind, certificates).savefig(stream, format="svg", metadata=silent)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{kind}-', svg)
    svg = re.sub(r'href="#', f'href="#{kind}-', svg).replace("url(#", f"url(#{kind}-")
    caption = escape(_caption(trajectory, kind))
    return f'<figure><div role="img" aria-label="{caption}">{svg}</div><figcaption>{caption}</figcaption></figure>\n'


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in rows)
    return f"<dl>{lines}</dl>" if lines else ""


def _table(name: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in table.heads)
    body = "".join(_row(table.heads, row) for row in table.rows)
    html = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{html}</div>'


def _row(heads: Sequence[str], row: Sequence[str]) -> str:
    named = zip(heads[1:], row[1:], strict=True)
    cells = "".join(f'<td data-head="{escape(head)}">{escape(cell)}</td>' for head, cell in named)
    return f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>\n'


def _laws(laws: Diagnosis | str) -> str:
    if isinstance(laws, str):
        return f"<p>{escape(laws)}</p>"
    verdict = laws.verdict[0].upper() + laws.verdict[1:]
    return f"<p>{escape(verdict)}.</p>" + _table("Laws", laws.shown())


def _notes(charts: Sequence[Chart]) -> str:
    thinned = [
        f"{chart.title}: {len(chart.time)} of {chart.thinned_from} points are drawn, the extremes among them."
        for chart in charts
        if chart.thinned_from
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in thinned)
