"""What to cite: the paper, flowsim, and where each method comes from, as BibTeX."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from flowsim.methods.base import Method

PAPER = "min2023convergence"
FLOWSIM = """@software{{flowsim,
  author  = {{{{The flowsim developers}}}},
  title   = {{flowsim: gradient flow on multi-layer linear models}},
  version = {{{version}}},
}}"""


def citation(method: Method | None = None) -> str:
    """BibTeX entries for the paper, flowsim and, where it is given, the method: its library and its formula.

    >>> import flowsim as fs
    >>> [line for line in fs.citation(fs.Diffrax("Tsit5")).splitlines() if line.startswith("@")][2:]
    ['@phdthesis{kidger2021neural,', '@article{tsitouras2011runge,']
    """
    known, sources = references(), () if method is None else method.kind.sources
    own = FLOWSIM.format(version=version("flowsim"))
    return "\n\n".join([known[PAPER], own, *(known[key] for key in sources)])


@cache
def references() -> dict[str, str]:
    """The entries of references.bib by their keys."""
    text = files("flowsim.methods").joinpath("references.bib").read_text(encoding="utf-8")
    entries = re.split(r"\n\n(?=@)", text.strip())
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}
