"""The samples of a loss: what minibatches are drawn from, and the labels that noise is added to.

f is a sum over samples: rows of data, or entries of a target. A batch B of them has f_B, N / |B| times their part of f,
so that the gradient of f_B over all equally likely batches has the mean grad f.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from flowsim.errors import InputError
from flowsim.losses.base import Loss
from flowsim.losses.classification import ExponentialLoss, LogisticLoss
from flowsim.losses.rows import Rows
from flowsim.losses.squared import LeastSquares, MaskedSquaredLoss, SquaredLoss
from flowsim.values import Array

SAME = 1e-6
"""Relative: rows give the value of the loss that was made of them to this."""


class Samples(Protocol):
    """What a batch is taken from."""

    kind: Any
    count: int
    noisy: bool

    def parts(self, chosen: np.ndarray, size: int, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """The parts of a loss of class `kind` on the chosen samples, of the shapes of `size` of them; noise: added to
        their labels."""
        ...

    def noise(self, rng: np.random.Generator, chosen: np.ndarray) -> np.ndarray:
        """Standard normal numbers for their labels."""
        ...


class DataRows:
    """Rows of data, by the names that parts of the loss have; rows of zeros fill up a small batch."""

    def __init__(self, kind: Any, names: tuple[str, str], rows: Rows, fixed: Mapping[str, float]) -> None:
        self.kind, self.names, self.rows, self.fixed = kind, names, rows, fixed
        self.count, self.noisy = rows.count, kind is LeastSquares and rows.plain

    def parts(self, chosen: np.ndarray, size: int, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """X and Y of the chosen rows."""
        X, Y = self.rows.take(chosen)
        Y = Y if noise is None else Y + noise
        missing = ((0, size - len(chosen)), (0, 0))
        found = [np.pad(part, missing) if missing[0][1] else part for part in (X, Y)]
        return {**dict(zip(self.names, found, strict=True)), **{k: np.array(v) for k, v in self.fixed.items()}}

    def noise(self, rng: np.random.Generator, chosen: np.ndarray) -> np.ndarray:
        """(chosen, m)."""
        return rng.standard_normal((len(chosen), self.rows.m))


class Entries:
    """The entries of a target that are seen."""

    def __init__(self, Y: np.ndarray, mask: np.ndarray) -> None:
        self.kind, self.noisy = MaskedSquaredLoss, True
        self.Y, self.mask, self.seen = Y, mask, np.flatnonzero(mask)
        self.count = len(self.seen)

    def parts(self, chosen: np.ndarray, size: int, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Y, and the mask of the chosen entries."""
        mask = np.zeros_like(self.mask)
        mask.flat[self.seen[chosen]] = self.mask.flat[self.seen[chosen]]
        return {"Y": self.Y if noise is None else self.Y + noise, "mask": mask}

    def noise(self, rng: np.random.Generator, chosen: np.ndarray) -> np.ndarray:
        """(n, m)."""
        return rng.standard_normal(self.Y.shape)


def samples_of(loss: Loss, noisy: bool) -> Samples:
    """The samples of a loss; noisy: whether noise will be added to the labels. Raises InputError where it has none."""
    kind, parts = type(loss), vars(loss)
    found: Samples
    if isinstance(loss, LeastSquares) and kind is LeastSquares:
        found = DataRows(kind, ("factor", "seen"), _rows(loss), {"minimum": 0.0})
    elif kind in (ExponentialLoss, LogisticLoss):
        found = DataRows(kind, ("X", "labels"), Rows(parts["X"], parts["labels"]), {"margin": 0.0})
    elif kind in (MaskedSquaredLoss, SquaredLoss):
        found = Entries(parts["Y"], parts.get("mask", np.ones_like(parts["Y"])))
    else:
        raise InputError(
            f"Arguments `batch_size` and `label_noise` must not be given for {kind.__name__}, whose samples are not"
            " known; flowsim's own losses have them."
        )
    if noisy and not found.noisy:
        why = "its rows are weighed" if kind is LeastSquares else "its labels are -1 and +1"
        raise InputError(f"Argument `label_noise` must be 0 for this {kind.__name__}: {why}.")
    return found


def _rows(loss: LeastSquares) -> Rows:
    """X and Y. Raises InputError where the loss has them no longer, or they have been changed."""
    if loss.rows is None:
        raise InputError(
            "Argument `problem` must have the rows of its data, for batches or noise, but its LeastSquares was loaded"
            " or made without them; pass LeastSquares(X, Y), of a loaded run as load(path, loss=...)."
        )
    for W in (np.zeros(loss.shape), np.ones(loss.shape)):
        told = loss.rows.value(W)
        if abs(told - float(loss.value(W))) > SAME * told:
            raise InputError("Argument `problem` must have the data it was made of, but X or Y was changed since.")
    return loss.rows


class Scaled:
    """factor f: what backpropagation needs of it."""

    def __init__(self, loss: Any, factor: Array) -> None:
        self.loss, self.factor = loss, factor

    def gradient(self, W: Array) -> Array:
        """factor grad f(W)."""
        return self.factor * self.loss.gradient(W)


class Drawn(NamedTuple):
    """The batch of a step: parts of a loss of class `kind`, and N / |B|."""

    parts: dict[str, Array]
    factor: Array

    def loss(self, kind: Any) -> Any:
        """f_B, as backpropagation needs it; NumPy's arrays or jax's."""
        return Scaled(kind.from_parts(self.parts), self.factor)


class Batches:
    """What gradient descent is given at step k, a pure function of (seed, k).

    Without replacement: each pass through the N samples is in a new order, ceil(N / batch_size) batches, the last one
    smaller; independent: each batch is drawn anew from all N. label_noise sigma: labels are Y + sigma xi, xi standard
    normal and new at every step.
    """

    def __init__(
        self, loss: Loss, batch_size: int | None, label_noise: float, seed: int, independent: bool = False
    ) -> None:
        self.samples = samples_of(loss, label_noise > 0)
        self.kind, self.label_noise, self.seed = self.samples.kind, label_noise, seed
        count = self.samples.count
        self.size = count if batch_size is None else batch_size
        if self.size > count:
            raise InputError(
                f"Argument `batch_size` must be at most {count}, the number of samples, but it is {self.size}."
            )
        self.a_pass = 1 if independent else -(-count // self.size)
        self.order = lru_cache(2)(lambda epoch: np.random.default_rng([seed, 0, epoch]).permutation(count))

    def chosen(self, k: int) -> np.ndarray:
        """The samples of step k."""
        if self.size == self.samples.count:
            return np.arange(self.size)
        epoch, place = divmod(k, self.a_pass)
        return cast(np.ndarray, self.order(epoch)[place * self.size : (place + 1) * self.size])

    def at(self, k: int) -> Drawn:
        """The batch of step k."""
        chosen, noise = self.chosen(k), None
        if self.label_noise:
            noise = self.label_noise * self.samples.noise(np.random.default_rng([self.seed, 1, k]), chosen)
        return Drawn(self.samples.parts(chosen, self.size, noise), np.array(self.samples.count / len(chosen)))
