"""One look for every picture: a colour-blind-safe palette (Okabe and Ito) and a figure that needs no display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Perceptually even, readable in grey and with colour-vision deficiencies.
HEAT = "cividis"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in one step, so that no reader sees half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=150, facecolor="white")
    temporary.replace(path)
