"""What diagnose finds: laws, each with its residual, the level to expect, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from flowsim.display import Shown, Table
from flowsim.values import Json

STOPPED = {"interrupted": "interrupted", "wall_limit": "the wall limit was reached"}
"""How a diagnosis may end before all laws are judged, in words."""


@dataclass(frozen=True)
class Law:
    """One law: its residual, the level to expect, whether it holds (None: not checked, see reason), and where.

    residual and expected are the pair with the greatest quotient over the trajectory, time the t at which it occurred;
    the residual of a rate is what exceeds its bound.
    """

    name: str
    equation: str
    residual: float | None
    expected: float | None
    holds: bool | None
    time: float | None = None
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """All laws of one trajectory.

    A record that was tampered with: the loss at the end is half of what the saved weights give.
    status: completed, or what ended it early; tail: what is proved of all later times, of a run that no law speaks
    against (see Trajectory.certify_tail).

    >>> import dataclasses
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    >>> flow = fs.simulate(problem, t1=1.0, save_points=11)
    >>> forged = dataclasses.replace(flow, excess=flow.excess * [*[1.0] * 10, 0.5])
    >>> diagnosis = fs.diagnose(forged)
    >>> diagnosis.verdict, diagnosis.exit_code
    ('broken: record', 3)
    """

    laws: tuple[Law, ...]
    status: Literal["completed", "interrupted", "wall_limit"] = "completed"
    tail: str | None = None

    def __iter__(self) -> Iterator[Law]:
        return iter(self.laws)

    def __getitem__(self, name: str) -> Law:
        for law in self.laws:
            if law.name == name:
                return law
        raise KeyError(f"no law {name!r}; known: {', '.join(law.name for law in self.laws)}")

    @property
    def broken(self) -> tuple[Law, ...]:
        """The laws that do not hold."""
        return tuple(law for law in self.laws if law.holds is False)

    @property
    def exit_code(self) -> int:
        """130 where it was interrupted, 3 where a law is broken or the wall limit was reached, else 0."""
        if self.status == "interrupted":
            return 130
        return 3 if self.broken or self.status == "wall_limit" else 0

    @property
    def verdict(self) -> str:
        """One sentence."""
        unknown = sum(law.holds is None for law in self.laws)
        why = f": {STOPPED[self.status]}" if self.status in STOPPED else ""
        left = f" ({unknown} not checked{why})" if unknown else ""
        if self.broken:
            return "broken: " + ", ".join(law.name for law in self.broken) + (left if why else "")
        if unknown == len(self.laws):
            return f"no law was checked{why}"
        return "every law that was checked holds" + left

    def to_json(self) -> Json:
        """The object that `flowsim diagnose --json` prints; "holds" is null where it ended early and none is broken."""
        holds = None if self.status in STOPPED and not self.broken else not self.broken
        laws = [asdict(law) for law in self.laws]
        return {"status": self.status, "verdict": self.verdict, "holds": holds, "tail": self.tail, "laws": laws}

    def shown(self) -> Table:
        """A row a law, the verdict below."""
        verdicts = {True: "holds", False: "BROKEN", None: "not checked"}
        rows = [
            (
                law.name,
                *("-" if x is None else f"{x:.2e}" for x in (law.residual, law.expected)),
                verdicts[law.holds],
                "-" if law.time is None else f"{law.time:.4g}",
                law.reason or law.equation,
            )
            for law in self.laws
        ]
        foot = self.verdict if self.tail is None else f"{self.verdict}\nthe rest: {self.tail}"
        return Table(rows, ("law", "residual", "expected", "verdict", "at t", "equation"), foot=foot)


def worst(name: str, equation: str, residuals: np.ndarray, expected: ArrayLike, times: np.ndarray) -> Law:
    """The law with the pair of the greatest quotient; broken where a residual exceeds its level or is not a number."""
    levels = np.broadcast_to(expected, residuals.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where(residuals <= levels, np.where(levels > 0, residuals / levels, 0.0), np.inf)
        ranks = np.where(np.isinf(quotients), residuals, -1.0) if np.isinf(quotients).any() else quotients
    place = int(np.argmax(np.nan_to_num(ranks, nan=np.inf)))
    holds = bool((residuals <= levels).all())
    return Law(name, equation, float(residuals[place]), float(levels[place]), holds, float(times[place]))
