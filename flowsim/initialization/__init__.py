"""Initial weights: Gaussian schemes, orthogonal and balanced ones, and weights with a prescribed imbalance."""

from __future__ import annotations

from collections.abc import Sequence

from flowsim.checks import as_choice
from flowsim.errors import InputError
from flowsim.initialization.random import (
    GAUSSIAN,
    Seed,
    balanced,
    check_seed,
    fan_in,
    fan_out,
    generator_of,
    ntk,
    origin_of,
    orthogonal,
    xavier,
)
from flowsim.initialization.random import SCHEMES as RANDOM
from flowsim.initialization.structured import (
    WITH_SETTINGS,
    diagonal,
    homogeneous,
    lambda_balanced,
    spectral,
    unimodal,
)
from flowsim.network import LinearNetwork

SCHEMES = {**RANDOM, "spectral": spectral, "diagonal": diagonal}
"""Schemes that need dims, seed and scale only."""

__all__ = [
    "GAUSSIAN",
    "SCHEMES",
    "WITH_SETTINGS",
    "Seed",
    "balanced",
    "check_seed",
    "diagonal",
    "fan_in",
    "fan_out",
    "generator_of",
    "homogeneous",
    "initialize",
    "lambda_balanced",
    "ntk",
    "origin_of",
    "orthogonal",
    "spectral",
    "unimodal",
    "xavier",
]


def initialize(
    scheme: str, dims: Sequence[int], *, seed: Seed, scale: float = 1.0, **settings: object
) -> LinearNetwork:
    """The scheme of that name (a key of SCHEMES or WITH_SETTINGS); settings: what it needs besides.

    dims: layer sizes (h_0, ..., h_L); scale: a factor on all layers.

    Raises InputError for an unknown scheme, listing the known, and for settings that are missing or not its own.

    >>> import flowsim as fs
    >>> network = fs.initialize("unimodal", (4, 6, 6, 4), seed=0, peak=2, imbalance=[1.0, 2.0])
    >>> round(fs.certify(network)["theorem-3-unimodal"].alpha, 9)  # 1 x 2
    2.0
    """
    as_choice(scheme, "scheme", [*SCHEMES, *WITH_SETTINGS])
    make, needed = WITH_SETTINGS[scheme] if scheme in WITH_SETTINGS else (SCHEMES[scheme], ())
    for name in needed:
        if settings.get(name) is None:
            raise InputError(f"Argument `{name}` must be given for the scheme {scheme}.")
    for name, value in settings.items():
        if value is not None and name not in needed:
            raise InputError(f"Argument `{name}` must not be given for the scheme {scheme}: it has no use for it.")
    return make(dims, seed=seed, scale=scale, **{name: settings[name] for name in needed})
