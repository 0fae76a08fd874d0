"""A comparison as a Markdown table, with what is needed to judge it in the lines above and below."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from .settings import settings
from .summary import Summary
from .tables import code, count, percent

_MISSING = "-"


def table(summary: Summary, place: Path | None = None) -> str:
    """Caption, table and notes of one comparison; links are relative to the folder `place`.

    A method that failed on a task, or did not run there, has no average.
    """
    heads = ["method", *(_head(task, summary) for task in summary.tasks)]
    columns = [summary.labels, *(_scores(summary, task) for task in summary.tasks)]
    if len(summary.tasks) > 1:
        heads += ["average", "mean rank"]
        columns += [_averages(summary), _mean_ranks(summary)]
    for other in _others(summary):
        heads.append(f"less {other}")
        columns.append([gap_text(summary.gap(label, other)) for label in summary.labels])
    heads += ["trained parameters", "seconds"]
    columns += [
        [_parameters(summary, label) for label in summary.labels],
        [_seconds(summary, x) for x in summary.labels],
    ]
    lines = [
        "| " + " | ".join(heads) + " |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
        *("| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True)),
    ]
    below = [*_candidates(summary), *_missing(summary), *settings(summary.plan), _origin(summary, place)]
    return "\n".join([_caption(summary), "", *lines, "", "\n\n".join(below)])


def gap_text(gap: dict[str, Any] | None) -> str:
    """A difference in points with its interval, such as `+0.62 (+0.03 to +1.21)`."""
    if gap is None:
        return _MISSING
    interval = "" if gap["low"] is None else f" ({100 * gap['low']:+.2f} to {100 * gap['high']:+.2f})"
    return f"{100 * gap['difference']:+.2f}{interval}"


def rate_text(rate: float) -> str:
    """A learning rate such as `1e-4` or `2.5e-5`."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _others(summary: Summary) -> list[str]:
    """Whom the columns of differences are taken to."""
    full = [summary.full] if summary.full is not None and summary.has_pairs else []
    return [summary.baseline, *full]


def _head(task: dict[str, Any], summary: Summary) -> str:
    mixed = f", {task['split']}" if len(summary.splits) > 1 else ""
    return f"{task['name']}<br>{task['metric'].replace('_', ' ')}{mixed}"


def _best(shown: list[str | None]) -> list[str | None]:
    """The figures with the largest in bold; those that read the same share it."""
    known = [float(text) for text in shown if text is not None]
    return [f"**{text}**" if text is not None and float(text) == max(known) else text for text in shown]


def _scores(summary: Summary, task: dict[str, Any]) -> list[str]:
    """One task's column: `88.3 ± 0.4`, and the chosen learning rate where there was a choice."""
    rows = [summary.rows.get((task["name"], label)) for label in summary.labels]
    means = _best([percent(row["mean"]) if row and row["mean"] is not None else None for row in rows])
    cells = []
    for row, mean in zip(rows, means, strict=True):
        if row is None or mean is None:
            cells.append(_MISSING if row is None else "failed")
            continue
        spread = "" if row["sd"] is None else f" ± {percent(row['sd'])}"
        cells.append(mean + spread + (f" ({rate_text(row['learning_rate'])})" if summary.chosen else ""))
    return cells


def _averages(summary: Summary) -> list[str]:
    means = [summary.overall[label]["mean"] for label in summary.labels]
    return [text or _MISSING for text in _best([None if mean is None else f"{100 * mean:.2f}" for mean in means])]


def _mean_ranks(summary: Summary) -> list[str]:
    """Mean over tasks of each method's place among all, 1 for the best and ties shared: whatever a task's figure is, and however far it spreads."""
    places: dict[str, list[float]] = {label: [] for label in summary.labels}
    for task in summary.tasks:
        means = {row["label"]: row["mean"] for row in task["rows"] if row["mean"] is not None}
        for label, place in zip(means, rankdata([-mean for mean in means.values()]), strict=True):
            places[label].append(float(place))
    whole = len(summary.tasks)
    return [f"{sum(own) / whole:.1f}" if len(own) == whole else _MISSING for own in places.values()]


def _parameters(summary: Summary, label: str) -> str:
    """Trained parameters, from the smallest to the largest of the tasks."""
    found = [row["parameters"] for (_, own), row in summary.rows.items() if own == label and row["parameters"]]
    texts = list(dict.fromkeys([count(min(found)), count(max(found))])) if found else [_MISSING]
    return " to ".join(texts)


def _seconds(summary: Summary, label: str) -> str:
    """Mean training time over tasks, of runs that ended well; none where a task is missing, for then the means are of other work."""
    rows = [summary.rows.get((task["name"], label)) for task in summary.tasks]
    times = [row["train_time"] for row in rows if row and row["mean"] is not None]
    return f"{sum(times) / len(times):.0f}" if len(times) == len(rows) else _MISSING


def _caption(summary: Summary) -> str:
    common = ", ".join(f"{key}={value}" for key, value in summary.plan["common"].items())
    rates = "each method's learning rate chosen on validation" if summary.chosen else "one learning rate per method"
    if _factors(summary) and not summary.chosen:
        rates += ", times the task's factor"
    if summary.splits == {"validation"} and summary.chosen:
        rates = "each method's best learning rate on these same rows, which flatters all of them"
    parts = [
        f"**{summary.name}**" + (f" ({common})" if common else ""),
        f"{' and '.join(sorted(summary.splits))} split, {rates}",
        "mean ± standard deviation over seeds, x 100" + (" (learning rate)" if summary.chosen else ""),
        f"differences {'of averages ' if len(summary.tasks) > 1 else ''}in points {_intervals(summary)}",
    ]
    seconds = "seconds of training" + (", mean over tasks" if len(summary.tasks) > 1 else "")
    if summary.plan.get("parallel", 1) > 1:
        seconds += ", of runs that may have shared a device: no speed comparison"
    ranks = ["mean rank over tasks: 1 is best"] if len(summary.tasks) > 1 else []
    return "; ".join([*parts, seconds, *ranks, "bold: best of its column"]) + "."


def _intervals(summary: Summary) -> str:
    """Whether differences have intervals, what was redrawn for them, and whether they are widened for few seeds."""
    over: dict[str | None, list[str]] = {}  # names of tasks by what was redrawn, None where nothing was
    for task in summary.tasks:
        known = next((row["paired_over"] for row in task["rows"] if row.get("paired_over")), None)
        over.setdefault(known, []).append(task["name"])
    gaps = [summary.gap(label, other) for label in summary.labels for other in _others(summary)]
    if all(gap is None or gap["low"] is None for gap in gaps):
        fixed = over.get(None, [])
        return "without intervals" + (f": nothing can be redrawn on {', '.join(fixed)}" if fixed else "")
    kinds = [kind for kind in _OVER if kind in over]
    parts = ["paired bootstrap" + (f" over {_OVER[kinds[0]]}" if kinds else "")]
    parts += [f"over {_OVER[kind]} on {', '.join(over[kind])}" for kind in kinds[1:]]
    joined = " and ".join(part["file"] for part in summary.data["run_info"].get("combined", []))
    added = f"variances of {joined} added, each of a " if joined else ""
    return f"with 95 % intervals ({added}{', '.join(parts)}; {_widened(summary)})"


_OVER = {"seeds and examples": "seeds and rows", "seeds": "seeds alone", "examples": "rows alone"}


def _widened(summary: Summary) -> str:
    """How the intervals allow for few seeds."""
    if any(task.get("freedom") is None for task in summary.tasks):
        return "too narrow where seeds are few: the file is older than their widening"
    freedom = [task["freedom"] for task in summary.tasks]
    if not any(freedom):
        return "one seed, whose spread is not known"
    lone = f" with {freedom[0]} degrees of freedom"
    several = ", degrees of freedom after Welch and Satterthwaite"
    return "widened for few seeds by Student's t" + (lone if len(freedom) == 1 else several)


def _candidates(summary: Summary) -> list[str]:
    """The best of the plan's candidates against the best of the others, and against those that train every weight."""
    names = summary.plan.get("candidates") or []
    means = {label: summary.overall[label]["mean"] for label in summary.labels}
    known = [label for label in summary.labels if means[label] is not None]
    ours = [label for label in known if label in names]
    apart = [label for label in summary.whole if label not in names]
    others = [label for label in known if label not in names and label not in apart]
    if not names or not summary.has_pairs:
        return []
    if not ours or not (others or apart):
        return [f"Best of {', '.join(names)}: none has an average to compare."]
    best = max(ours, key=lambda label: means[label])
    said = []
    if others:
        rival = max(others, key=lambda label: means[label])
        but = f" but {' and '.join(apart)}" if apart else ""
        said.append(f"less {rival}, the best of the other methods{but}: {gap_text(summary.gap(best, rival))}")
    said += [f"less {label}: {gap_text(summary.gap(best, label))}" for label in apart]
    lines = [f"Best of {', '.join(names)}: {best}, {100 * means[best]:.2f}; {'; '.join(said)}."]
    picked = [
        f"the best of {which}" for which, group in (("the candidates", ours), ("the others", others)) if len(group) > 1
    ]
    if picked:
        were = "was" if len(picked) == 1 else "were"
        lines.append(
            f"{' and '.join(picked).capitalize()} {were} picked by these averages, which the intervals leave out of account."
        )
    absent = [label for label in summary.labels if means[label] is None and label not in apart]
    if absent:
        lines.append(f"Without an average, and so not among them: {', '.join(absent)}.")
    return [" ".join(lines)]


def _missing(summary: Summary) -> list[str]:
    """Why a cell has no figure."""
    notes = []
    for label in summary.labels:
        for task in summary.tasks:
            row = summary.rows.get((task["name"], label))
            if row is None:
                notes.append(f"{label} was not to run on {task['name']}")
            elif row["mean"] is None:
                failed = [trial["error"] for trial in row["test"] or row["sweep"] if trial["value"] is None]
                what = f"{len(failed)} of {len(row['test'])} runs" if row["test"] else "every learning rate"
                first = code(_cut(str(failed[0]) if failed else "no run"))
                notes.append(f"{label} on {task['name']}: {what} failed ({first})")
    if summary.full is not None and not summary.has_pairs:
        notes.append(f"the file is older than differences to {summary.full}: the same `goat compare` adds them")
    lines = ["Missing: " + "; ".join(notes) + "."] if notes else []
    tried = [trial["value"] for row in summary.rows.values() for trial in row["sweep"]]
    if None in tried:
        lines.append(
            f"Of {len(tried)} runs that chose learning rates {tried.count(None)} failed; a rate with a failed run was not chosen."
        )
    return lines


def _cut(text: str) -> str:
    """At most 160 characters of a message: torch's on memory names every process of the device."""
    return text if len(text) <= 160 else f"{text[:156]} ..."


def _origin(summary: Summary, place: Path | None) -> str:
    """Split, seeds, rates, device, versions and file in one line."""
    info, meta = summary.data["run_info"], summary.data["meta_info"]
    system = meta["system_info"]
    own = {"accelerator": system["accelerator"], **meta["package_info"]}
    machines = [_machine(found, system["processor"]) for found in info.get("ran_on") or [own]]
    link = str(summary.path)
    if place is not None:
        target = Path(os.path.relpath(summary.path.resolve(), place.resolve())).as_posix()
        link = f"[{summary.path.name}]({target})"
    split = " and ".join(sorted(summary.splits)).capitalize()
    return (
        f"{split} split; {_seeds(summary)}; learning rates {_rates(summary)}; {' and '.join(dict.fromkeys(machines))}; "
        f"`{info['command']}`, {info['created_at'][:10]}; every run's figure: {link}."
    )


def _machine(found: dict[str, str | None], processor: str) -> str:
    device = (found.get("processor") or processor) if found["accelerator"] == "cpu" else found["accelerator"]
    own = found.get("goat-peft-version") or "from source"  # files of before have no version of a checkout
    commit, _, dirty = (found.get("goat-peft-commit-hash") or "").partition("-")
    at = f" at {commit[:9]}{' with changes' if dirty else ''}" if commit else ""
    others = [f"{name} {found.get(f'{name}-version')}" for name in ("torch", "transformers", "peft")]
    return f"{device}, goat-peft {own}{at}, {', '.join(others)}"


def _seeds(summary: Summary) -> str:
    """`seeds 0, 1, 2; rates chosen with seed 0`, by task where they differ."""
    chosen = _by_task(summary, "sweep")
    said = f"seeds {_by_task(summary, 'test')}"
    return said if chosen == "none" else f"{said}; rates chosen with seed{'s' if ',' in chosen else ''} {chosen}"


def _by_task(summary: Summary, kind: str) -> str:
    """Seeds of the runs of a kind ("test" or "sweep"), by task where they differ."""
    found: dict[str, list[str]] = {}
    for task in summary.tasks:
        runs: list[dict[str, Any]] = next((row[kind] for row in task["rows"] if row[kind]), [])
        seeds = ", ".join(dict.fromkeys(str(trial["seed"]) for trial in runs if "seed" in trial))
        found.setdefault(seeds or "none", []).append(task["name"])
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{seeds} ({', '.join(tasks)})" for seeds, tasks in found.items())


def _rates(summary: Summary) -> str:
    """The rates tried; those of the largest group of methods first, the others with their names, then tasks where all are multiplied."""
    groups: dict[str, list[str]] = {}
    for method in summary.plan["methods"]:
        groups.setdefault(", ".join(map(rate_text, method["learning_rates"])), []).append(method["label"])
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    multiplied = [f"times {factor:g} on {' and '.join(names)}" for factor, names in _factors(summary).items()]
    others = [f"for {' and '.join(labels)} {rates}" for rates, labels in ordered[1:]]
    return ", ".join([ordered[0][0], *others, *multiplied])


def _factors(summary: Summary) -> dict[float, list[str]]:
    """Names of the tasks on which every rate is multiplied, by what."""
    found: dict[float, list[str]] = {}
    for task in summary.plan.get("recipes", []):
        factor = 1.0 if isinstance(task, str) else task.get("rate_factor", 1.0)  # a name alone in the files of before
        if factor != 1:
            found.setdefault(factor, []).append(task["label"])
    return found
