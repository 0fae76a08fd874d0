"""Training curves: the series of a result file, as the page draws them."""

from __future__ import annotations

import math
from typing import Any

from ..reporting.pictures import series

# One chart for each of these: a heading, and the keys of `result.json` drawn in it with their labels.
LOSSES = ("Loss", {"train loss": "training", "valid loss": "validation"})
BALANCE = ("Balance loss", {"balance_loss": "balance loss"})


def curves(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Charts of a run's `result.json`: losses, the balance loss, and validation figures that were measured more than once.

    A chart is `{"title", "lines": [{"label", "steps", "values"}], "even"}`; `even` is the value at perfect balance, where there is one.
    """
    rows = result["train_info"]["metrics"]
    figures = {key for row in rows[:-1] for key in row if key.startswith("valid ") and key != "valid loss"}
    scores = ("Validation figures", {key: key.removeprefix("valid ").replace("_", " ") for key in sorted(figures)})
    charts = []
    for title, keys in (LOSSES, BALANCE, scores):
        lines = []
        for key, label in keys.items():
            points = [(step, value) for step, value in zip(*series(rows, key), strict=True) if math.isfinite(value)]
            if len(points) > (1 if key in figures else 0):
                steps, values = zip(*points, strict=True)
                lines.append({"label": label, "steps": list(steps), "values": list(values)})
        if lines:
            charts.append({"title": title, "lines": lines, "even": 1.0 if title == BALANCE[0] else None})
    return charts
