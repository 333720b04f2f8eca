"""Flags that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter, Token

from flowsim.errors import InputError

if TYPE_CHECKING:
    from flowsim import losses
    from flowsim.named_problems import NamedProblem
    from flowsim.network import Network
    from flowsim.problem import Problem

N = TypeVar("N", int, float)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")]
Target = Annotated[Path | None, Parameter(help="Target Y (n x m) as .npy or .csv, or as key Y of an .npz.")]
Data = Annotated[Path | None, Parameter(help="Data X (rows x n) and Y (rows x m) as .npz, or .csv with columns y... .")]
Loss = Annotated[str, Parameter(help="On data: squared, or with labels Y = +-1 exponential or logistic.")]
Mask = Annotated[Path | None, Parameter(help="With a target: weights >= 0 of its entries as .npy, 0 where unseen.")]
WeightDecay = Annotated[float, Parameter(help="x of the objective L + x/2 sum of all squared weights.")]
Dynamics = Annotated[
    str | None, Parameter(help="gradient-flow, heavy-ball:FRICTION, nesterov or modified-flow:STEP_SIZE.")
]
Layers = Annotated[
    str | None, Parameter(help="Of a PyTorch or .safetensors file: the layers in their order, with commas.")
]


def whole(_: object, tokens: Sequence[Token]) -> int:
    """A whole number such as 1000 or 1e3; cyclopts by itself rounds 2.5."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():
            raise
        return int(float(text))


Whole = Parameter(converter=whole)


def numbers(name: str, text: str, kind: Callable[[str], N], example: str) -> tuple[N, ...]:
    """The numbers between the commas of a flag. Raises InputError that shows how it must look."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"Argument `{name}` must look like {example}, but it is {text!r}.") from error


def check_loss_flags(target: Path | None, data: Path | None, kind: str, mask: Path | None) -> None:
    """Refuse flags that contradict each other, before any file is read."""
    from flowsim.checks import as_choice
    from flowsim.losses import LOSSES

    as_choice(kind, "loss", LOSSES)
    if target is not None and data is not None:
        raise InputError("Arguments `--target` and `--data` must not both be given; choose one.")
    if data is not None and mask is not None:
        raise InputError("Arguments `--mask` and `--data` must not both be given; a mask goes with a target.")
    if data is not None and LOSSES[kind].of_data is None:
        raise InputError(f"Argument `--data` must not be given for the {kind} loss: it is made of a target.")
    if mask is not None and kind != "squared":
        raise InputError(f"Argument `--mask` must not be given for the {kind} loss, but for the squared one alone.")
    if data is None and LOSSES[kind].of_target is None:
        raise InputError(f"Argument `--data` must be given for the {kind} loss: X and the labels Y = -1, +1.")


def loss_of(weights: Path, target: Path | None, data: Path | None, kind: str, mask: Path | None) -> losses.Loss | None:
    """The loss that the flags ask for, else a squared loss on key Y of the weights, else None."""
    from flowsim import losses
    from flowsim.files import read_data, read_target

    if data is not None:
        make = losses.LOSSES[kind].of_data
        assert make is not None
        return make(*read_data(data))
    Y = read_target(target if target is not None else weights)
    if Y is None and target is not None:
        raise InputError(f"File {target} must hold the target as key Y, but it does not.")
    if mask is not None:
        seen = read_target(mask)
        if Y is None or seen is None:
            raise InputError(f"File {mask if seen is None else weights} must hold a matrix as key Y, but it does not.")
        return losses.MaskedSquaredLoss(Y, seen)
    of_target = losses.LOSSES[kind].of_target
    return None if Y is None or of_target is None else of_target(Y)


def network_of(weights: Path, layers: str | None) -> Network:
    """The network in a file of weights; of a model's file the layers named."""
    from flowsim.files import read_weights

    return read_weights(weights, layers=None if layers is None else [name.strip() for name in layers.split(",")])


def subject_of(
    subject: str,
    target: Path | None,
    data: Path | None,
    kind: str,
    mask: Path | None,
    layers: str | None,
    weight_decay: float,
) -> Problem | NamedProblem:
    """A named problem, or the problem of a file of weights and the flags."""
    from dataclasses import replace

    from flowsim.checks import as_choice
    from flowsim.named_problems import PROBLEMS, problem_named
    from flowsim.problem import Problem

    if subject in PROBLEMS:
        if any(given is not None for given in (target, data, mask, layers)):
            raise InputError(
                f"Arguments `--target`, `--data`, `--mask` and `--layers` must not be given: {subject} brings its loss"
                " and its network."
            )
        named = problem_named(subject)
        decaying = Problem(named.problem.loss, named.problem.network, weight_decay=weight_decay)
        return replace(named, problem=decaying) if weight_decay else named
    path = Path(subject)
    if not path.exists() and not path.suffix:
        as_choice(subject, "subject", ("a file of weights", *PROBLEMS))
    network, chosen = network_of(path, layers), loss_of(path, target, data, kind, mask)
    if chosen is None:
        raise InputError(f"Argument `--target` or `--data` must be given: {path} has no key Y.")
    return Problem(chosen, network, weight_decay=weight_decay)
