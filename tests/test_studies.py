"""The studies that no other test runs, at small size."""

import runpy
import sys
from pathlib import Path

import pytest

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


def test_solver_comparison(monkeypatch, tmp_path, capsys):
    run("solver_comparison.py", monkeypatch, "--out", str(tmp_path))
    assert (tmp_path / "solver_comparison.png").stat().st_size > 10_000
    assert "dop853" in capsys.readouterr().out


def test_invariants(monkeypatch, tmp_path, capsys):
    run("invariants.py", monkeypatch, "--out", str(tmp_path))
    assert (tmp_path / "invariants.png").stat().st_size > 10_000
    assert "exact law" in capsys.readouterr().out


def test_descent_vs_flow(monkeypatch, tmp_path, capsys):
    run("descent_vs_flow.py", monkeypatch, "--out", str(tmp_path))
    assert "diverged" in capsys.readouterr().out


def test_descent_follows_the_modified_flow_to_second_order():
    study = runpy.run_path(str(STUDIES / "descent_vs_flow.py"))
    problem = study["problem"]()
    (flow_1, modified_1), (flow_2, modified_2) = (study["distances"](problem, eta) for eta in (0.005, 0.0025))
    assert flow_1 / flow_2 == pytest.approx(2, rel=0.05)
    assert modified_1 / modified_2 == pytest.approx(4, rel=0.05)


def test_diagnosis(monkeypatch, capsys):
    run("diagnosis.py", monkeypatch)
    printed = capsys.readouterr().out
    assert ": 0 false alarms" in printed
    assert ": 10 found" in printed
