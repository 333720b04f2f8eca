"""The report in a real browser: one page that loads nothing else, works by keyboard, on a phone and in print."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Huber

import flowsim as fs
from flowsim import cli
from flowsim.plots.charts import MOST_POINTS
from flowsim.reports.page import embedded

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)")
LOSS = fs.SquaredLoss(np.ones((2, 1)))
LARGEST = 1_500_000
NAMES = ("flow", "descent", "long descent", "diverged", "diverged later", "no minimum", "deep")


def _problem(loss: Any = LOSS, **origin: Any) -> Any:
    network = fs.fan_out((2, 9, 11, 1), seed=0)
    return fs.Problem(loss, fs.LinearNetwork(network.weights, origin={**network.origin, **origin}))


def _run(name: str) -> Any:
    rng, descent = np.random.default_rng(0), fs.GradientDescent
    if name == "flow":
        target = fs.SquaredLoss(rng.standard_normal((4, 3)))
        return fs.simulate(fs.Problem(target, fs.fan_out((4, 9, 8, 3), seed=0)), t1=1.0)
    if name == "deep":
        target = fs.SquaredLoss(rng.standard_normal((5, 4)))
        return fs.simulate(fs.Problem(target, fs.orthogonal((5, *[6] * 8, 4), seed=0)), t1=0.3)
    if name == "no minimum":
        return fs.simulate(_problem(Huber()), t1=2.0)
    step_size, t1, save_points = {
        "descent": (1e-3, 1.0, 101),
        "long descent": (1e-5, 0.6, 3000),
        "diverged": (1e3, 1e6, 101),
        "diverged later": (1.0, 1e3, 101),
    }[name]
    return fs.simulate(_problem(), descent(step_size), t1=t1, save_points=save_points)


class Pages(dict[str, tuple[Any, Path]]):
    """name -> (trajectory as loaded, its page), made when one of the processes asks for it first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__()

    def __missing__(self, name: str) -> tuple[Any, Path]:
        place = self.folder / name
        if not place.exists():
            made = Path(tempfile.mkdtemp(dir=self.folder))
            _run(name).save(made / "run.nc")
            fs.report(fs.load(made / "run.nc"), made / "run.html")
            with contextlib.suppress(OSError):  # another process was quicker
                made.rename(place)
        self[name] = fs.load(place / "run.nc"), place / "run.html"
        return self[name]


@pytest.fixture(scope="module")
def pages(shared: Path) -> Pages:
    folder = shared / "pages"
    folder.mkdir(exist_ok=True)
    return Pages(folder)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, pages):
    """visit(name, width): the open page; what it says on the console and what else it asks for must be nothing."""
    complaints, opened = [], []

    def go(name: str, width: int = 1280) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        address = pages[name][1].as_uri()

        def only_itself(route: Any) -> None:
            if route.request.url == address:
                return route.continue_()
            complaints.append(route.request.url)
            return route.abort()

        page.route("**/*", only_itself)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()
    assert complaints == []


def _shown(page: Any) -> list[float]:
    return [float(text) for text in page.locator(".mode output").all_inner_texts()]


@needs_browser
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_loads_alone_and_fits_its_window(name, width, visit):
    page = visit(name, width)
    assert page.locator("#explore").is_visible()
    assert page.locator("figure svg").count() == 6
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    for chart in ("loss", "drift", "rate"):
        page.check(f"input[value={chart}]")
        for toggle in ("#log-value", "#log-time"):
            if page.locator(toggle).is_enabled():
                page.locator(toggle).click()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert "NaN" not in page.locator("#chart").inner_html()
    wide = "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
    assert max(page.evaluate(wide), default=0) <= 0, "no column of a table is out of sight"


@needs_browser
def test_the_slider_shows_the_singular_values_of_its_time(visit, pages):
    run, page = pages["flow"][0], visit("flow")
    slider = page.locator("#slider")
    assert _shown(page) == pytest.approx(run.singular_values[-1], rel=1e-4)
    slider.focus()
    page.keyboard.press("Home")
    assert _shown(page) == pytest.approx(run.singular_values[0], rel=1e-4)
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    assert _shown(page) == pytest.approx(run.singular_values[7], rel=1e-4)
    assert slider.get_attribute("aria-valuetext") == f"t = {run.checkpoints.times[7]:g}"
    widths = page.locator(".bar").evaluate_all("bars => bars.map(b => b.getBoundingClientRect().width)")
    ratio = run.singular_values[7][1] / run.singular_values[7][0]
    assert widths[1] / widths[0] == pytest.approx(ratio, rel=0.02)
    frame, now = (page.locator(place).bounding_box() for place in ("#chart .frame", "#now"))
    share = (now["x"] - frame["x"]) / frame["width"]
    assert share == pytest.approx(run.checkpoints.times[7] / run.checkpoints.times[-1], abs=0.01)


@needs_browser
def test_the_crosshair_reads_the_curve(visit, pages):
    run, page = pages["flow"][0], visit("flow")
    page.locator("#chart").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    t = float(page.locator("#moment").inner_text().removeprefix("at t = "))
    read = float(page.locator("#readout li").first.inner_text().split(": ")[1])
    known = np.concatenate([run.time, run.step_time]), np.concatenate([run.excess, run.steps.excess])
    assert read == pytest.approx(known[1][np.abs(known[0] - t).argmin()] / run.excess[0], rel=1e-3)
    page.keyboard.press("Escape")
    box = page.locator("#chart .frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert page.locator("#slider").input_value() == "50"


@needs_browser
def test_the_toggles_change_the_curves(visit):
    page = visit("flow")
    seen = set()
    for chart in ("loss", "drift", "rate"):
        page.check(f"input[value={chart}]")
        for toggle in ("#log-value", "#log-time"):
            before = page.locator("#chart path").first.get_attribute("d")
            page.locator(toggle).click()
            after = page.locator("#chart path").first.get_attribute("d")
            assert before != after
            seen |= {before, after}
    assert len(seen) >= 8


@needs_browser
def test_print_shows_the_figures_in_place_of_the_curves_to_explore(visit):
    page = visit("flow")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#explore").is_visible()
    assert page.locator("figure svg").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@needs_browser
def test_a_light_and_a_dark_page(visit):
    page, shades = visit("flow"), []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert shades[0] == "rgb(255, 255, 255)" != shades[1]


def test_pages_are_small_and_say_what_they_leave_out(pages):
    assert all(pages[name][1].stat().st_size < LARGEST for name in NAMES)
    text = pages["long descent"][1].read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert all(len(chart["time"]) <= MOST_POINTS + 2 for chart in data["charts"])
    assert "of 60001 points are drawn" in text
    assert "Not checked here" in text
    assert "Not checked here" not in pages["flow"][1].read_text()


def test_what_is_not_known_is_said(pages):
    text = pages["no minimum"][1].read_text()
    assert "f* is not known" in text
    assert "not in the file" in text
    assert "no step was taken" in pages["diverged"][1].read_text()
    for name in NAMES:
        data = re.search(r'id="data">(.*?)</script>', pages[name][1].read_text(), re.S)[1]
        assert "NaN" not in data
        assert "Infinity" not in data


def test_everything_is_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    run = fs.simulate(_problem(note=evil), t1=0.1, save_points=3)
    object.__setattr__(run, "provenance", {"configuration": {"note": evil}, evil: evil})
    fs.report(run, tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert text.count("&lt;img src=x onerror") == 4
    assert text.count("</script>") == 2
    assert json.loads(embedded({"a": evil + "\u2028&"})) == {"a": evil + "\u2028&"}
    assert "<" not in embedded(evil)


def test_a_diagnosis_at_hand_is_shown(tmp_path):
    run = fs.simulate(_problem(), t1=0.1, save_points=3)
    law = fs.Diagnosis((type(next(iter(fs.diagnose(run))))("a law", "x = y", 1.0, 0.5, False, 0.1),))
    fs.report(run, tmp_path / "run.html", diagnosis=law)
    assert "Broken: a law." in (tmp_path / "run.html").read_text()


def test_the_command_writes_beside_the_run(tmp_path, capsys):
    fs.simulate(_problem(), t1=0.1, save_points=3).save(tmp_path / "run.nc")
    assert cli.main(["report", str(tmp_path / "run.nc"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "run.html")
    assert (tmp_path / "run.html").stat().st_size > 50_000
    assert cli.main(["report", str(tmp_path / "run.nc"), "--out", str(tmp_path / "x.pdf")]) == 2
    assert "must end in .html" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "run.nc"), "--laws", "never"]) == 2
    assert cli.main(["report", str(tmp_path / "none.nc")]) == 2
