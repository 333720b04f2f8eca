"""flowsim reproduce, problems, methods, cite: what needs no input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from flowsim.cli.inputs import Json, Whole
from flowsim.cli.output import note, show


def reproduce(*, out: Path = Path("."), seed: Annotated[int, Whole] = 0, json_: Json = False) -> int:
    """Draw the paper's Figure 1: figure1.png, figure1.pdf, figure1.json, and a table."""
    from flowsim.checks import as_count
    from flowsim.files import make_folder
    from flowsim.reproduce import reproduce as draw
    from flowsim.reproduce import table

    as_count(seed, "seed", least=0)
    result = draw(make_folder(out), seed=seed, note=note)
    show(result, json_, lambda: table(result) + f"\nWrote figure1.png, figure1.pdf and figure1.json in {out}.")
    return 0


def cite(run: Path | None = None, *, json_: Json = False) -> int:
    """What to cite, as BibTeX: the paper, flowsim, and for a saved run its method."""
    from flowsim.methods.citations import citation

    if run is None:
        text = citation()
    else:
        from flowsim.runs.loading import load

        text = load(run).citation()
    show({"bibtex": text}, json_, lambda: text)
    return 0


def problems(*, json_: Json = False) -> int:
    """List the problems to compare methods on, one line each."""
    from flowsim.named_problems import PROBLEMS

    lines = {name: (make.__doc__ or "").splitlines()[0] for name, make in PROBLEMS.items()}
    show(lines, json_, lambda: "\n".join(f"{name:16}{line}" for name, line in lines.items()))
    return 0


def methods(*, json_: Json = False) -> int:
    """List the methods, one line each."""
    from flowsim.methods import METHODS

    lines = {name: kind.line for name, (_, kind) in METHODS.items()}
    show(lines, json_, lambda: "\n".join(f"{name:20}{line}" for name, line in lines.items()))
    return 0
