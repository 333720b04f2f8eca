"""What made a result: versions and platform."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from flowsim.methods import Method
from flowsim.values import Json


@cache
def versions() -> dict[str, str]:
    """Versions of flowsim, Python and the numerical packages, without importing them, and the platform."""
    packages = ("flowsim", "numpy", "scipy", "jax", "diffrax")
    return {"python": platform.python_version(), "platform": platform.platform(), **{p: _version(p) for p in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def provenance_of(method: Method, **settings: object) -> Json:
    """Versions, and the configuration: the method's key, its settings where they are plain, and those of the run."""
    own = {name: value for name, value in method.settings.describe().items() if name not in ("family", "name")}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in settings.items()}
    return {**versions(), "configuration": {"method": method.key, **own, **plain}}
