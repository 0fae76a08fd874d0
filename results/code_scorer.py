"""Checks the scorer of programs in full: the benchmarks' own solutions, and answers without one.

Run from the project's root: `python results/code_scorer.py [FOLDER]`, FOLDER holding `humaneval/test.jsonl.gz` and
`mbpp/all.jsonl.gz` (`../shared/data/code` when not given). Writes `code-scorer.json` beside this file.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from goat_peft import records, sandbox
from goat_peft.tasks.code import Judging, score_completions
from goat_peft.training import record

STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
COMPLETION = Judging(extract="completion", stop=STOP)


def fenced(program: str) -> str:
    """An answer that holds the program in a fenced block."""
    return f"Here is the solution:\n\n```python\n{program}\n```\nIt needs no imports."


def measure(name: str, rows: list[dict[str, Any]], texts: list[str], judging: Judging) -> dict[str, Any]:
    """Score one text per row; figures, and which rows did not end as most did."""
    begin = time.perf_counter()
    scores = score_completions(rows, [[text] for text in texts], judging)
    seconds = time.perf_counter() - begin
    outcomes = Counter(row["outcome"] for row in scores.predictions)
    return {
        "name": name,
        "rows": len(rows),
        "passed": sum(row["correct"] for row in scores.predictions),
        **scores.metrics,
        "outcomes": dict(outcomes),
        "seconds": round(seconds, 1),
        "slowest_program_seconds": max(row["seconds"] for row in scores.predictions),
        "not_passed": [row["name"] for row in scores.predictions if not row["correct"]] if any(texts) else "all",
    }


def main() -> None:
    """Measure all and write the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data/code")

    def read(name: str) -> list[dict[str, Any]]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    humaneval, mbpp = read("humaneval/test.jsonl.gz"), read("mbpp/all.jsonl.gz")
    started = record.now()
    solutions = [row["canonical_solution"] for row in humaneval]
    found = [
        measure("HumanEval, canonical solutions", humaneval, solutions, COMPLETION),
        measure("HumanEval, empty completions", humaneval, [""] * len(humaneval), COMPLETION),
        measure(
            "HumanEval, canonical solutions in a fenced block",
            humaneval,
            [fenced(row["prompt"] + row["canonical_solution"]) for row in humaneval],
            Judging(),
        ),
        measure(
            "HumanEval, bodies of canonical solutions in a fenced block",
            humaneval,
            [*map(fenced, solutions)],
            Judging(),
        ),
        measure("MBPP, its own code", mbpp, [fenced(row["code"]) for row in mbpp], Judging(problems="mbpp")),
    ]
    containment = sandbox.require()
    result = {
        "run_info": {"created_at": started, "command": record.command(), "layers": list(containment.layers)},
        "measurements": found,
        "meta_info": {"package_info": record.package_info(), "system_info": record.system_info()},
    }
    records.write_json(Path(__file__).with_name("code-scorer.json"), result)


if __name__ == "__main__":
    main()
