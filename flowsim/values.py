"""Frozen values: nobody can write to their arrays, and what they compute on demand is no part of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

Array = Any
"""An array of NumPy's or of jax's, or what jax traces in its place: no type of either library covers the three."""
Layer = Any
"""A layer's weights: an array, or for a hidden one scipy's sparse matrix or LinearOperator, which have no stubs."""
Json = dict[str, Any]
"""What json.dumps takes and json.loads or tomllib gives; what is in it is of no known type until looked at."""


def frozen(array: np.ndarray) -> np.ndarray:
    """The array for good: itself where it is read-only down to the memory that it lies in, else a read-only copy.

    Read-only like that are a memory map opened with mode "r", which is never copied, and arrays that were made so.
    """
    if _is_read_only(array):
        return array
    return sealed(np.array(array, copy=True, subok=False))


def sealed(array: np.ndarray) -> np.ndarray:
    """A new array, which nobody else has, made read-only: `frozen` keeps it as it is."""
    array.flags.writeable = False
    return array


def guarded(array: np.ndarray) -> np.ndarray:
    """A view of the array that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


class Settled(dict[str, Any]):
    """A dictionary that cannot be changed."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("it belongs to a frozen value and cannot be changed; dict(...) makes a copy")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[object, ...]:
        return settled, (dict(self),)


def settled(mapping: Mapping[str, Any]) -> Settled:
    """A copy of a mapping of plain values that cannot be changed; lists in it become tuples."""
    return Settled({name: _plain(value) for name, value in mapping.items()})


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return settled(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _is_read_only(array: np.ndarray) -> bool:
    memory: Any = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return False
        memory = memory.base
    if memory is None:
        return True
    try:
        return memoryview(memory).readonly
    except TypeError:  # some other library's memory, of which nothing is known
        return False


class Value:
    """Base of frozen values: copies, pickles and hashes of pickles leave out what a cached_property has kept.

    After a pickle or a copy the arrays are read-only again.
    """

    def __getstate__(self) -> dict[str, object]:
        kept = _cached(type(self))
        return {name: value for name, value in vars(self).items() if name not in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update({name: _closed(value) for name, value in state.items()})


def _cached(kind: type) -> frozenset[str]:
    return frozenset(
        name for base in kind.__mro__ for name, value in vars(base).items() if isinstance(value, cached_property)
    )


def _closed(value: object) -> object:
    """Arrays read-only, also in tuples and in sparse matrices."""
    if isinstance(value, np.ndarray):
        return sealed(value)
    if type(value) is tuple:
        return tuple(map(_closed, value))
    for name in ("data", "indices", "indptr") if hasattr(value, "indptr") else ():
        sealed(getattr(value, name))
    return value
