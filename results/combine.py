"""Two comparisons of the same methods on different tasks, as one: python results/combine.py ONE.json TWO.json OUT.json

For files whose runs are gone and which hold no answers by row, so that `goat compare --known` cannot draw their intervals again. Means and differences are those of the tasks
together. Tasks are redrawn independently of each other, so variances add, weighted by squared numbers of tasks, each side of an interval by itself. Of a file with one task the
variance is that of its interval before it was stretched for few seeds, with seeds - 1 degrees of freedom; of a file with several, whose stretching cannot be taken back, that of its
interval as it is, taken for known. What Welch and Satterthwaite then say of the sum stretches the new interval.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from goat_peft import records
from goat_peft.compare.statistics import ranks
from goat_peft.reporting.summary import Summary, read_summary
from goat_peft.training import record

_LEVEL = 0.975  # of a 95 % interval's upper end


def freedom(summary: Summary) -> float:
    """Degrees of freedom that an interval's variance still needs: those of the only task (one seed has none); of an average none are left to count."""
    return float(summary.tasks[0].get("freedom") or math.inf) if len(summary.tasks) == 1 else math.inf


def joined(gaps: list[dict[str, Any]], tasks: list[int], freedoms: list[float]) -> dict[str, float]:
    """The difference of two methods over all files' tasks, from theirs over each."""
    total = sum(tasks)
    difference = sum(n * gap["difference"] for n, gap in zip(tasks, gaps, strict=True)) / total
    ends = {}
    for end, side in (("low", -1), ("high", 1)):
        variances = [
            (n * (gap[end] - gap["difference"]) / student.ppf(_LEVEL, f) / total) ** 2
            for n, gap, f in zip(tasks, gaps, freedoms, strict=True)
        ]
        doubt = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
        stretched = student.ppf(_LEVEL, sum(variances) ** 2 / doubt if doubt else math.inf)
        ends[end] = difference + side * float(stretched) * math.sqrt(sum(variances))
    return {"difference": difference, **ends}


def combine(one: Summary, two: Summary) -> dict[str, Any]:
    """What one `comparison.json` of all the tasks would hold; raise `ValueError` for files that do not fit together."""
    plans = one.plan, two.plan
    for key in ("common", "methods", "baseline", "candidates", "overrides", "metric"):
        if plans[0].get(key) != plans[1].get(key):
            raise ValueError(f"{key} differs between {one.path} and {two.path}")
    if {task["name"] for task in one.tasks} & {task["name"] for task in two.tasks}:
        raise ValueError(f"{one.path} and {two.path} share a task")
    for file in (one, two):
        lacking = [label for label in one.labels if label not in file.overall or file.overall[label]["mean"] is None]
        if lacking:
            raise ValueError(f"{file.path}: {lacking[0]} has no average")
        if any(gap["low"] is None for row in file.overall.values() for gap in row["against"].values()):
            raise ValueError(f"{file.path}: its differences have no intervals")
    counts, freedoms = [len(one.tasks), len(two.tasks)], [freedom(one), freedom(two)]
    tasks = [*one.tasks, *two.tasks]
    overall = []
    for label in one.labels:
        against = {
            other: joined([one.gap(label, other), two.gap(label, other)], counts, freedoms)  # type: ignore[list-item]
            for other in one.labels
            if other != label
        }
        rows = [row for task in tasks for row in task["rows"] if row["label"] == label]
        overall.append(
            {
                "label": label,
                "mean": sum(row["mean"] for row in rows) / len(rows),
                "mean_rank": sum(_rank(task, label) for task in tasks) / len(tasks),
                **against.get(one.baseline, {"difference": None, "low": None, "high": None}),
                "against": against,
            }
        )
    first, second = one.data["run_info"], two.data["run_info"]
    places = list(first.get("ran_on", []))
    places += [place for place in second.get("ran_on", []) if place not in places]
    plan = plans[0] | {"recipes": plans[0]["recipes"] + plans[1]["recipes"]}
    return {
        "run_info": {
            "created_at": record.now(),
            "command": shlex.join(["python", *sys.argv]),
            "plan": plan,
            "ran_on": places,
            "combined": [
                {"file": file.path.name, "command": file.data["run_info"]["command"], "created_at": file.data["run_info"]["created_at"]}
                for file in (one, two)
            ],
        },
        "tasks": tasks,
        "overall": overall,
        "meta_info": two.data["meta_info"],
    }  # fmt: skip


def _rank(task: dict[str, Any], label: str) -> float:
    found = dict(zip([row["label"] for row in task["rows"]], ranks([row["mean"] for row in task["rows"]]), strict=True))
    return float(found[label] or math.nan)


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__.splitlines()[0] if __doc__ else "")
    first, second, out = map(Path, sys.argv[1:])
    records.write_json(out, combine(read_summary(first), read_summary(second)))


if __name__ == "__main__":
    main()
