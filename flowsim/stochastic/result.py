"""What many paths of stochastic training did, and what was to be expected of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.display import Shown, Table
from flowsim.runs.words import number
from flowsim.values import sealed

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False, repr=False)
class StochasticPaths(Shown):
    """Losses of P paths, and the change of every D_l in the mean beside its prediction.

    subject: what was walked, descent or the flow. time (S); excess (P, S): L - f* of the whole loss, without decay's
    energy; changes, predictions: for each D_l (S, h_l, h_l), the mean over the paths of D_l(t) - D_l(0) and of its
    prediction, what the law of a step says of it in the mean given the weights before; deviations: the standard
    deviation over the paths, entry by entry, of what a path's change differs from its prediction by. seeds: of the
    paths. width: how it was compressed, if it was: then D_l is that of the core. seconds: of the whole call.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[1.0]]), fs.LinearNetwork(([[1.5]], [[0.5]])))
    >>> noisy = fs.stochastic_paths(problem, fs.GradientDescent(0.05, label_noise=0.5), t1=10.0, paths=500)
    >>> noisy.excess.shape, bool(abs(noisy.scores(1)[1:]).max() < 5)
    ((500, 33), True)
    """

    subject: Any
    time: np.ndarray
    excess: np.ndarray
    changes: tuple[np.ndarray, ...]
    predictions: tuple[np.ndarray, ...]
    deviations: tuple[np.ndarray, ...]
    seeds: tuple[int, ...]
    width: str
    seconds: float

    def __len__(self) -> int:
        return len(self.excess)

    @property
    def mean(self) -> np.ndarray:
        """(S): the mean of L - f* over the paths."""
        return self.excess.mean(0)

    @property
    def standard_error(self) -> np.ndarray:
        """(S): of that mean."""
        if len(self) < 2:
            return np.full(len(self.time), np.nan)
        with np.errstate(under="ignore"):
            return np.asarray(self.excess.std(0, ddof=1) / np.sqrt(len(self)))

    def quantiles(self, q: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> np.ndarray:
        """(len(q), S): quantiles q of L - f* over the paths."""
        return np.quantile(self.excess, q, axis=0)

    def scores(self, layer: int) -> np.ndarray:
        """(S, h_l, h_l): (mean change of D_l - mean prediction) over its standard error, l = layer: about standard
        normal where the prediction is right and paths are many; 0 where they do not differ, NaN of one path."""
        gap = self.changes[layer - 1] - self.predictions[layer - 1]
        error = self.deviations[layer - 1] / np.sqrt(len(self))
        return np.divide(gap, error, out=np.zeros_like(gap), where=error != 0)

    @cached_property
    def drift(self) -> np.ndarray:
        """(S, L-1): ||mean change of D_l||_F."""
        return sealed(np.array([np.linalg.norm(change, axis=(1, 2)) for change in self.changes]).T)

    @property
    def dataset(self) -> xarray.Dataset:
        """Losses (path, time), seeds (path), and the mean change of each D_l, its prediction and the standard error of
        their difference (time, row, column)."""
        import xarray

        variables: dict[str, Any] = {"excess_loss": (("path", "time"), self.excess, {"long_name": "L(t) - f*"})}
        found = zip(self.changes, self.predictions, self.deviations, strict=True)
        for layer, (change, told, spread) in enumerate(found, 1):
            dims = ("time", f"row_{layer}", f"column_{layer}")
            variables[f"mean_change_{layer}"] = dims, change, {"long_name": f"mean of D_{layer}(t) - D_{layer}(0)"}
            variables[f"prediction_{layer}"] = dims, told, {"long_name": "its prediction"}
            error = spread / np.sqrt(len(self))
            variables[f"standard_error_{layer}"] = dims, error, {"long_name": "of their difference"}
        variables["seed"] = "path", np.array(self.seeds), {"long_name": "seed of the path"}
        return xarray.Dataset(variables, {"time": self.time, "path": np.arange(len(self))})

    def shown(self) -> Table:
        """Losses at the end, and the drift beside its prediction."""
        ends = " ".join(f"{end:.3g}" for end in self.quantiles()[:, -1])
        sure = number(float(self.standard_error[-1]))
        rows = [
            ("paths", f"{len(self)} of {self.subject}"),
            ("work", f"{self.seconds:.3g} s, width {self.width}"),
            ("loss", f"L - f* {self.mean[0]:.4g} to {self.mean[-1]:.4g} in the mean, standard error {sure}"),
            ("quantiles", f"5 25 50 75 95 % at t = {self.time[-1]:.4g}: {ends}"),
        ]
        for layer, (change, told) in enumerate(zip(self.changes, self.predictions, strict=True), 1):
            size, gap = np.linalg.norm(change[-1]), np.linalg.norm(change[-1] - told[-1])
            error = float(np.sqrt((self.deviations[layer - 1][-1] ** 2).sum() / len(self)))
            text = f"changed by {size:.4g} in the mean, {gap:.2g} from its prediction (standard error {number(error)})"
            rows.append((f"D_{layer}", text))
        return Table(rows)
