"""Twenty kills and thousands of damaged files, counted.

Run from the project's root: `python results/reliability.py`. Runs the slow tests that kill runs at random moments and that damage adapters, and keeps
what they found: `crashes.json` (moment, where it hit, what the run went on from, whether it ended in the same bytes) and `hostile.json` (cases and what
came of them) beside this file. Several minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from goat_peft import records
from goat_peft.training import record

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "reliability"


def run(file: str, names: list[str]) -> tuple[dict[str, Any], float]:
    """Run the slow tests of a file; return the JSON files that they left, by name, and the seconds taken."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        code = pytest.main(
            ["-q", "-m", "slow", "-p", "no:cacheprovider", f"--basetemp={place}/tests", str(TESTS / file)]
        )
        seconds = time.perf_counter() - began
        if code:
            sys.exit(f"tests failed with code {code}; nothing is kept")
        found = {path.stem: records.read_json(path) for name in names for path in Path(place).glob(f"tests/*0/{name}")}
    return found, seconds


def keep(name: str, measurements: Any, seconds: float) -> None:
    """Write a result beside this file."""
    records.write_json(
        HERE / name,
        {
            "run_info": {
                "created_at": record.now(),
                "command": "python results/reliability.py",
                "seconds": round(seconds),
            },
            "measurements": measurements,
            "meta_info": {"package_info": record.package_info(), "system_info": record.system_info()},
        },
    )


def main() -> None:
    """Run the slow tests and keep what they measured."""
    found, seconds = run("test_crashes.py", ["crashes.json"])
    keep("crashes.json", found["crashes"], seconds)
    found, seconds = run("test_fuzzed_config.py", ["fuzzed.json", "flipped.json", "weights.json"])
    keep("hostile.json", found, seconds)


if __name__ == "__main__":
    main()
