"""One vocabulary of checks. Every sentence reads: "Argument `x` must ..., but ...; what to do."."""

from __future__ import annotations

import itertools
import math
import operator
import os
import reprlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from flowsim.errors import ConversionNotice, InputError
from flowsim.values import Layer, frozen, sealed

CHECK_BLOCK = 2**20
"""Large arrays are checked in blocks of about this many entries."""

WIDEST = 2**53
"""The widest layer: beyond, float64 does not count."""
SHORT = reprlib.Repr()
SHORT.maxstring, SHORT.maxlong, SHORT.maxother = 60, 30, 60
"""How much of a value a sentence tells."""
ALWAYS_THERE = 2**20
"""So many bytes every machine has: how many more there are need not be asked."""
UNKNOWN_MEMORY = 2**34
"""What a machine that does not tell its memory is taken to have (16 GiB)."""


def memory_bytes() -> int:
    """The memory of this machine, or of the container where that has less."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        machine = UNKNOWN_MEMORY
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return machine


def check_memory(needed: float, name: str, value: object, remedy: str) -> None:
    """Refuse, before it is allocated, what `needed` bytes are estimated for and the memory cannot hold."""
    if needed <= ALWAYS_THERE:
        return
    there, needed = memory_bytes(), float(min(needed, sys.float_info.max))
    if needed > there:
        raise InputError(
            f"Argument `{name}` must fit the memory of {there / 2**30:.3g} GiB, but {value} would take about"
            f" {needed / 2**30:.3g} GiB; {remedy}."
        )


def as_float_array(value: object, name: str) -> np.ndarray:
    """`value` as a finite float64 array; integers, booleans and other real floats are converted with a notice.

    The array may share its memory with `value`: what keeps it takes frozen(array).
    Raises InputError for masked arrays, and for complex, text, object, ragged, NaN or infinite entries.
    """
    refuse_masked(value, name)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"Argument `{name}` must be an array of real numbers, but it is ragged or mixed.") from error
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"Argument `{name}` must hold real numbers, but its dtype is {array.dtype}; convert it to float64."
        )
    if array.dtype != np.float64:
        if isinstance(value, np.ndarray):
            warnings.warn(f"`{name}` was converted from {array.dtype} to float64.", ConversionNotice, stacklevel=3)
        array = array.astype(np.float64)
    bad = _count_bad(array)
    if bad:
        raise InputError(
            f"Argument `{name}` must be finite, but {bad} of its {array.size} entries are NaN or infinite;"
            " clean the data first."
        )
    return array


def refuse_masked(value: object, name: str) -> None:
    """Refuse a masked array of NumPy, also in a list: the mask would be lost."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise InputError(
            f"Argument `{name}` must be a plain array, but it is masked; for a target that is seen in part"
            " MaskedSquaredLoss(Y.data, mask=~np.ma.getmaskarray(Y)) takes the mask, else fill it."
        )


def _count_bad(array: np.ndarray) -> int:
    """How many entries are NaN or infinite; a large array is read in blocks, so that nothing of its size is made."""
    if array.size <= CHECK_BLOCK or array.ndim == 0:
        return int(array.size - np.isfinite(array).sum())
    rows = max(1, CHECK_BLOCK // (array.size // len(array)))
    return sum(int((~np.isfinite(array[start : start + rows])).sum()) for start in range(0, len(array), rows))


def as_layer(value: object, name: str) -> Layer:
    """A weight matrix that may also be a scipy sparse matrix or LinearOperator (real, not empty), else as_matrix; what
    is given as entries is frozen."""
    if isinstance(value, (np.ndarray, list, tuple)) or not hasattr(value, "shape"):
        return frozen(as_matrix(value, name))
    from scipy.sparse import csr_array, issparse
    from scipy.sparse.linalg import LinearOperator

    if issparse(value):
        sparse = csr_array(value, copy=True)
        sparse.sum_duplicates()
        sparse.data = as_float_array(sparse.data, name)
        for part in (sparse.data, sparse.indices, sparse.indptr):
            sealed(part)
        return sparse
    if not isinstance(value, LinearOperator):
        return frozen(as_matrix(value, name))
    if np.dtype(value.dtype).kind not in "fiub" or 0 in value.shape:
        raise InputError(
            f"Argument `{name}` must be a real, non-empty operator, but it has dtype {value.dtype} and shape"
            f" {value.shape}."
        )
    return value


def as_matrix(value: object, name: str, shape: tuple[int | None, int | None] = (None, None)) -> np.ndarray:
    """`value` as a non-empty finite float64 matrix; `shape` fixes the axes that are not None."""
    array = as_float_array(value, name)
    if array.ndim != 2:
        raise InputError(
            f"Argument `{name}` must be a matrix (2 axes), but it has shape {array.shape}; reshape it first."
        )
    if array.size == 0:
        raise InputError(f"Argument `{name}` must not be empty, but it has shape {array.shape}.")
    if any(want is not None and want != have for want, have in zip(shape, array.shape, strict=True)):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"Argument `{name}` must have shape {wanted}, but it has shape {array.shape}.")
    return array


def as_number(
    value: SupportsFloat | str,
    name: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a finite float with above < value < below, least <= value <= most."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"Argument `{name}` must be a number, but it is {value!r}.") from error
    if not math.isfinite(number):
        raise InputError(f"Argument `{name}` must be finite, but it is {number}.")
    if number <= above:
        raise InputError(f"Argument `{name}` must be greater than {above:g}, but it is {number:g}.")
    if number < least:
        raise InputError(f"Argument `{name}` must be at least {least:g}, but it is {number:g}.")
    if number > most:
        raise InputError(f"Argument `{name}` must be at most {most:g}, but it is {number:g}.")
    if number >= below:
        raise InputError(f"Argument `{name}` must be less than {below:g}, but it is {number:g}.")
    return number


def as_count(value: Any, name: str, least: int = 1) -> int:
    """`value` as an integer >= least."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise InputError(f"Argument `{name}` must be a whole number, but it is {value!r}.") from error
    if isinstance(value, bool) or count < least:
        raise InputError(f"Argument `{name}` must be at least {least}, but it is {value}.")
    return count


def as_dims(dims: object, name: str = "dims") -> tuple[int, ...]:
    """Layer sizes (h_0, ..., h_L), L >= 2, each at least 1, hidden widths at least min(h_0, h_L)."""
    if not isinstance(dims, Iterable) or isinstance(dims, str):
        raise InputError(f"Argument `{name}` must be a list of sizes such as (5, 300, 500, 1), but it is {dims!r}.")
    sizes = tuple(as_count(size, f"{name}[{index}]") for index, size in enumerate(dims))
    if len(sizes) < 3:
        raise InputError(
            f"Argument `{name}` must name at least three sizes (input, hidden, output), but it has {len(sizes)}."
        )
    if max(sizes) > WIDEST:
        raise InputError(f"Argument `{name}` must have sizes of at most {WIDEST}, but the largest is more.")
    needed = min(sizes[0], sizes[-1])
    if min(sizes[1:-1]) < needed:
        raise InputError(
            f"Argument `{name}` must have hidden widths of at least min(input, output) = {needed},"
            f" but the narrowest is {min(sizes[1:-1])}; widen it, else the product cannot reach every target."
        )
    return sizes


def as_choice(value: object, name: str, known: Iterable[str]) -> str:
    """`value` if it is one of `known`; otherwise an InputError that lists them and the nearest."""
    options = list(known)
    if value in options:
        return value
    plain = {option.casefold(): option for option in options}
    near = get_close_matches(str(value).casefold(), plain, n=1, cutoff=0.6)
    hint = f" (did you mean {plain[near[0]]}?)" if near else ""
    raise InputError(f"Argument `{name}` must be one of {', '.join(options)}, but it is {shortened(value)}{hint}.")


def mistake(entry: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """What one entry of pydantic's errors() says, in our words."""
    name = str(entry["loc"][-1]) if entry["loc"] else ""
    if entry["type"] == "missing":
        return "must be given"
    if entry["type"] == "extra_forbidden":
        near = get_close_matches(name, list(known), n=1, cutoff=0.6)
        return "is not known" + (f" (did you mean {near[0]}?)" if near else "; leave it out")
    if entry["type"] == "value_error":
        return str(entry["msg"]).removeprefix("Value error, ")
    return f"{str(entry['msg']).replace('Input should', 'must')}, but it is {shortened(entry['input'])}"


def shortened(value: object) -> str:
    """The value's repr, its middle left out where it is long."""
    return SHORT.repr(value)


def check_schema(found: object, known: int, what: str) -> None:
    """Refuse what a newer flowsim wrote, and what is no schema."""
    if type(found) is not int or found < 1:
        raise InputError(f"{what} must have a schema from 1 on, but it has {shortened(found)}; it is damaged.")
    if found > known:
        raise InputError(f"{what} has schema {shortened(found)}, but this flowsim reads up to {known}; update flowsim.")


def check_chain(weights: Sequence[np.ndarray]) -> None:
    """Refuse fewer than two layers, or layers whose shapes do not chain."""
    if len(weights) < 2:
        raise InputError(f"Argument `weights` must hold at least two layers W1, W2, but it holds {len(weights)}.")
    for layer, (left, right) in enumerate(itertools.pairwise(weights), start=1):
        if left.shape[1] != right.shape[0]:
            raise InputError(
                f"Argument `weights` must chain, but W{layer} has shape {left.shape} and W{layer + 1} has shape"
                f" {right.shape}: the columns of one must equal the rows of the next; transpose or reorder the layers."
            )
