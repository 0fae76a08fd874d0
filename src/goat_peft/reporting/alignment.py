"""The picture of gradient alignment, and the sentences that say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .comparison import Picture, look
from .style import save

_PANELS = (
    ("distance", "relative distance ||g~ - eta g|| / ||eta g||", "log"),
    ("cosine", "cosine of g~ and g", "linear"),
    ("projection", "length of g~ along g, in units of eta g", "log"),
)


def draw(stored: dict[str, Any], path: Path) -> Picture:
    """Distance, cosine and projection of the experts' equivalent gradients over steps, a line per setting."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axes, (key, label, scale) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for index, row in enumerate(stored["rows"]):
            steps = [point["step"] for point in row["points"]]
            axes.plot(steps, [point["expert"][key] for point in row["points"]], label=row["label"], **look(index))
        axes.set(xlabel="step", ylabel=label, yscale=scale)
        if key != "cosine":
            axes.axhline(1, color="black", linewidth=1, linestyle=":")
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(stored["rows"])
    )
    save(figure, path)
    said = "; ".join(f"{row['label']}: {_ends(row)}" for row in stored["rows"])
    return Picture(
        path, "Gradient alignment", f"Relative distance at the first and last step, {said}.", " ".join(findings(stored))
    )


def findings(stored: dict[str, Any]) -> list[str]:
    """What the measurement says about each pair of settings that differ in the scale alone, in whole sentences."""
    sentences = []
    by_label = {row["label"]: row for row in stored["rows"]}
    for alpha, theorem in stored["pairs"]:
        near, far = (_mean(by_label[name], "distance") for name in (theorem, alpha))
        verdict = "closer to" if near < far else "farther from"
        sentences.append(
            f"With the theorem's scale ({theorem}) the experts' gradient is {verdict} the full-rank one than with alpha scaling ({alpha}): mean relative "
            f"distance over the measured steps {near:.3g} against {far:.3g}; cosine {_mean(by_label[theorem], 'cosine'):.3f} against {_mean(by_label[alpha], 'cosine'):.3f}; "
            f"length along the full-rank gradient {_mean(by_label[theorem], 'projection'):.3g} against {_mean(by_label[alpha], 'projection'):.3g} (1 is full "
            "fine-tuning's own)."
        )
    sentences.append(
        "The theorem fixes the mean of g~ over draws of A where B = 0, which the length along g shows, and not the distance of one draw: a product of rank d "
        "spends most of its length across g, so a larger scale adds distance."
    )
    return sentences


def _mean(row: dict[str, Any], key: str) -> float:
    values = [point["expert"][key] for point in row["points"]]
    return sum(values) / len(values)


def _ends(row: dict[str, Any]) -> str:
    return f"{row['points'][0]['expert']['distance']:.3g} and {row['points'][-1]['expert']['distance']:.3g}"
