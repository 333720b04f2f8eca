"""The studies that no other test runs, at small size."""

import runpy
import sys
from pathlib import Path

STUDIES = Path(__file__).parent.parent / "studies"


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, "--small", *arguments])
    runpy.run_path(str(STUDIES / name), run_name="__main__")


def test_width(monkeypatch, tmp_path, capsys):
    run("width.py", monkeypatch, "--out", str(tmp_path), "--only", "steps", "cost", "large")
    assert (tmp_path / "width.png").stat().st_size > 10_000
    assert "Krylov steps" in capsys.readouterr().out


def test_effectivity():
    study = runpy.run_path(str(STUDIES / "width.py"))
    row = study["effectivity"](11)
    assert row["estimate"] > 0
    assert 0.5 < row["true"] / row["estimate"] < 2
    assert row["compression error / tolerance"] < 5


def test_rates(monkeypatch, tmp_path, capsys):
    run("rates.py", monkeypatch, "--out", str(tmp_path))
    assert (tmp_path / "rates.png").stat().st_size > 10_000
    assert "margin" in capsys.readouterr().out


def test_errata(monkeypatch, tmp_path, capsys):
    run("errata.py", monkeypatch, "--out", str(tmp_path))
    assert "766 times" in (tmp_path / "errata.md").read_text()
