"""Measures gradient alignment on MiniLM and film reviews: the theorem's scale against alpha / d, with SVD segments and with zero B.

Run from the project's root: `python results/alignment.py`. Writes `alignment.json` and `alignment.png` beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, set_seed

from goat_peft import records
from goat_peft.compare.alignment import follow
from goat_peft.recipes import Recipe, load
from goat_peft.recipes.schema import METHODS
from goat_peft.reporting.alignment import draw, findings
from goat_peft.tasks import bind
from goat_peft.training import record
from goat_peft.training.loading import load_base, load_processor, quiet_libraries

STEPS, BATCH, RATE, ETA = 20, 16, 0.01, 1.0
MEASURED = {0, 1, 2, 5, 10, 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "segments, alpha": {"name": "goat", "init_weights": "goat", "scaling": "lora"},
    "segments, theorem": {"name": "goat", "init_weights": "goat", "scaling": "paper", "eta": ETA},
    "zero B, alpha": {"name": "goat", "init_weights": "lora", "scaling": "lora"},
    "zero B, theorem": {"name": "goat", "init_weights": "lora", "scaling": "paper", "eta": ETA},
}
PAIRS = [["segments, alpha", "segments, theorem"], ["zero B, alpha", "zero B, theorem"]]
ABOUT = (
    f"Each expert's equivalent gradient g~ = s^2 (B B^T g + g A^T A) against its full-rank gradient g, over all layers of MiniLM, along {STEPS} SGD steps "
    f"(rate {RATE}, batches of {BATCH} reviews, rank 8 over 8 experts, eta {ETA:g}). A distance of 0 would be full fine-tuning; 1 is what g~ = 0 has."
)


def batches(recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    """The same batches for every setting."""
    task = bind(recipe.task)
    tokenizer = load_processor(recipe.model, task)
    rows = task.prepare(task.load().train.select(range(STEPS * BATCH)), tokenizer, "train").remove_columns("length")
    collate = DataCollatorWithPadding(tokenizer)
    return [dict(collate([rows[i] for i in range(start, start + BATCH)])) for start in range(0, STEPS * BATCH, BATCH)]


def main() -> None:
    """Measure every setting and write figures and picture."""
    started, rows = record.now(), []
    recipe = load("demo-reviews", ["task.max_length=32"])
    with quiet_libraries():
        data = batches(recipe)
        for label, options in SETTINGS.items():
            method = METHODS[options["name"]]
            chosen = method.options.model_validate(
                {**options, "r": 8, "router_aux_loss_coef": 0.0, "lora_dropout": 0.0}
            )
            set_seed(0)
            task = bind(recipe.task)
            model = load_base(recipe.model, task, load_processor(recipe.model, task))
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            model = method.build(model, chosen, task.peft_type)
            points = follow(model, data, RATE, MEASURED, ETA)
            rows.append({"label": label, "options": chosen.model_dump(mode="json"), "points": points})
            print(label, points[0], points[-1], sep="\n  ", file=sys.stderr, flush=True)
    report = {
        "run_info": {
            "created_at": started,
            "command": "python results/alignment.py",
            "steps": STEPS,
            "batch": BATCH,
            "rate": RATE,
            "eta": ETA,
        },
        "about": ABOUT,
        "pairs": PAIRS,
        "rows": rows,
        "meta_info": record.meta_info(recipe),
    }
    report["findings"] = findings(report)
    folder = Path(__file__).parent
    records.write_json(folder / records.ALIGNMENT, report)
    draw(report, folder / "alignment.png")


if __name__ == "__main__":
    main()
