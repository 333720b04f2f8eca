"""What a comparison returns: a row a run, as a table, curves and slopes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from flowsim.comparison.reference import REFERENCE, Reference
from flowsim.display import Shown, Table
from flowsim.values import Json

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclass(frozen=True)
class Row:
    """One method at one setting on one problem.

    error_t1, error_worst: ||W - W_ref||_F over the change of the weights, at t1 and the greatest over the times of
    comparison; drift: the greatest imbalance drift; seconds: the least wall time of several runs after a warm-up,
    compilation apart; reason: why there is no result, or what limits it.
    """

    problem: str
    method: str
    rtol: float | None
    atol: float | None
    step_size: float | None
    status: str
    error_t1: float | None = None
    error_worst: float | None = None
    drift: float | None = None
    energy_residual: float | None = None
    rhs_evaluations: int | None = None
    steps: int | None = None
    rejected_steps: int | None = None
    jacobians: int | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    widths: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Shown):
    """All rows of a comparison, and the reference they were measured against.

    Against the number of fixed steps the error falls with the order of the method:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0))
    >>> methods = [fs.Scipy("RK23", step_size=1 / steps) for steps in (32, 64, 128)]
    >>> comparison = fs.compare(problem, methods, t1=1.0, repeats=1)
    >>> round(comparison.slopes()["rk23"]), len(comparison.table), comparison.reference.uncertainty < 1e-10
    (-3, 3, True)
    """

    rows: tuple[Row, ...]
    reference: Reference
    t1: float

    @cached_property
    def table(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """The rows as an xarray Dataset with dimension `run`."""
        import xarray

        table = self.table.astype({name: float for name, kind in Row.__annotations__.items() if "str" not in kind})
        dataset = xarray.Dataset.from_dataframe(table.fillna({"widths": "", "reason": ""}).rename_axis("run"))
        attributes = {"t1": self.t1, "reference": repr(REFERENCE), "uncertainty": self.reference.uncertainty}
        return dataset.assign_attrs(attributes)

    def curves(self, x: str, y: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """method -> (values of column x, values of column y) of the runs that ended well, in their order."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in dict.fromkeys(row.method for row in self.rows):
            pairs = [(getattr(r, x), getattr(r, y)) for r in self.rows if r.method == name and r.status == "completed"]
            pairs = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0 and b > 0]
            if pairs:
                columns = np.array(pairs)
                found[name] = columns[:, 0], columns[:, 1]
        return found

    def slopes(self, x: str = "steps", y: str = "error_worst") -> dict[str, float]:
        """method -> d log(error) / d log(work), by least squares, over errors above ten times the uncertainty.

        Against steps it is minus the order that the method shows.
        x, y: names of columns of `rows`, numbers.
        """
        slopes = {}
        for name, (work, error) in self.curves(x, y).items():
            clear = error > 10 * self.reference.uncertainty
            if clear.sum() >= 2 and np.ptp(np.log(work[clear])) > 0:
                slopes[name] = float(np.polyfit(np.log(work[clear]), np.log(error[clear]), 1)[0])
        return slopes

    def to_json(self) -> Json:
        """The object that `flowsim compare --json` prints."""
        return {
            "t1": self.t1,
            "reference": {
                "method": repr(REFERENCE),
                "check": repr(self.reference.check),
                "uncertainty": self.reference.uncertainty,
            },
            "rows": [asdict(row) for row in self.rows],
            "slopes": self.slopes(),
        }

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.rows[-1].status == "interrupted"

    def shown(self) -> Table:
        """A row a run, the reference below."""
        heads = ("method", "rtol/step", "error(t1)", "worst", "drift", "rhs", "steps", "rejected", "seconds", "compile")
        rows = []
        for r in self.rows:
            setting = r.rtol if r.step_size is None else r.step_size
            numbers = setting, r.error_t1, r.error_worst, r.drift, r.rhs_evaluations, r.steps, r.rejected_steps
            remark = "" if r.status == "completed" else f"{r.status}: {r.reason}"
            rows.append((r.method, *(_cell(x) for x in (*numbers, r.seconds, r.compile_seconds)), remark))
        foot = f"reference: {REFERENCE}; a second method differs from it by {self.reference.uncertainty:.1e}"
        return Table(rows, (*heads, "remark"), foot=foot)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"
