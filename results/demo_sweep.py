"""Chooses the demo's learning rates: four per method, on a validation split cut from the training films.

Run from the project's root: `python results/demo_sweep.py`. The test split is never scored. Writes `demo-sweep.json`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from goat_peft import records
from goat_peft.recipes import load
from goat_peft.training import record, train

RATES = {
    "goat": (1e-4, 3e-4, 1e-3, 3e-3),
    "lora": (1e-4, 3e-4, 1e-3, 3e-3),
    "full": (1e-5, 3e-5, 1e-4, 3e-4),
}
SETTINGS = ["evaluation.split=validation", "evaluation.untrained=false"]


def one(method: str, rate: float, folder: Path) -> dict[str, object]:
    """Train one method at one rate and return its validation figures."""
    chosen = [] if method == "goat" else [f"method={method}"]
    recipe = load("demo-reviews", [*chosen, *SETTINGS, f"training.learning_rate={rate}", f"output_dir={folder}"])
    info = train(recipe, overwrite=True).result["train_info"]
    last = info["metrics"][-1]
    return {
        "method": method,
        "learning_rate": rate,
        "validation_accuracy": last["valid accuracy"],
        "validation_f1": last["valid f1"],
        "validation_rows": last["valid samples"],
        "final_train_loss": last["train loss"],
        "train_time": info["train_time"],
        "seed": recipe.training.seed,
    }


def main() -> None:
    """Run the grid and write the figures with versions, device and command."""
    started, rows = record.now(), []
    with tempfile.TemporaryDirectory() as folder:
        for method, rates in RATES.items():
            for rate in rates:
                rows.append(one(method, rate, Path(folder) / "run"))
                print(rows[-1], file=sys.stderr, flush=True)
    best = {m: max((r for r in rows if r["method"] == m), key=lambda r: r["validation_accuracy"]) for m in RATES}
    recipe = load("demo-reviews", SETTINGS)
    report = {
        "run_info": {
            "created_at": started,
            "command": "python results/demo_sweep.py",
            "train_config": recipe.model_dump(mode="json"),
        },
        "rows": rows,
        "chosen": {method: row["learning_rate"] for method, row in best.items()},
        "meta_info": record.meta_info(recipe),
    }
    records.write_json(Path(__file__).with_name("demo-sweep.json"), report)


if __name__ == "__main__":
    main()
