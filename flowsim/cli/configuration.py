"""--config FILE.toml and --print-config: a table a command, its keys called as the flags are; flags win."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from cyclopts.config import Toml

from flowsim.errors import InputError


def without(tokens: list[str], flag: str) -> tuple[list[str], bool]:
    """The tokens without a flag of the whole command, and whether it was among them."""
    return [token for token in tokens if token != flag], flag in tokens


def split_file(tokens: list[str]) -> tuple[list[str], str | None]:
    """The tokens without `--config FILE`, and the file. Raises InputError where it is missing or given twice."""
    left, files = [], []
    rest = iter(tokens)
    for token in rest:
        if token == "--config":
            files.append(next(rest, ""))
        elif token.startswith("--config="):
            files.append(token.removeprefix("--config="))
        else:
            left.append(token)
    if len(files) > 1 or "" in files:
        raise InputError("Argument `--config` must be given once, with a TOML file.")
    return left, files[0] if files else None


def read(path: str, commands: Iterable[str]) -> Toml:
    """A configuration for cyclopts. Raises InputError where the file is missing, no TOML, or has other tables."""
    from flowsim.checks import as_choice
    from flowsim.files import read_toml

    tables = read_toml(path)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"File {path} must hold a table a command, such as [simulate]; put {name} into one.")
        as_choice(name, "table", commands)
    return Toml(path, must_exist=True)


def complete(command: str, arguments: Mapping[str, object]) -> str:
    """All settings of a command as TOML; those that are not given and have no default as remarks."""
    lines = [f"[{command}]"]
    for name, value in arguments.items():
        key = name.removesuffix("_")
        if value is None:
            lines.append(f"# {key} is not set")
        else:
            plain = str(value) if isinstance(value, Path) else value
            lines.append(f"{key} = {plain!r}" if isinstance(plain, float) else f"{key} = {json.dumps(plain)}")
    return "\n".join(lines)
