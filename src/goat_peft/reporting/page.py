"""A comparison as one HTML page that needs nothing else: no scripts, no requests; pictures are inside it, and beside it as PNGs."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import yaml

from .. import records
from ..errors import UserError
from . import alignment as aligned
from . import comparison
from .comparison import Picture
from .stored import fault
from .tables import count, percent

_AGAIN = "run `goat compare` again: it repeats no finished run"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 2px solid #0072B2; }
nav a { margin-right: 1rem; } a { color: #00558a; } a:focus-visible, [tabindex]:focus-visible, summary:focus-visible { outline: 3px solid #D55E00; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ccc; }
th { border-bottom: 2px solid #111; } th:nth-child(2), td:nth-child(2) { text-align: left; font-weight: 600; } tr.baseline { background: #eef4f8; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #333; } pre { background: #f3f3f3; padding: .8rem; overflow-x: auto; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; } .warn { border-left: 5px solid #D55E00; padding: .3rem .8rem; background: #fdf3ec; }
"""


def write_report(folder: Path, alignment: Path | None = None) -> Path:
    """Draw the pictures of the comparison in `folder` and write `report/report.html`; return its path.

    `alignment` is a file that the alignment measurement wrote; the folder's own `alignment.json` is taken when there is one.
    Raises `UserError` for a folder without a finished comparison or with one of an older version, or an alignment file that is not there.
    """
    file = folder / records.COMPARISON
    if not file.is_file():
        raise UserError(
            f"folder={folder}: has no {records.COMPARISON}; give the folder of a `goat compare` that has ended"
        )
    if alignment is not None and not alignment.is_file():
        raise UserError(f"alignment={alignment}: no such file; give the JSON of an alignment measurement")
    summary = records.read_settings(file, "file", _AGAIN)
    wrong = fault(summary)
    if wrong is not None:
        raise UserError(f"file={file}: is of an older version, or damaged ({wrong}); {_AGAIN}")
    stored = alignment or (folder / records.ALIGNMENT if (folder / records.ALIGNMENT).is_file() else None)
    target = folder / "report"
    sections = [part for task in summary["tasks"] for part in _task(task, summary, folder, target)]
    if len(summary["tasks"]) > 1:
        sections.insert(0, ("All tasks", _overall(summary)))
    if stored is not None:
        sections.append(_alignment(records.read_json(stored), target))
    sections.append(_origin(summary, folder))
    page = target / "report.html"
    records.write_text(page, _page(summary, sections))
    return page


Section = tuple[str, str]  # heading, HTML


def _task(task: dict[str, Any], summary: dict[str, Any], folder: Path, target: Path) -> list[Section]:
    """One task's table and pictures."""
    baseline = summary["run_info"]["plan"]["baseline"]
    prefix = "" if len(summary["tasks"]) == 1 else f"{task['name']}-"
    pictures = [
        comparison.accuracy(task, baseline, target / f"{prefix}accuracy.png"),
        comparison.learning_rates(task, target / f"{prefix}learning-rate.png"),
        comparison.cost(task, target / f"{prefix}cost.png"),
        comparison.curves(task, folder, target / f"{prefix}curves.png"),
        comparison.experts(task, folder, target / f"{prefix}experts.png"),
    ]
    return [
        (f"Results, {task['name']}", _table(task, baseline)),
        *((picture.heading, _figure(picture)) for picture in pictures if picture is not None),
    ]


def _table(task: dict[str, Any], baseline: str) -> str:
    """Ranks, means, spreads, intervals."""
    rows = []
    for row in sorted(task["rows"], key=lambda row: (row["rank"] is None, row["rank"])):
        if row["mean"] is None:
            error = next((t["error"] for t in [*row["test"], *row["sweep"]] if t["error"]), "no run ended")
            rows.append(
                f'<tr><td></td><td>{escape(row["label"])}</td><td colspan="6">failed: {escape(error)}</td></tr>'
            )
            continue
        gap = "baseline" if row["label"] == baseline else _gap(row)
        cells = [
            f"{row['rank']:g}",
            f'<abbr title="{escape(row["description"])} ({escape(row["source"])})">{escape(row["label"])}</abbr>',
            percent(row["mean"]),
            "" if row["sd"] is None else percent(row["sd"]),
            gap,
            f"{row['learning_rate']:g}",
            count(row["parameters"]),
            f"{row['train_time']:.1f}",
        ]
        mark = ' class="baseline"' if row["label"] == baseline else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = (
        "rank",
        "method",
        f"{task['split']} {task['metric']} %",
        "sd",
        f"less {baseline}, points [95 %]",
        "learning rate",
        "trained parameters",
        "seconds",
    )
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(rows)
    over = next((row["paired_over"] for row in task["rows"] if row.get("paired_over")), None)
    widened = ", widened for few seeds by Student's t" if task.get("freedom") else ""
    intervals = f"intervals by paired bootstrap over {over}{widened}" if over else "nothing to redraw for intervals"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="results"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<p>Mean and standard deviation over seeds; {intervals}.</p>"
    )


def _overall(summary: dict[str, Any]) -> str:
    """Mean metric, mean rank and difference to the baseline over tasks, the best first; a method that failed on a task has none."""
    baseline = summary["run_info"]["plan"]["baseline"]
    rows = []
    for row in sorted(summary["overall"], key=lambda row: (row["mean_rank"] is None, row["mean_rank"])):
        rank, mean = (
            ("", "failed on a task") if row["mean"] is None else (f"{row['mean_rank']:.2f}", percent(row["mean"]))
        )
        gap = "baseline" if row["label"] == baseline else _gap(row)
        rows.append(f"<tr><td>{rank}</td><td>{escape(row['label'])}</td><td>{mean}</td><td>{gap}</td></tr>")
    names = ("mean rank", "method", f"mean of {len(summary['tasks'])} tasks", f"less {baseline}, points [95 %]")
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in names)
    body = "\n".join(rows)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="all tasks"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _gap(row: dict[str, Any]) -> str:
    """A difference in points with its interval; empty where there is none."""
    if row["difference"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"{100 * row['difference']:+.1f}{interval}"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return f'<figure><img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}"><figcaption>{escape(picture.note)}</figcaption></figure>'


def _alignment(stored: dict[str, Any], target: Path) -> Section:
    picture = aligned.draw(stored, target / "alignment.png")
    about = escape(stored["about"])
    again = f"<p>Measured with <code>{escape(stored['run_info']['command'])}</code></p>"
    return picture.heading, f"<p>{about}</p>{_figure(picture)}{again}"


def _origin(summary: dict[str, Any], folder: Path) -> Section:
    """Versions, machine, plan, and how to run it again."""
    meta, info = summary["meta_info"], summary["run_info"]
    versions = ", ".join(
        f"{name.removesuffix('-version')} {version}" for name, version in meta["package_info"].items() if version
    )
    system = meta["system_info"]
    machine = f"{system['processor']}, {system['cores']} cores, {system['accelerator']}, Python {system['python']}"
    plan = escape(_lines(info["plan"]))
    again = f"{info['command']}\ngoat report {folder}"
    body = [
        f'<pre tabindex="0">{escape(again)}</pre>',
        f"<p>Written {escape(info['created_at'])}. {escape(machine)}. {escape(versions)}.</p>",
        f'<details><summary>The plan</summary><pre tabindex="0">{plan}</pre></details>',
        "<p>The same seeds on the same machine give the same numbers. Each run's folder holds its recipe and result; runs known from files have none here.</p>",
    ]
    return "How to run it again", "".join(body)


def _lines(plan: dict[str, Any]) -> str:
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=110)


def _page(summary: dict[str, Any], sections: list[Section]) -> str:
    plan = summary["run_info"]["plan"]
    links = "".join(f'<a href="#part-{i}">{escape(heading)}</a> ' for i, (heading, _) in enumerate(sections))
    parts = "\n".join(
        f'<section id="part-{i}"><h2>{escape(heading)}</h2>{body}</section>'
        for i, (heading, body) in enumerate(sections)
    )
    trials = len(plan["methods"][0]["learning_rates"])
    few = len(plan["seeds"] or plan["tuning_seeds"])
    scored = (
        "chosen on a validation split; the choice scored once on the test split"
        if plan["seeds"]
        else "scored on a validation split alone; the best is shown, so that figures flatter every method"
    )
    warning = (
        ""
        if few >= 3
        else f'<p class="warn">{few} seed{"s" if few > 1 else ""} only: read the ranks as a demonstration; a result worth quoting takes 3 or more.</p>'
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{escape(plan["name"])}: comparison of methods</title><style>{_STYLE}</style></head>
<body><a class="skip" href="#main">Skip to the results</a>
<header><h1>{escape(plan["name"])}</h1><p>{escape(plan["description"])}</p>{warning}
<p>{len(plan["methods"])} methods; {trials} learning rate{"s" if trials > 1 else ""} each, {scored} for each of {few} seeds.</p>
<nav aria-label="sections">{links}</nav></header>
<main id="main">
{parts}
</main></body></html>
"""
