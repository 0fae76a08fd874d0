"""The page in a browser without a window: drawn without an error, reached by keys alone, true to its data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_view_page import HOSTILE
from tiny_runs import nobody

from goat_peft.view import Wishes, view_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")

TEXT = "the film is great fun , so very good !"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def view(goat_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """The page's address and its data."""
    output = tmp_path_factory.mktemp("page") / "view.html"
    data = view_run(goat_run, [], Wishes(rows=2, texts=(TEXT, HOSTILE)), output, nobody)
    return output.as_uri(), data


@contextmanager
def watched(browser: Any, address: str) -> Iterator[Any]:
    """A page, opened; at the end nothing has been complained of and nothing fetched."""
    complaints: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    opened.goto(address)
    yield opened
    opened.close()
    assert complaints == []


@pytest.fixture
def page(browser: Any, view: tuple[str, dict]) -> Iterator[Any]:
    with watched(browser, view[0]) as opened:
        yield opened


def test_every_text_and_layer_is_drawn_and_narrow_screens_need_no_sideways_scrolling(
    page: Any, view: tuple[str, dict]
) -> None:
    data = view[1]
    assert page.title() == "tiny: experts of a run"
    layers = range(len(data["layers"]))
    for text, layer in [*((0, layer) for layer in layers), *((text, 12 * (text % 2)) for text in (1, 2, 3))]:
        page.select_option("#text", str(text))
        page.select_option("#layer", str(layer))
        assert page.locator("#stage button").count() == data["texts"][text]["rows"][layer]
        assert page.locator("#weight-about").inner_text().startswith(data["layers"][layer]["name"])
    for source in range(page.locator("#load-source option").count()):
        page.select_option("#load-source", str(source))
        assert page.locator("#load-map td").count() == 4 * len(data["layers"])
    assert page.locator(".chart svg").count() == 4  # spectrum; losses, balance loss, validation figures
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_keys_alone_reach_tokens_layers_and_the_heat_map(page: Any, view: tuple[str, dict]) -> None:
    data = view[1]
    focus = "document.activeElement"
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(f"{focus}.id || {focus}.className || {focus}.tagName"))
        if "token" in str(stops[-1]):
            break
    assert "layer" in stops and "text" in stops and "token" in str(stops[-1])
    assert page.evaluate(f"getComputedStyle({focus}).outlineStyle") == "solid"

    label = f"{focus}.getAttribute('aria-label')"
    assert page.evaluate(label).startswith("[CLS]: expert ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(label).startswith("film: expert ")
    assert page.evaluate(f"{focus}.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("PageDown")
    assert page.locator("#layer").input_value() == "1" and page.evaluate(label).startswith("film: ")
    assert data["layers"][1]["short"] in page.locator("#tip").inner_text()
    assert page.locator("#said").inner_text().startswith(f"Layer {data['layers'][1]['short']}")
    page.keyboard.press("End")
    assert page.evaluate(label).startswith("[SEP]: ")
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()

    page.locator("#load-map td[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.locator("#layer").input_value() == "3"
    assert page.evaluate(label).startswith(f"{data['layers'][3]['short']}, expert 2: ")


def test_box_colours_and_numbers_are_the_data_s(page: Any, view: tuple[str, dict]) -> None:
    """The box of the third token lists every expert's weight; its chip carries the heaviest one's number and colour."""
    text = view[1]["texts"][0]
    weights = page.evaluate("text => Array.from(atob(text), (c) => c.charCodeAt(0) / 255)", text["weights"])[8:12]
    token = page.locator("#stage button").nth(2)
    token.hover()
    rows = [row.inner_text().split("\t") for row in page.locator("#tip tbody tr").all()]
    assert [row[0].strip() for row in rows] == ["1", "2", "3", "4"]
    assert [row[2] for row in rows] == [f"{round(100 * w)} %" if w else "–" for w in weights]
    heaviest = max(range(4), key=weights.__getitem__)
    assert f"e{heaviest}" in str(token.get_attribute("class"))
    assert token.locator("b").inner_text() == str(heaviest + 1)
    alone = weights.index(0)
    page.locator("#legend button").nth(alone).click()
    assert "dim" in str(token.get_attribute("class"))
    assert page.locator("#legend button").nth(alone).get_attribute("aria-pressed") == "true"


def test_patches_are_drawn_over_their_image_and_keys_move_by_rows(
    browser: Any, image_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "images.html"
    data = view_run(image_run, [], Wishes(rows=1), output, nobody)
    with watched(browser, output.as_uri()) as page:
        assert page.locator("#stage .patches img").evaluate("image => image.naturalWidth") == 16
        boxes = page.locator("#stage .patch").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect().toJSON())"
        )
        assert (
            len(boxes) == 16 and len({round(box["x"]) for box in boxes}) == len({round(box["y"]) for box in boxes}) == 4
        )
        page.locator("#stage .patch").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label.startswith(f"{data['texts'][0]['tokens'][1 + 4 + 1]}: expert ")
        assert data["texts"][0]["tokens"][6] == "row 2, column 2"


def test_hostile_texts_are_shown_and_not_obeyed(page: Any) -> None:
    page.select_option("#text", "1")
    assert page.title() == "tiny: experts of a run"
    assert page.locator("script").count() == 2 and page.locator("img").count() == 0
