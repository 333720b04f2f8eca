"""What every run leaves behind, whatever ran it: a status, the losses and invariants at the saved times, every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from flowsim.checks import WIDEST
from flowsim.compression import CompressedNetwork, Outside
from flowsim.compression.control import estimates_drift
from flowsim.dynamics import Dynamics, GradientFlow, Motion
from flowsim.methods import Method
from flowsim.problem import Problem
from flowsim.values import guarded


class Status(NamedTuple):
    """What a status means and what to do; the exit code of the command."""

    meaning: str
    exit_code: int


STATUSES = {
    "completed": Status("The end time was reached.", 0),
    "converged": Status("The stopping level was reached.", 0),
    "diverged": Status(
        "The state grew without bound or the steps failed; lower step_size, or rtol where there is one.", 3
    ),
    "step_limit": Status(
        "The step limit was reached before the end time; raise max_steps, loosen rtol or lower t1.", 3
    ),
    "wall_limit": Status(
        "The wall-clock limit was reached before the end time; raise wall_limit or use a cheaper method.", 3
    ),
    "interrupted": Status("The run was interrupted; the result up to there is kept.", 130),
    "failed": Status("There is no run: the problem could not be made or simulated.", 3),
}
"""How a run can have ended; failed are members of ensembles and sweeps of which there is no record."""


def exit_code_of(status: str) -> int:
    """The exit code of a status; 3 of one that this version does not know."""
    return STATUSES[status].exit_code if status in STATUSES else 3


Count = Annotated[int, Ge(0), Le(WIDEST)]
Seconds = Annotated[float, Ge(0)]


class Work(TypedDict):
    """What a run took; None where it is not told. seconds: without those spent compiling."""

    steps: Count
    rhs_evaluations: Count
    rejected_steps: Count | None
    jacobians: Count | None
    seconds: Seconds
    compile_seconds: Seconds


@dataclass(frozen=True)
class Checkpoints:
    """States kept at some of the saved times, the first and the last among them.

    times (C); states (C, size): the weights as one vector; beside (C, size), or empty: what is kept beside them, the
    velocities of a dynamics of second order, or the momentum of gradient descent.
    """

    times: np.ndarray
    states: np.ndarray
    beside: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        _guard(self)

    def whole(self, place: int) -> np.ndarray:
        """All that the method goes on from at one of the times."""
        return np.concatenate([self.states[place], self.beside[place]]) if len(self.beside) else self.states[place]


@dataclass(frozen=True)
class Steps:
    """What is known after every accepted step: time, L - f*, and what was dissipated since t = 0.

    dissipated: the integral of ||grad L||_F^2 along gradient flow, of the dynamics' power else; stored: the energy
    beyond L - f*, of weight decay and of motion, 0 unless given.
    """

    time: np.ndarray
    excess: np.ndarray
    dissipated: np.ndarray
    stored: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not len(self.stored):
            object.__setattr__(self, "stored", np.zeros(len(self.time)))
        _guard(self)

    @property
    def energy(self) -> np.ndarray:
        """L - f* and what is stored beside."""
        return self.excess + self.stored


def _guard(record: object) -> None:
    """Let nobody write to the arrays of a record."""
    for name, value in vars(record).items():
        if isinstance(value, np.ndarray):
            vars(record)[name] = guarded(value)


@dataclass(frozen=True)
class Reduction:
    """How the width was compressed: the compressed network (None where the full weights were integrated), the estimate
    of ||W_full(t) - W(t)||_F over all layers at the saved times, and the reason for the choice."""

    network: CompressedNetwork | None
    error: np.ndarray
    reason: str

    def __post_init__(self) -> None:
        _guard(self)


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """What a run did; its arrays are read-only.

    problem, method: what was simulated, by what; status (a key of STATUSES) and detail: how it ended, and what is to be
    said of it; time (S): saved times; excess (S): L - f* (L where f* is unknown); gradient_norm (S): ||grad L||_F;
    imbalance_change (S, L-1): ||D_l(t) - D_l(0)||_F; steps: every step; checkpoints: some states; reduction: whether
    and how the width was compressed, with the error estimate; stats: the work; restarts: the times at which it was
    resumed; before: the methods until each of them, where they were not all `method`; provenance: versions and
    settings; dynamics: what the weights obey.

    Where the change of D_l costs much more than a gradient and the width was not compressed, imbalance_change is an
    estimate from 16 random vectors of signs, of a standard error of at most 18 %: `drift_is_estimated`.

    With weight decay x the change of the imbalance is ||D_l(t) - q(t)^2 D_l(0)||_F, q what decay alone leaves,
    exp(-x t) along gradient flow. gradient_norm is that of the objective, decay included; of a network that was drawn
    in compressed form, in the coordinates that the loss reaches.
    """

    problem: Problem
    method: Method
    status: str
    detail: str
    time: np.ndarray
    excess: np.ndarray
    gradient_norm: np.ndarray
    imbalance_change: np.ndarray
    steps: Steps
    checkpoints: Checkpoints
    reduction: Reduction
    stats: Work
    provenance: Mapping[str, Any] = field(default_factory=dict)
    restarts: tuple[float, ...] = ()
    before: tuple[Method, ...] = ()
    dynamics: Dynamics = field(default_factory=GradientFlow)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The method of each part, from one restart to the next."""
        return *(self.before or (self.method,) * len(self.restarts)), self.method

    def __post_init__(self) -> None:
        _guard(self)

    @property
    def motion(self) -> Motion:
        """The problem under its dynamics."""
        return Motion(self.problem, self.dynamics)

    def kept(self, t: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(q, q') at times: what weight decay leaves of the weights that the loss does not reach."""
        return self.method.remaining(self.motion, np.asarray(t, float))

    @property
    def drift_is_estimated(self) -> bool:
        """Whether imbalance_change is an estimate."""
        recorded = self.method.kind.recorded
        return self.reduction.network is None and not recorded and estimates_drift(self.problem.network)

    @property
    def outside(self) -> Outside:
        """The weights that were not integrated, where the width was compressed: only weight decay moves them."""
        network = self.reduction.network
        core = self.problem if network is None else network.problem(self.problem.loss, self.problem.weight_decay)
        return Outside(self.motion, self.method, core)

    @property
    def message(self) -> str:
        """What the status means, what to do, and what there is to say of the run."""
        return " ".join(part for part in (STATUSES[self.status].meaning, self.detail) if part)

    @property
    def exit_code(self) -> int:
        """0 completed or converged, 3 a failure or a limit, 130 interrupted."""
        return STATUSES[self.status].exit_code
