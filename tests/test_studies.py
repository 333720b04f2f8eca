"""The studies that no other test runs, at small size."""

import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

STUDIES = Path(__file__).parent.parent / "studies"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """A quarter of the pixels each way, which take most of the time of a study that draws."""
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, file, dpi: save(self, file, dpi=dpi / 4))


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, "--small", *arguments])
    runpy.run_path(str(STUDIES / name), run_name="__main__")


def run_with(changes, name, monkeypatch, *arguments):
    """The same, with others of the study's names: changes(study) -> {name: what it stands for}."""
    monkeypatch.setattr(sys, "argv", [name, "--small", *arguments])
    study = runpy.run_path(str(STUDIES / name))
    study["main"].__globals__.update(changes(study))
    study["main"]()


@pytest.mark.parametrize(
    ("name", "words", "only"),
    [
        ("width", "Krylov steps", ("--only", "steps", "cost", "large")),
        ("rates", "margin", ()),
        ("solver_comparison", "dop853", ()),
        ("invariants", "exact law", ()),
        ("descent_vs_flow", "diverged", ()),
        ("quickstart", "every law that was checked holds", ()),
        ("good_initialization", "best: combined", ()),
        ("which_solver", "greatest drift of the D_l", ()),
        ("how_wide", "slopes of the error", ()),
        ("how_fast", "certified at the start: 0", ()),
        ("label_noise", "descent, 100 paths", ()),
    ],
)
def test_it_prints_and_draws(name, words, only, monkeypatch, tmp_path, capsys):
    run(f"{name}.py", monkeypatch, "--out", str(tmp_path), *only)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert words in capsys.readouterr().out


def test_initialization(monkeypatch, tmp_path, capsys):
    """Half as many draws as it takes for a look."""
    run_with(
        lambda study: {"SMALL": study["SMALL"] | {"seeds": 4}}, "initialization.py", monkeypatch, "--out", str(tmp_path)
    )
    assert (tmp_path / "initialization.png").stat().st_size > 10_000
    assert "80 draws, 0 failed" in capsys.readouterr().out


def test_digits_trained_elsewhere(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    import torch

    before = torch.get_default_dtype()
    try:
        run("digits.py", monkeypatch, "--out", str(tmp_path))
    finally:
        torch.set_default_dtype(before)
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert "told, not judged" in capsys.readouterr().out


def test_no_certificate_is_false_on_hostile_networks(monkeypatch, capsys):
    run("hostile_networks.py", monkeypatch)
    printed = capsys.readouterr().out
    assert "60 networks, 9 with a bottleneck" in printed
    assert ", 0 false certificates" in printed


def test_effectivity():
    study = runpy.run_path(str(STUDIES / "width.py"))
    row = study["effectivity"](11)
    assert row["estimate"] > 0
    assert 0.5 < row["true"] / row["estimate"] < 2
    assert row["compression error / tolerance"] < 5


def test_errata(monkeypatch, tmp_path, capsys):
    run("errata.py", monkeypatch, "--out", str(tmp_path))
    assert "766 times" in (tmp_path / "errata.md").read_text()


def test_descent_follows_the_modified_flow_to_second_order():
    study = runpy.run_path(str(STUDIES / "descent_vs_flow.py"))
    problem = study["problem"]()
    (flow_1, modified_1), (flow_2, modified_2) = (study["distances"](problem, eta) for eta in (0.005, 0.0025))
    assert flow_1 / flow_2 == pytest.approx(2, rel=0.05)
    assert modified_1 / modified_2 == pytest.approx(4, rel=0.05)


def test_trust(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run("trust.py", monkeypatch)
    assert ended.value.code == 0
    assert "off by over 100 tolerances: 0\n" in capsys.readouterr().out


def test_resilience(monkeypatch, capsys):
    pytest.importorskip("distributed")
    run("resilience.py", monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("| identical |") == 4
    assert "records rewritten: 0" in printed


def test_the_gallery_names_every_study_and_every_picture():
    page = (STUDIES / "README.md").read_text()
    for study in STUDIES.glob("*.py"):
        assert f"\n### {study.stem}\n" in page, study.name
        assert f"`python studies/{study.name}" in page, study.name
    for picture in STUDIES.glob("*.png"):
        assert f"({picture.name})" in page, picture.name


def test_dynamics(monkeypatch, tmp_path, capsys):
    """Residuals of laws are of the size of the tolerance, compressed or not; momentum is scipy's."""
    run("dynamics.py", monkeypatch, "--out", str(tmp_path))
    assert (tmp_path / "dynamics.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if "  |  " in line and " gd " not in line]
    assert len(table) == 17
    for row in table:
        for law, value in pairwise(row):
            if law in ("D", "M") or (law == "E" and "leapfrog" not in row):
                assert float(value) < 5e-7, row
    assert sum("greatest relative difference" in line and float(line.split()[-1]) < 1e-11 for line in lines) == 2


def test_travel(monkeypatch, capsys):
    """Half as many of what takes most of its time."""

    def half(study):
        halved = ("descent", "descents", "violations")
        return {name: lambda count, *rest, of=study[name]: of(count // 2, *rest) for name in halved}

    with pytest.raises(SystemExit) as ended:
        run_with(half, "travel.py", monkeypatch)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "30 random networks" in printed
    assert ": 0 violations" in printed
    assert printed.count("uphill") == 3
    assert ": 0 above their bounds" in printed
    assert "limits outside the radius: 0" in printed
