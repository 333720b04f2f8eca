"""What a loss f(W) of the product W, an n x m matrix, has to offer, and the constants that the theorems need.

A loss is any object with `shape`, `value(W)` and `gradient(W)`; that is enough to simulate. What else it declares
(`minimum`, `excess`, `constants`, `minimiser`) lets flowsim stop at a level and certify rates. What all paths use is
`adapting.adapted(loss)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np

from flowsim.checks import as_matrix, as_number
from flowsim.errors import InputError
from flowsim.values import Array, Value, guarded


@dataclass(frozen=True)
class LossConstants:
    """Constants of the assumptions A1, A1' and A2 of Min, Vidal, Mallada (ICML 2023).

    `dominance` names how the gradient dominates the loss: "quadratic" (A1, Polyak-Lojasiewicz),
    ||grad f||_F^2 >= gamma (f - f*); "linear" (A1'), ||grad f||_F >= gamma (f - f*); None: neither holds.
    mu: strong convexity (0 if none); K: smoothness (None if unbounded). A2 (mu > 0) implies A1 with gamma = 2 mu.
    remark: what a certificate with these constants has to say of them, such as that gamma belongs to data of low rank.

    Raises InputError for a negative one, or NaN.

    A user's own loss that declares its constants is certified like flowsim's own; here gamma is half of SquaredLoss's:

    >>> import flowsim as fs
    >>> class Quarter(fs.SquaredLoss):
    ...     constants = fs.LossConstants(gamma=1.0, dominance="quadratic", mu=0.5, K=0.5)
    ...     def excess(self, W): return super().excess(W) / 2
    ...     def gradient(self, W): return super().gradient(W) / 2
    >>> network = fs.LinearNetwork(([[3.0]], [[1.0]]))  # alpha = |3^2 - 1^2| = 8
    >>> problems = [fs.Problem(loss([[2.0]]), network) for loss in (fs.SquaredLoss, Quarter)]
    >>> [round(fs.certify(problem)["theorem-1-A1"].rate, 9) for problem in problems]
    [16.0, 8.0]
    """

    gamma: float | None
    dominance: Literal["quadratic", "linear"] | None
    mu: float = 0.0
    K: float | None = None
    remark: str | None = None

    def __post_init__(self) -> None:
        for name in ("gamma", "mu", "K"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"Argument `{name}` must be a number of at least 0, but it is {value!r}.")


@runtime_checkable
class Loss(Protocol):
    """What a user's own loss must offer, in float64, of one n x m matrix W: every method takes such a loss.

    Written with NumPy it is called back by the methods that jax compiles. Written with jax.numpy (its gradient returns
    jax arrays) it is called in float64 whatever jax's setting, and compiled where it can be traced, as those methods
    need it. It is handed copies of W, and has to be a function of W alone, the same as long as a Problem has it.

    Optional: `minimum` (f*), `minimiser` (W*), `constants` (LossConstants), `excess(W)` (f(W) - f* where that is more
    than a difference), and `hessian_product(W, V)`, the derivative of the gradient at W along V (n x m), which implicit
    methods, RKC and GaussLegendre use; else it comes from jax, or for NumPy from central differences of the gradient,
    to about ten digits for a smooth f; and `with_data(data)`, the loss of other arrays by name, which vector_field and
    FlowMap use where their `args` name any. None stands for what is not known. A subclass of one of flowsim's losses is
    a loss of the user's own: where it overrides value, gradient or excess, of the optional ones only those count that
    it declares with them or below, and an `excess` of its own vouches for the minimum.

    A Problem calls it at the initial product and raises InputError where it does not keep to this: values that are no
    finite real numbers, gradients that are no finite real n x m matrices, other precision than float64, a `minimum`
    above f(W). Where it fails later on, the simulation ends there as "diverged", and its message says why.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> class PseudoHuber:
    ...     shape = (2, 1)
    ...     def value(self, W): return float((np.sqrt(1 + (W - 1) ** 2) - 1).sum())
    ...     def gradient(self, W): return (W - 1) / np.sqrt(1 + (W - 1) ** 2)
    >>> flow = fs.simulate(fs.Problem(PseudoHuber(), fs.fan_in((2, 4, 1), seed=0)), t1=20.0)
    >>> isinstance(PseudoHuber(), fs.Loss), bool(flow.loss[-1] < 1e-6), fs.certify(flow.problem).best
    (True, True, None)
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m), the shape of the product W."""
        ...

    def value(self, W: Array, /) -> Array:
        """f(W), a scalar."""
        ...

    def gradient(self, W: Array, /) -> Array:
        """grad f(W), an n x m matrix."""
        ...


class StackedLoss(Loss, Protocol):
    """What all paths use of a loss, flowsim's own or a user's as `adapted` makes it: it serves stacks (..., n, m)."""

    def excess(self, W: Array, /) -> Array:
        """f(W) - f*, f(W) where f* is unknown: (...)."""
        ...

    def hessian_product(self, W: Array, V: Array, /) -> Array:
        """The derivative of grad f at W along V: (..., n, m)."""
        ...


class BuiltIn(Value, ABC):
    """Base of flowsim's own losses: their attributes are arrays and numbers, and they serve stacks (..., n, m) too.

    Their code is array arithmetic over the last two axes, the same for NumPy and jax arrays. They are frozen values:
    what they were made from is copied (`flowsim.values.frozen`), an attribute is set once.
    """

    kept: ClassVar[tuple[str, ...]]
    """The names of its parts."""
    data_parts: ClassVar[Mapping[str, str]]
    """The constructor's name of an array -> the part that it becomes."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise AttributeError(f"{type(self).__name__} is a frozen value: {name} cannot be set again; make another.")
        super().__setattr__(name, value)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, m), the shape of the product W."""

    @abstractmethod
    def value(self, W: Array) -> Array:
        """f(W); W may be a stack (..., n, m)."""

    @abstractmethod
    def gradient(self, W: Array) -> Array:
        """grad f(W); W may be a stack (..., n, m)."""

    @abstractmethod
    def excess(self, W: Array) -> Array:
        """f(W) - f* (f(W) where f* is unknown); W may be a stack (..., n, m)."""

    @abstractmethod
    def hessian_product(self, W: Array, V: Array) -> Array:
        """The derivative of grad f at W along V, which may be a stack (..., n, m)."""

    def parts(self) -> dict[str, Any]:
        """All that the loss consists of, arrays and numbers by name."""
        return {name: vars(self)[name] for name in self.kept}

    def with_data(self, data: Mapping[str, Array]) -> Self:
        """The loss of other data, by the constructor's names: arrays of one library, jax's tracers too, of the shapes
        that the loss has. Raises InputError for another shape; the entries are not looked at."""
        parts = self.parts()
        for name, array in data.items():
            part = self.data_parts[name]
            if array.shape != parts[part].shape:
                raise InputError(
                    f"Argument `args` must have {name} of shape {parts[part].shape}, as the loss has, but it is of"
                    f" shape {array.shape}."
                )
            parts[part] = array
        return self.from_parts(parts)

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Self:
        """The loss with these parts, unchecked, and arrays among them made read-only."""
        loss = object.__new__(cls)
        for name, part in parts.items():
            vars(loss)[name] = guarded(part) if isinstance(part, np.ndarray) else part
        return loss

    @classmethod
    def restored(cls, parts: Mapping[str, Any]) -> Self:
        """The loss with the parts that a file holds. Raises InputError where they are not those of such a loss."""
        try:
            loss = cls.from_parts(parts)
        except KeyError as error:
            raise InputError(f"A {cls.__name__} must have the part {error}, but it is missing.") from error
        if set(vars(loss)) != set(cls.kept):
            found = ", ".join(sorted(vars(loss))) or "none"
            raise InputError(f"A {cls.__name__} must have the parts {', '.join(cls.kept)}, but it has {found}.")
        for name, part in loss.parts().items():
            if isinstance(part, np.ndarray):
                as_matrix(part, name)
            else:
                as_number(part, name)
        loss.check()
        return loss

    def check(self) -> None:
        """Refuse parts, finite matrices and numbers by their names, that no such loss has. Raises InputError."""
        wanted = self.shape
        try:
            found = np.shape(self.gradient(np.zeros(wanted)))
        except ValueError:
            found = ()
        if found != wanted:
            raise InputError(f"The parts of a {type(self).__name__} must fit each other, but their shapes do not.")
