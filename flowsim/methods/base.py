"""What every method is: a frozen value that names an integrator and its settings, and starts it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from flowsim.checks import as_number
from flowsim.errors import InputError
from flowsim.families import Family, settings_of, told
from flowsim.methods.schedules import Schedule

if TYPE_CHECKING:
    import numpy as np

    from flowsim.dynamics import Motion
    from flowsim.methods.guard import Guarded
    from flowsim.methods.steps import Integrator, Movable
    from flowsim.problem import Problem

Number = TypeVar("Number", float, "np.ndarray")

LEAST_RTOL = 1e-13
"""Below this relative tolerance round-off in float64 decides, and step-size control fails."""
RTOL, ATOL = 1e-8, 1e-10
"""The default tolerances of all methods."""
INVARIANT_RTOL, INVARIANT_ATOL = 1e-13, 1e-15
"""The imbalance drifts by about the compression error times the weights: for a method that keeps it to round-off."""
LEAST_COMPRESSION_RTOL = 1e-12
"""Tighter than this, round-off in the defect of the compression decides."""
TOLD = ("rtol", "atol", "stages")
"""Settings that str() of a method always tells."""


@dataclass(frozen=True)
class Kind:
    """What is known of a method, whatever its settings.

    order: None where it varies; line: a sentence on it; matrix_free: an implicit method that forms no Jacobian;
    adaptive: has an error estimate, without which a step size has to be given; keeps_invariants: every D_l to round-off
    at any tolerance; stabilised: explicit, but made for stiff problems; discrete: lives on its steps only, and is no
    approximation of the flow (gradient descent); inertial: for dynamics with momentum only; recorded: no method at all,
    weights that were trained elsewhere; sources: keys of references.bib.
    """

    order: int | None
    explicit: bool
    line: str
    matrix_free: bool = False
    adaptive: bool = True
    keeps_invariants: bool = False
    stabilised: bool = False
    discrete: bool = False
    inertial: bool = False
    recorded: bool = False
    sources: tuple[str, ...] = ()

    @property
    def dense_jacobian(self) -> bool:
        """Whether the method forms and factors the Jacobian as a matrix."""
        return not (self.explicit or self.matrix_free)


class Method(Family):
    """An integrator with its settings: subclasses are frozen dataclasses of settings that JSON can hold.

    A subclass has `kind` (what is known of it) and `begin` (which takes steps), and a field or property `step_size`
    (None: controlled by the fields `rtol` and `atol`). Its class name stands for it in files: a class that is defined
    can be loaded. A line in flowsim.methods.METHODS gives it a name for the command, sweeps and comparisons.

    >>> import flowsim as fs
    >>> method = fs.method_named("projected-rk45", rtol=1e-6)
    >>> method.key, method.kind.order, method.kind.keeps_invariants, method.tolerances
    ('projected-rk45', 5, True, (1e-06, 1e-10))
    >>> fs.Method.described(method.describe()) == method
    True
    """

    takes_single_steps: ClassVar[bool] = False
    """Whether step_by_step gives one step a segment, from any state: what a projection needs."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What is known of the method."""

    @abstractmethod
    def begin(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Integrator:
        """The integrator of the motion, standing at (t, state), bound for t1; state: the weights as one vector, and
        their velocities behind them if the dynamics has any. Raises InputError for a dynamics it is not made for."""

    def step_by_step(self, motion: Motion, t: float, state: np.ndarray, t1: float) -> Movable:
        """As begin (motion, t, state, t1), but with one step a segment, where takes_single_steps."""
        raise InputError(f"Argument `method` must take single steps, to be projected, but {self.name} does not.")

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def key(self) -> str:
        """The name that METHODS lists, in tables and files."""
        return self.name.lower()

    @property
    def settings(self) -> Any:
        """What carries the tolerances or the step size: the method itself, or the one that is projected."""
        return self

    @property
    def tolerances(self) -> tuple[float, float] | None:
        """(rtol, atol) of a step; None where the steps are not controlled."""
        own = self.settings
        return None if own.step_size is not None else (own.rtol, own.atol)

    @property
    def plain_step_size(self) -> float | None:
        """That of plain gradient descent, which certificates are on; None of any other method."""
        return None

    @property
    def edge(self) -> float | None:
        """The curvature beyond which gradient descent is unstable; None of any other method."""
        return None

    @property
    def carries(self) -> bool:
        """Whether it keeps something beside the weights, such as momentum."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether its steps are random: of batches, or with noise."""
        return False

    def for_member(self, k: int) -> Method:
        """The method of member k of an ensemble: where steps are random, with a seed of its own."""
        return self

    @property
    def gain(self) -> float:
        """How much further than for the flow a wrong gradient moves the weights."""
        return 1.0

    @property
    def side_by_side(self) -> bool:
        """Whether many runs by it can be compiled into one (runs.side_by_side)."""
        return False

    def keeps_invariants(self, motion: Motion) -> bool:
        """Whether every D_l(t) = q(t)^2 D_l(0) of the motion is kept to round-off."""
        return self.kind.keeps_invariants and motion.dynamics.keeps_imbalance

    @property
    def compression_tolerances(self) -> tuple[float, float]:
        """(rtol, atol) that the error of a compressed width is held to: the method's own, unless it promises more."""
        if self.kind.keeps_invariants:
            return INVARIANT_RTOL, INVARIANT_ATOL
        return max(self.settings.rtol, LEAST_COMPRESSION_RTOL), self.settings.atol

    def remaining(self, motion: Motion, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(q, q') of a motion: what weight decay leaves of weights that the loss does not reach, at the times t of the
        method's steps, and what is kept of it beside the weights."""
        return motion.remaining(t)

    def step_tolerance(self, size: Number, count: int) -> Number | None:
        """What a step may err by, rtol size + atol count^(1/2), for `count` weights of norm `size`, ||W||_F, or of
        many norms; None where no tolerance controls it."""
        if self.tolerances is None:
            return None
        rtol, atol = self.tolerances
        return rtol * size + atol * count**0.5

    def compile_seconds(self) -> float:
        """Seconds that this thread has spent compiling for methods of this kind; imports what it compiles with."""
        return 0.0

    def start(self, motion: Motion | Problem, t: float, state: np.ndarray, t1: float) -> Guarded:
        """The integrator of the motion (of a problem: its gradient flow), standing at (t, state), which it copies,
        bound for t1; failures are told.

        Raises IntegrationFailure where it cannot start.
        """
        from flowsim.dynamics import as_motion
        from flowsim.methods.guard import Guarded, breakdown

        with breakdown(self.name, t):
            return Guarded(self.begin(as_motion(motion), t, state.copy(), t1), self.name)

    def check_storable(self) -> None:
        """Raises InputError for a setting that no file can hold."""
        for name, value in settings_of(self).items():
            if callable(value):
                raise InputError(
                    f"Argument `{name}` is a function, which a file cannot hold; make it a subclass of"
                    f" flowsim.{name.capitalize()}."
                )

    @classmethod
    def described(cls, record: Mapping[str, Any]) -> Self:
        """The method of a record. Raises InputError, KeyError or TypeError for a foreign one."""
        inner = {"method": Method, "schedule": Schedule}
        settings = {k: inner[k].described(v) if isinstance(v, Mapping) else v for k, v in record.items()}
        return super().described(settings)

    def __str__(self) -> str:
        """Its name, its tolerances, and what differs from the default."""
        values, usual = settings_of(self), {f.name: f.default for f in fields(self)}  # type: ignore[arg-type]
        name = str(values.pop("name", type(self).__name__))
        shown = {k: v for k, v in values.items() if k in TOLD or v != usual[k]}
        settings = [str(v) if isinstance(v, Family) else f"{k} {told(v)}" for k, v in shown.items()]
        return ", ".join([name, *settings])


class Controlled(Protocol):
    """A method with error control, or a step size in its place."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def kind(self) -> Kind:
        """What is known of the method."""
        ...

    @property
    def rtol(self) -> float:
        """The relative tolerance."""
        ...

    @property
    def atol(self) -> float:
        """The absolute tolerance."""
        ...

    @property
    def step_size(self) -> float | None:
        """None: controlled by the tolerances."""
        ...


def check_settings(method: Controlled) -> None:
    """rtol, atol and step_size of a method with error control: none where the order varies too. Raises InputError."""
    as_number(method.rtol, "rtol", least=LEAST_RTOL, most=1.0)
    as_number(method.atol, "atol", least=0.0)
    if method.step_size is None:
        return
    if method.kind.order is None:
        raise InputError(f"Argument `step_size` must be None for {method.name}, which varies its step and order.")
    as_number(method.step_size, "step_size", above=0.0)


@dataclass(frozen=True)
class Tolerated(Method):
    """A method with error control by rtol and atol and no other settings, or with steps of one size."""

    rtol: float = RTOL
    atol: float = ATOL
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def check_step_size(method: Controlled) -> None:
    """Raises InputError where a method without an error estimate has no step size."""
    if not method.kind.adaptive and method.step_size is None:
        raise InputError(f"Argument `step_size` must be given for {method.name}, which has no error estimate.")
