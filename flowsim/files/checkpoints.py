"""Trained models: PyTorch state_dicts and .safetensors files, read as stacks of Linear layers without bias."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.errors import ConversionNotice, InputError
from flowsim.files.arrays import is_zip
from flowsim.files.opening import LARGEST_FILE, check_readable, listed, opened

Torch = Any
"""The module torch, which need not be there."""
TORCH_ENDINGS = (".pt", ".pth", ".ckpt", ".bin")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
"""Keys under which training loops keep the state_dict; taken first where there are others."""
SAFE_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""What is read from .safetensors; other formats are narrower than anything worth simulating."""


def is_own(tensors: Mapping[str, object]) -> bool:
    """Whether the names are flowsim's own, W1, W2, ..., whose matrices are taken as they are."""
    return "W1" in tensors


def own_arrays(path: Path, limit: int = LARGEST_FILE) -> Mapping[str, np.ndarray]:
    """The arrays of a .safetensors file in flowsim's own convention; none of any other."""
    tensors = read_safetensors(path, limit)
    return tensors if is_own(tensors) else {}


def read_safetensors(path: Path, limit: int = LARGEST_FILE) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file in the natural order of their names; bfloat16 becomes float32.

    Raises InputError when the file is missing, damaged, too large, or holds tensors of another kind.
    """
    from safetensors import SafetensorError, safe_open

    check_readable(path, limit)
    try:
        with safe_open(path, framework="numpy") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in sorted(file.keys(), key=_natural)}
            _check_kinds(path, kinds)
            if "BF16" in kinds.values():
                return _widened(path, list(kinds), limit)
            return {name: file.get_tensor(name) for name in kinds}
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"File {path} must be a .safetensors file, but it is truncated, damaged or something else."
        ) from error


def _check_kinds(path: Path, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if kind not in SAFE_TYPES:
            raise InputError(f"File {path} must hold real numbers, but `{name}` is of type {kind}; save it as float64.")


def _widened(path: Path, names: list[str], limit: int) -> dict[str, np.ndarray]:
    """All tensors where some are bfloat16, which NumPy does not know: the upper halves of float32."""
    from safetensors import deserialize, safe_open

    with opened(path, limit) as stream:
        raw = dict(deserialize(stream.read()))
    tensors = {}
    with safe_open(path, framework="numpy") as file:
        for name in names:
            if raw[name]["dtype"] == "BF16":
                halves = np.frombuffer(raw[name]["data"], "<u2").astype("<u4") << 16
                tensors[name] = halves.view("<f4").reshape(raw[name]["shape"])
            else:
                tensors[name] = file.get_tensor(name)
    return tensors


def read_state_dict(path: Path, limit: int = LARGEST_FILE) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch state_dict in its order, mapped into memory; torch.load with weights_only, no pickle.

    A dictionary that keeps it under `state_dict`, `model` or another key will do, where only one key has a state_dict,
    or only one of WRAPPERS. Raises InputError without PyTorch, and when the file is missing, damaged, too large, or
    holds anything else.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"File {path} needs PyTorch to be read: pip install torch.") from error
    _check_archive(path, limit)
    found = _loaded(path, torch)
    while key := _wrapper(path, found, torch):
        found = found[key]
    if not isinstance(found, dict):
        raise InputError(f"File {path} must hold a state_dict, but it holds a {type(found).__name__}; {REMEDY}.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"File {path} must hold tensors by name, but `{name}` is none; {REMEDY}.")
    return {name: _as_array(path, name, tensor, torch) for name, tensor in found.items()}


def _wrapper(path: Path, found: object, torch: Torch) -> Any:
    """The key under which a dictionary keeps the state_dict; None where it is one, or there is none."""
    if not isinstance(found, dict) or all(isinstance(value, torch.Tensor) for value in found.values()):
        return None
    keys = [key for key, value in found.items() if _has_state_dict(value, torch)]
    chosen = [key for key in keys if key in WRAPPERS] or keys
    if len(chosen) > 1:
        raise InputError(
            f"File {path} must hold one state_dict, but it holds {listed(map(str, chosen))}; save the one meant."
        )
    return chosen[0] if chosen else None


def _has_state_dict(value: object, torch: Torch) -> bool:
    """Whether it is a dictionary of tensors, or has one under a key of WRAPPERS."""
    if not isinstance(value, dict) or not value:
        return False
    tensors = all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in value.items())
    return tensors or any(_has_state_dict(value.get(key), torch) for key in WRAPPERS)


REMEDY = "save model.state_dict() with torch.save"


def _check_archive(path: Path, limit: int) -> None:
    """Refuse what torch.save does not write: it stores its records in a zip, uncompressed."""
    check_readable(path, limit)
    if not is_zip(path):
        raise InputError(
            f"File {path} must be a file of PyTorch 1.6 or later, but it is older, truncated, damaged or something"
            f" else; {REMEDY}."
        )
    try:
        with opened(path, limit) as stream, zipfile.ZipFile(stream) as archive:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
            declared = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"File {path} must be a PyTorch file, but it is truncated or damaged; {REMEDY}.") from error
    if not stored or declared > path.stat().st_size:
        raise InputError(
            f"File {path} must be stored as torch.save does, but it is packed: {declared} bytes; {REMEDY}."
        )


def _loaded(path: Path, torch: Torch) -> Any:
    from pickle import UnpicklingError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise InputError(
                f"File {path} holds Python objects beyond tensors, which are never loaded; {REMEDY}."
            ) from error
        except Exception as error:  # torch's readers raise all kinds for damaged files
            raise InputError(
                f"File {path} must be a PyTorch file, but it is truncated, damaged or something else; {REMEDY}."
            ) from error


def _as_array(path: Path, name: str, tensor: Any, torch: Torch) -> np.ndarray:
    """A tensor as an array on the same memory; formats that NumPy does not know are converted with a notice."""
    what = f"File {path} must hold dense tensors, but `{name}`"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InputError(f"{what} is sparse, quantized or empty of values; save it dense, with .to_dense().")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{what} is a view that repeats its entries; save it with .contiguous().")
    try:
        return np.asarray(tensor.detach().numpy())
    except TypeError:
        warnings.warn(f"`{name}` was converted from {tensor.dtype} to float64.", ConversionNotice, stacklevel=2)
        return np.asarray(tensor.detach().to(torch.float64).numpy())


def linear_layers(
    path: Path, tensors: Mapping[str, np.ndarray], named: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The (out, in) matrices of a stack of Linear layers by name, input side first; a notice says how they are taken.

    named: the layers and their order. Without it the order is that of the numbers in names that differ in numbers alone
    (fc1.weight, fc2.weight), else the only one in which the shapes chain.
    Raises InputError for anything but matrices called `weight` that chain, and biases of zeros; and where more than one
    order is possible.
    """
    wanted = tensors if named is None else _with_biases(path, tensors, named)
    layers = {name: value for name, value in wanted.items() if not _is_zero_bias(path, name, value)}
    if not layers:
        raise InputError(f"File {path} must hold Linear layers such as `0.weight`, but it holds {listed(tensors)}.")
    for name, value in layers.items():
        _check_layer(path, name, value)
    if named is None:
        layers = _ordered(path, layers)
    for (left, A), (right, B) in pairwise(layers.items()):
        if A.shape[0] != B.shape[1]:
            raise InputError(
                f"File {path} must hold layers that chain, but `{left}` has {A.shape[0]} outputs and `{right}` takes"
                f" {B.shape[1]} inputs; rename the layers in their order, keep Linear ones only, or name them in their"
                " order: layers=[...] or --layers."
            )
    dropped, unused = len(wanted) - len(layers), [name for name in tensors if name not in wanted]
    zeros = f"; {dropped} bias{'es' if dropped > 1 else ''} of zeros dropped" if dropped else ""
    rest = f"; {listed(unused)} not used" if unused else ""
    warnings.warn(
        f"{path}: Linear layers {', '.join(layers)} were taken in this order without activations and transposed,"
        f" W_l = weight_l.T{zeros}{rest}.",
        ConversionNotice,
        stacklevel=2,
    )
    return layers


def _with_biases(path: Path, tensors: Mapping[str, np.ndarray], named: Sequence[str]) -> dict[str, np.ndarray]:
    """The tensors of the named layers in that order, each by its name, with or without `.weight` or what is before it,
    and their biases."""
    found: dict[str, np.ndarray] = {}
    for name in named:
        full = name if name.endswith("weight") else f"{name}.weight"
        matches = [key for key in tensors if key == full] or [key for key in tensors if key.endswith(f".{full}")]
        if len(matches) != 1 or matches[0] in found:
            why = "is none" if not matches else "is named twice" if len(matches) == 1 else f"may be {listed(matches)}"
            raise InputError(
                f"Argument `layers` must name layers of {path}, but {name!r} {why}; it holds {listed(tensors)}."
            )
        bias = f"{matches[0].removesuffix('weight')}bias"
        found |= {key: tensors[key] for key in (matches[0], bias) if key in tensors}
    return found


def _ordered(path: Path, layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The layers in the one order that their names or shapes tell. Raises InputError where there are several."""
    kinds = {re.sub(r"[0-9]+", "#", name) for name in layers}
    by_number = sorted(layers, key=_natural)
    if len(kinds) == 1 and len({str(_natural(name)) for name in layers}) == len(layers):
        numbered = {name: layers[name] for name in by_number}
        if list(layers) == by_number or not (_chains(layers) and _chains(numbered)):
            return numbered
        orders = [tuple(by_number), tuple(layers)]
    else:
        orders = list(islice(_orders(layers), 2)) if len(layers) <= MOST_SEARCHED else [tuple(layers)] * 2
    if len(orders) > 1:
        raise InputError(
            f"File {path} must hold layers in a plain order, but {listed(layers)} may chain in more than one; name them"
            " in their order, input side first: layers=[...] or --layers."
        )
    return {name: layers[name] for name in (orders[0] if orders else layers)}


def _chains(layers: Mapping[str, np.ndarray]) -> bool:
    return all(A.shape[0] == B.shape[1] for A, B in pairwise(layers.values()))


def _orders(layers: Mapping[str, np.ndarray], first: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All orders in which the layers chain, behind the first ones."""
    if len(first) == len(layers):
        yield first
    for name, value in layers.items():
        if name not in first and (not first or layers[first[-1]].shape[0] == value.shape[1]):
            yield from _orders(layers, (*first, name))


MOST_SEARCHED = 12
"""Among more layers than this no order is searched."""


def _is_zero_bias(path: Path, name: str, value: np.ndarray) -> bool:
    if name.rpartition(".")[2] != "bias":
        return False
    if np.any(value):
        raise InputError(
            f"File {path} must hold layers without bias, but `{name}` is not zero; train with Linear(..., bias=False)."
        )
    return True


def _check_layer(path: Path, name: str, value: np.ndarray) -> None:
    kind = {0: "a number", 1: "a vector, as of a norm layer", 2: "a matrix"}.get(value.ndim, "as of a convolution")
    if name.rpartition(".")[2] != "weight" or value.ndim != 2:
        raise InputError(
            f"File {path} must hold Linear layers only, matrices called weight, but `{name}` has shape {value.shape}"
            f" ({kind}); keep the linear part of the model."
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers within names compare as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if k % 2 else (0, part) for k, part in enumerate(parts)]
