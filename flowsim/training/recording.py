"""Copies of the weights while something trains them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_count, as_number
from flowsim.errors import InputError
from flowsim.losses import Loss
from flowsim.runs.trajectory import Trajectory
from flowsim.training.observing import observe


class Recorder:
    """Keeps copies of the weights of a training loop, in NumPy, jax, equinox or whatever numpy.array reads.

    every: one record in so many steps; the start and the last one are always kept. For PyTorch: flowsim.torch.Recorder.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> W, recorder = [np.array([[1.0]]), np.array([[0.5]])], fs.Recorder(every=10)
    >>> recorder.start(W)
    >>> for _ in range(100):
    ...     E = W[0] @ W[1] - 2.0
    ...     W = [W[0] - 0.01 * E @ W[1].T, W[1] - 0.01 * W[0].T @ E]
    ...     recorder.step(W, step_size=0.01)
    >>> run = recorder.observe(fs.SquaredLoss([[2.0]]))
    >>> len(run.time), float(run.time[-1].round(9))
    (11, 1.0)
    """

    def __init__(self, every: int = 1) -> None:
        self.every = as_count(every, "every", least=1)
        self.taken, self.time = 0, 0.0
        self.times: list[float] = []
        self.records: list[list[np.ndarray]] = []
        self.last: list[np.ndarray] = []

    def start(self, weights: Sequence[ArrayLike]) -> None:
        """Before the first step: W_1, ..., W_L (h_{l-1} x h_l; of layers that store (out, in), their transposes)."""
        if self.records:
            raise InputError("The recorder has started already; make another one for another training.")
        self._keep(weights)

    def step(self, weights: Sequence[ArrayLike], step_size: float) -> None:
        """After a step: the weights, and the learning rate that it had. Raises InputError before `start`."""
        if not self.records:
            raise InputError("The recorder must be started with the weights before the first step: start(weights).")
        self.taken += 1
        self.time += as_number(step_size, "step_size", above=0.0)
        if self.taken % self.every == 0:
            self._keep(weights)
            self.last = []
        else:
            self.last = [np.array(W, dtype=float) for W in weights]

    def _keep(self, weights: Sequence[ArrayLike]) -> None:
        self.times.append(self.time)
        self.records.append([np.array(W, dtype=float) for W in weights])

    def observe(self, loss: Loss, *, loss_scale: float = 1.0, weight_decay: float = 0.0) -> Trajectory:
        """The run so far, at the times that are the sums of the learning rates, times loss_scale.

        loss: what was trained; loss_scale: the training minimised so many times it; weight_decay: and what it added
        (see fs.observe).
        """
        times, records = [*self.times], [*self.records]
        if self.last:
            times.append(self.time)
            records.append(self.last)
        as_number(loss_scale, "loss_scale", above=0.0)
        when = loss_scale * np.array(times)
        return observe(records, loss, times=when, loss_scale=loss_scale, weight_decay=weight_decay)
