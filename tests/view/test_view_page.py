"""The page as a file: it holds everything, loads nothing, and no text of the data becomes part of it."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import nobody

from goat_peft import records
from goat_peft.errors import UserError
from goat_peft.view import Wishes, view_run
from goat_peft.view.collect import collect
from goat_peft.view.page import render

HOSTILE = (
    "</script><script>document.title = 'taken'</script><!-- <img src=x onerror=\"alert(1)\"> {{script}} & \u2028 \u00e9"
)
LOADING = {"src", "href", "srcset", "data", "action", "poster", "formaction", "background", "xlink:href"}


class Page(HTMLParser):
    """Elements with their attributes, and the content of script and style elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str | None, str]] = []
        self.open: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append((tag, dict(attrs).get("type"), ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and self.inside and self.inside[-1][2] == "":
            self.inside[-1] = (*self.inside[-1][:2], data)

    def content(self, tag: str, kind: str | None) -> str:
        """The content of the only such element."""
        (found,) = [text for name, own, text in self.inside if (name, own) == (tag, kind)]
        return found


@pytest.fixture
def curves_only(tmp_path: Path) -> Path:
    """A finished run of a method without experts, as files."""
    run = tmp_path / "plain"
    recipe = """
name: plain
model: {name: some/model}
task: {type: generation, data: {train: {path: x.jsonl}}, prompt: "{a}", response: "{b}", answer: "{b}", extract: "."}
method: {name: lora}
"""
    rows: list[dict[str, Any]] = [{"step": i, "train loss": 1 / (i + 1)} for i in range(3)]
    rows += [{"step": 3, "test exact_match": 0.5}]
    result = {
        "run_info": {"created_at": "2026-01-01T00:00:00+00:00", "command": "goat train plain"},
        "train_info": {"train_time": 1.5, "num_trainable_params": 10, "num_total_params": 100, "metrics": rows},
    }
    records.write_text(run / records.RECIPE, recipe)
    records.write_json(run / records.RESULT, result)
    records.write_json(run / "adapter" / "adapter_config.json", {"peft_type": "LORA"})
    return run


def test_the_page_holds_everything_and_loads_nothing(goat_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "view.html"
    view_run(goat_run, [], Wishes(rows=2, texts=(HOSTILE,)), output, nobody)
    text = output.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    page = Page(text)
    for tag, attributes in page.elements:
        for name in LOADING & set(attributes):
            assert str(attributes[name]).startswith(("#", "data:")), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    style, script = page.content("style", None), page.content("script", "module")
    assert "@import" not in style and "url(" not in style and "import(" not in script and "fetch(" not in script
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    digests = {key: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for key, text in (("script", script), ("style", style))}  # fmt: skip
    assert rules == {
        "default-src": "'none'",
        "script-src": digests["script"],
        "style-src": digests["style"],
        "img-src": "data:",
    }


def test_texts_of_the_data_stay_data(goat_run: Path) -> None:
    """A row that would end the script, open a comment or stand for a part of the page comes back as it was."""
    data = collect(goat_run, [], Wishes(rows=0, texts=(HOSTILE,)), nobody)
    data["run"]["name"] = HOSTILE
    data["texts"][0]["tokens"] = [HOSTILE]
    text = render(data)
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert json.loads(page.content("script", "application/json")) == data
    assert "taken'</script>" not in text and 'onerror="' not in text


def test_a_run_without_experts_has_curves_only(curves_only: Path) -> None:
    data = collect(curves_only, [], Wishes(), nobody)
    assert data["experts"] is None and data["layers"] == data["texts"] == []
    assert data["curves"][0]["lines"][0]["values"] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert data["run"]["figures"] == {"test exact_match": 0.5}
    assert json.loads(Page(render(data)).content("script", "application/json")) == data


def test_a_run_that_did_not_finish_says_so(curves_only: Path) -> None:
    (curves_only / records.RESULT).unlink()
    with pytest.raises(UserError, match="did not finish"):
        collect(curves_only, [], Wishes(), nobody)


@pytest.mark.parametrize("content", ['{"peft_type": ', "[]"])
@pytest.mark.parametrize("name", [records.RESULT, "adapter/adapter_config.json"])
def test_a_broken_file_is_one_line(curves_only: Path, name: str, content: str) -> None:
    (curves_only / name).write_text(content)
    with pytest.raises(UserError, match=f"run=.*{name}: (is not JSON|holds no settings)"):
        collect(curves_only, [], Wishes(), nobody)


def test_figures_that_are_no_numbers_are_left_out(curves_only: Path) -> None:
    result = records.read_json(curves_only / records.RESULT)
    result["train_info"]["metrics"][1]["train loss"] = float("nan")
    result["train_info"]["metrics"][-1]["test exact_match"] = float("nan")
    records.write_json(curves_only / records.RESULT, result)
    data = collect(curves_only, [], Wishes(), nobody)
    assert data["curves"][0]["lines"][0]["steps"] == [0, 2]
    assert data["run"]["figures"] == {}
    render(data)
