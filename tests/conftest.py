"""Shared by all tests: the reference networks of an independent program, and random problems.

They run in several processes (pytest-xdist; `pytest -n 0` takes one, for a debugger), each with one thread for its
linear algebra.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

import flowsim as fs
from flowsim.files import read_target, read_weights

settings.register_profile("flowsim", deadline=None)
settings.load_profile("flowsim")

REFERENCE = Path(__file__).parent / "reference"
CASES = {case["name"]: case for case in json.loads((REFERENCE / "cases.json").read_text())["cases"]}


FAST_COMPILING = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""What XLA does without: most of the time of a compilation, nothing of what is computed."""


def pytest_configure() -> None:
    """One thread for what is loaded, and for what is loaded later, in the processes that tests start too; nothing that
    jax compiles is kept for other processes.

    And jax compiles in a third of the time, to code that is hardly optimized: the tests compile far more than they
    compute. JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment leaves jax as it is.
    """
    os.environ["FLOWSIM_CACHE"] = ""
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    threadpool_limits(1)
    if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1" and knows_the_flags(version("jaxlib")):
        os.environ.setdefault("XLA_FLAGS", FAST_COMPILING)


def knows_the_flags(jaxlib: str) -> bool:
    """Whether they were tried with that version: XLA aborts for a flag that it does not know. Others compile slower."""
    return jaxlib.startswith("0.10.")


def random_network(rng: np.random.Generator, dims: tuple[int, ...], size: float = 1.0, scale: float = 1.0) -> Any:
    weights = [size * rng.standard_normal(shape) / shape[0] ** 0.5 for shape in pairwise(dims)]
    return fs.LinearNetwork(tuple(weights), scale)


def random_problem(rng: np.random.Generator, dims: tuple[int, ...], size: float = 1.0) -> Any:
    return fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), random_network(rng, dims, size))


class Huber:
    """A user's own loss: smooth near the target, linear far from it, known only by value and gradient."""

    shape = (2, 1)
    target = np.array([[1.0], [-0.5]])

    def value(self, W: Any) -> Any:
        return ((1 + (W - self.target) ** 2) ** 0.5 - 1).sum()

    def gradient(self, W: Any) -> Any:
        return (W - self.target) / (1 + (W - self.target) ** 2) ** 0.5


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all its processes share, for what is made once and then read."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20230724)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A small file system of its own, and a function that mounts it again with other options: "size=32m", "ro"."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(params=sorted(CASES))
def reference(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    """(numbers, problem) of one of the seven reference networks."""
    path = REFERENCE / f"{request.param}.npz"
    return CASES[request.param], fs.Problem(fs.SquaredLoss(read_target(path)), read_weights(path))
