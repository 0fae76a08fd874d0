"""Run PEFT's MetaMathQA comparison on GOAT: `python run_goat.py HARNESS EXPERIMENT [ARGUMENTS]...`.

The harness is run as it is, from its own folder; all it lacks is the import that makes PEFT know the method. Results lie where it writes them.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

import goat_peft  # noqa: F401 - PEFT knows the peft_type GOAT from here on

HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> None:
    """Start the harness' `run.py` on an experiment folder, named as `experiments/goat/NAME` from this file's folder."""
    parser = argparse.ArgumentParser(description="PEFT's MetaMathQA comparison, on GOAT")
    parser.add_argument("harness", type=Path, help="PEFT_CHECKOUT/method_comparison/MetaMathQA")
    parser.add_argument("experiment", help="such as experiments/goat/llama-3.2-3B-rank32")
    given, passed_on = parser.parse_known_args(arguments)
    script = given.harness.resolve() / "run.py"
    if not script.is_file():
        parser.error(f"harness={given.harness}: holds no run.py; give PEFT_CHECKOUT/method_comparison/MetaMathQA")
    if not (HERE / given.experiment / "adapter_config.json").is_file():
        known = sorted(str(path.parent.relative_to(HERE)) for path in HERE.glob("experiments/*/*/adapter_config.json"))
        parser.error(f"experiment={given.experiment}: no such experiment; choose from {', '.join(known)}")
    # It takes an experiment by a path of exactly three parts, and imports its neighbours by name.
    os.chdir(HERE)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *passed_on, given.experiment.rstrip("/")]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
