"""Weights: read in flowsim's own convention or PyTorch's, written as .npz."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from flowsim.checks import as_matrix, as_number
from flowsim.compression import CompressedNetwork, redrawn
from flowsim.errors import ConversionNotice, InputError
from flowsim.files.arrays import map_folder, read_npz
from flowsim.files.checkpoints import TORCH_ENDINGS, is_own, linear_layers, read_safetensors, read_state_dict
from flowsim.files.opening import LARGEST_FILE, is_folder, listed, named
from flowsim.files.writing import write_atomically
from flowsim.network import LinearNetwork
from flowsim.values import Json

LAYER = re.compile(r"W([1-9][0-9]{0,5})")
BIAS = re.compile(r"(?i)b[0-9]*|.*bias.*")
OWN = {"scale", "origin", "X", "Y"}
"""The keys that a file of weights may hold beside W1..WL."""


def read_weights(
    path: str | Path, limit: int = LARGEST_FILE, *, layers: Sequence[str] | None = None
) -> LinearNetwork | CompressedNetwork:
    """The network in a file: by its ending .safetensors, or .pt, .pth, .ckpt, .bin, else .npz, or a folder.

    path: of the file or folder; limit: of its bytes.

    .npz and folders: keys W1..WL, W_l of shape h_{l-1} x h_l, and optionally `scale`; biases are refused.
    A folder with W1.npy .. WL.npy is mapped into memory rather than read: it may be larger than the memory. A file that
    `flowsim initialize --compressed` wrote gives the network in compressed form.

    .pt, .pth, .ckpt, .bin: a PyTorch state_dict, also under a key such as `model`, never a pickled module;
    .safetensors: the same, or keys W1..WL as above. Their Linear layers without bias hold (out, in) matrices A_l and
    map x to A_L ... A_1 x, so that W_l = A_l^T: then X W_1 ... W_L is the model applied to the rows of X. Layers come
    in the order of the numbers in their names (fc1.weight, fc2.weight), or in the only order in which their shapes
    chain; where there are several, and for a part of a model, `layers` names them in their order, with or without
    `.weight` and what is before their own names. Activations are in no such file: the layers are taken as linear.

    Raises InputError when the file is missing, damaged, too large, or does not hold a network, or holds layers whose
    order is not plain.

    >>> import tempfile
    >>> import flowsim as fs
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     fs.save_weights(file.name, fs.fan_out((5, 300, 500, 1), seed=0))
    ...     fs.read_weights(file.name)
    LinearNetwork(dims (5, 300, 500, 1), scale 1, fan_out)
    """
    path = Path(path)
    ending = path.suffix.lower()
    if isinstance(layers, str):
        raise InputError(f"Argument `layers` must be a list of names, but it is {layers!r}.")
    if is_folder(path):
        arrays: Mapping[str, np.ndarray] = map_folder(path)
    elif ending in TORCH_ENDINGS or ending == ".safetensors":
        arrays = (read_safetensors if ending == ".safetensors" else read_state_dict)(path, limit)
        if layers is not None or not is_own(arrays):
            return _foreign(path, arrays, layers)
    else:
        arrays = read_npz(path, limit)
    if layers is not None:
        raise InputError(f"Argument `layers` must not be given for {path}, which holds W1, W2, ... in their order.")
    return _own(path, arrays)


def _own(path: Path, arrays: Mapping[str, np.ndarray]) -> LinearNetwork | CompressedNetwork:
    """The network of arrays W1..WL, or of a recipe."""
    if "recipe" in arrays:
        return _follow(arrays["recipe"], path)
    layers = sorted(int(found[1]) for key in arrays if (found := LAYER.fullmatch(key)))
    if not layers:
        rename = "; rename them" if any(LAYER.fullmatch(key.upper()) for key in arrays) else ""
        raise InputError(f"File {path} must hold the weights as W1, W2, ..., but it holds {listed(arrays)}{rename}.")
    _check_rest(path, [key for key in arrays if not LAYER.fullmatch(key) and key not in OWN])
    if layers != list(range(1, len(layers) + 1)):
        held = ", ".join(f"W{layer}" for layer in layers[:8]) + (", ..." if len(layers) > 8 else "")
        raise InputError(
            f"File {path} must hold all of W1 to W{layers[-1]}, but it holds {held}; add or rename layers."
        )
    with named(path):
        weights = tuple(as_matrix(arrays[f"W{layer}"], f"W{layer}") for layer in layers)
        scale = as_number(arrays["scale"], "scale", above=0.0) if "scale" in arrays else 1.0
        return LinearNetwork(weights, scale, _origin(arrays))


def _check_rest(path: Path, keys: list[str]) -> None:
    """Refuse biases, tell of other keys. Raises InputError."""
    if biases := [key for key in keys if BIAS.fullmatch(key)]:
        raise InputError(
            f"File {path} must hold layers without biases, but it holds {listed(biases)}; leave them out if they are 0."
        )
    if keys:
        warnings.warn(f"File {path}: {listed(keys)} not used.", ConversionNotice, stacklevel=4)


def _foreign(path: Path, tensors: Mapping[str, np.ndarray], named_layers: Sequence[str] | None) -> LinearNetwork:
    """The network of a stack of Linear layers."""
    layers = linear_layers(path, tensors, named_layers)
    with named(path):
        weights = tuple(as_matrix(layer, name).T for name, layer in layers.items())
        return LinearNetwork(weights, origin={"layers": list(layers)})


def save_weights(
    path: str | Path, network: LinearNetwork | CompressedNetwork, target: np.ndarray | None = None
) -> None:
    """Write W1..WL, scale, origin and, if given, the target Y as .npz. Raises InputError when it cannot be written.

    path: of the file.

    Of a network drawn in compressed form the file keeps how it was drawn: that is all it takes, and it fits any width.
    Raises InputError for one that was drawn from a generator, whose state is not known.

    >>> import tempfile
    >>> import flowsim as fs
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     fs.save_weights(file.name, fs.sample_compressed("fan_out", (5, 10**9, 1), seed=0))
    ...     fs.read_weights(file.name).dims
    (5, 1000000000, 1)
    """
    if isinstance(network, CompressedNetwork) and network.origin.get("form") == "sampled":
        if network.origin["seed"] is None:
            raise InputError(
                "Argument `network` was drawn from a generator and cannot be kept as a recipe; draw it from a seed."
            )
        with write_atomically(path) as place, open(place, "wb") as stream:
            np.savez(stream, recipe=np.array(json.dumps({**network.origin, "steps": network.steps})))
        return
    arrays = {f"W{layer}": W for layer, W in enumerate(network.weights, start=1)}
    if target is not None:
        arrays["Y"] = target
    origin = np.array(json.dumps(dict(network.origin)))
    with write_atomically(path) as place, open(place, "wb") as stream:
        np.savez(stream, scale=np.array(network.scale), origin=origin, **arrays)  # type: ignore[arg-type]


def _follow(recipe: np.ndarray, path: str | Path) -> CompressedNetwork:
    """The network that was drawn in compressed form as the recipe says."""
    try:
        origin = json.loads(str(recipe[()]))
        with named(path):
            return redrawn(origin, origin["steps"])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"File {path} must say how its network was drawn, but its recipe is damaged.") from error


def _origin(arrays: Mapping[str, np.ndarray]) -> Json:
    """The network's own account of where it came from; none where it is no plain JSON object."""
    try:
        origin = json.loads(str(arrays["origin"]), parse_constant=_no_constant) if "origin" in arrays else {}
    except (ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
