"""What is compiled in one process is kept for the next, where that is possible and wanted."""

import os
import subprocess
import sys

import pytest

from flowsim.methods.jax_support import cache_folder

RUN = """
import jax
import flowsim as fs
from flowsim.methods.jax_support import float64
loss, network = fs.SquaredLoss([[1.0]]), fs.fan_in((1, 3, 1), seed=0)
assert fs.simulate(fs.Problem(loss, network), "tsit5", t1=0.1).status == "completed"
print(jax.config.jax_compilation_cache_dir)
"""


def folder_in_use(**environment):
    """What jax uses in a process in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", RUN]
    thorough = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}  # what compiles at once is not kept
    found = subprocess.run(command, env=os.environ | thorough | environment, check=True, capture_output=True, text=True)
    assert not found.stderr
    return found.stdout.strip()


def test_kept_for_the_next_process(tmp_path):
    folder = folder_in_use(FLOWSIM_CACHE=str(tmp_path))
    assert folder.startswith(str(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}
    assert kept
    folder_in_use(FLOWSIM_CACHE=str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")} == kept


def test_what_cannot_be_written_is_compiled_again(tmp_path):
    (tmp_path / "file").write_text("")
    assert folder_in_use(FLOWSIM_CACHE=str(tmp_path / "file" / "cache")) == "None"
    folder = folder_in_use(FLOWSIM_CACHE=str(tmp_path))
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(b"broken")
    assert folder_in_use(FLOWSIM_CACHE=str(tmp_path)) == folder


def test_a_user_without_a_home_compiles_again():
    """As in a container whose user has no entry in /etc/passwd."""
    assert folder_in_use(FLOWSIM_CACHE="~nobody-of-this-name/cache") == "None"


def test_a_folder_that_the_user_has_chosen_for_jax_is_left_alone(tmp_path):
    assert folder_in_use(FLOWSIM_CACHE=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FLOWSIM_CACHE": ""}, None),
        ({"FLOWSIM_CACHE": "/somewhere"}, "/somewhere"),
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/flowsim"),
    ],
)
def test_the_folder(environment, expected, monkeypatch):
    monkeypatch.delenv("FLOWSIM_CACHE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = cache_folder()
    assert (None if found is None else str(found)) == expected
