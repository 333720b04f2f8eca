"""README.md: its tables are what the commands say, its example runs."""

import json
import re
from pathlib import Path

from flowsim import cli
from flowsim.reproduce import COLUMNS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_of_figure_1_is_what_reproduce_finds(tmp_path, capsys):
    assert cli.main(["reproduce", "--out", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    rows = json.loads((tmp_path / "figure1.json").read_text())["rows"]
    assert "| " + " | ".join(head for head, _, _ in COLUMNS) + " |" in README
    exact = [k for k, (head, _, _) in enumerate(COLUMNS) if "drift" not in head]  # round-off differs by the machine
    tables = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    for row in rows:
        cells = [form.format(row[key]) for _, key, form in COLUMNS]
        told = [[line[k] for k in exact] for line in tables if len(line) == len(cells)]
        assert [cells[k] for k in exact] in told


def test_the_table_of_commands_names_all_of_them():
    told = set(re.findall(r"^\| `flowsim (\w+)", README, flags=re.MULTILINE))
    told |= set(re.findall(r"`flowsim (\w+)`", README))
    commands = {name for name in cli.app if name[0] != "-"}
    assert len(commands) > 10
    assert commands <= told


def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip().endswith("True")
