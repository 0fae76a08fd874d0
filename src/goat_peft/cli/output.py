"""Consoles of the command: results to standard output, complaints to standard error."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..reporting.tables import percent

# Figures that are no shares: from -1 to 1.
CORRELATIONS = ("matthews", "pearson", "spearman")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """Write each line of `text` to standard error as an error, unwrapped and without markup."""
    for line in text.splitlines():
        errors.print(f"error: {line}", markup=False, style="red")


def say(text: str = "") -> None:
    """Write a line to standard output as it is, unwrapped and without markup."""
    console.print(text, markup=False, soft_wrap=True)


def score_table(title: str, metrics: dict[str, float], counts: dict[str, int]) -> Table:
    """Build the table of an evaluation."""
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), percent(value) + (" (x 100)" if name.endswith(CORRELATIONS) else " %"))
    for name, number in counts.items():
        table.add_row(name.replace("_", " "), str(number))
    return table


def harness_table(title: str, rows: list[tuple[str, str, int, str, float, float | None]]) -> Table:
    """Build the table of an evaluation by the lm-evaluation-harness; values as it gives them, for not all are shares."""
    table = Table("task", "version", "shots", "metric", "value", "standard error", title=title, title_justify="left")
    for name, version, shots, metric, value, error in rows:
        table.add_row(name, version, str(shots), metric, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    return table


def final_scores(row: dict[str, Any]) -> str:
    """One line of the closing row of a result: `test accuracy 76.4 %, test f1 76.0 %`."""
    parts = []
    for name, value in row.items():
        if isinstance(value, float) and name.startswith(("test", "valid")):
            shown = f"{value:.3f}" if name.endswith(CORRELATIONS) else f"{percent(value)} %"
            parts.append(f"{name.replace('_', ' ')} {shown}")
        elif isinstance(value, int) and name.endswith("failed_extractions"):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)
