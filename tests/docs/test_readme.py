"""README's first table says what the committed results say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pages import ROOT

LABELS = {
    "full fine-tuning": "full",
    "rsLoRA": "rslora",
    "AdaMoLE": "adamole",
    "**GOAT, all experts weighed** (preset `soft-zero`)": "goat-soft-zero",
    "GOAT, the released code's scale": "goat-released",
    "LoRA (one of its runs collapsed)": "lora",
    "**GOAT, the paper's form**": "goat-paper",
}


def overall(name: str) -> dict[str, Any]:
    """What the file says of each method over all its tasks."""
    rows = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))["overall"]
    return {row["label"]: row for row in rows}


def table() -> dict[str, list[str]]:
    """The cells of the first table's rows by method."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("|---", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()[1:]]
    return {LABELS[row[0]]: row[1:] for row in rows}


@pytest.mark.parametrize("label", LABELS.values())
def test_quality(label: str) -> None:
    seven, gap, six, _ = table()[label]
    row, rest = overall("evidence-fair-r8")[label], overall("evidence-fair-r8-six")[label]
    assert seven == f"{100 * row['mean']:.1f}" and six == f"{100 * rest['mean']:.1f}"
    against = {key: 100 * value for key, value in row["against"].get("full", {}).items()}
    assert gap == ("{difference:+.1f} ({low:+.1f} to {high:+.1f})".format(**against) if against else "-")


def test_those_named_are_the_best_of_their_kind() -> None:
    rows = overall("evidence-fair-r8")
    for best, kind in {
        "rslora": ("lora", "dora", "pissa", "milora"),
        "adamole": ("molora", "hydralora"),
        "full": rows.keys() - {"full"},
    }.items():
        assert all(rows[best]["mean"] > rows[other]["mean"] for other in kind)
