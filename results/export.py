"""What a plain LoRA keeps of a routed adapter's gain: the demo task, and a generation task on SmolLM2-135M.

Run from the project's root: `python results/export.py MODEL [DATA] [--task demo|sst2] [--steps N] [--seeds N]`, MODEL a folder of
SmolLM2-135M-Instruct, DATA the folder of the local data sets (`../shared/data` when not given). Trains what is not trained yet under
`runs/export`, exports each run with the mean routing weights, with the least-squares ones, and with distillation after them, and writes
`export.json` beside this file (or into --output); tasks that are not asked for stay in it as they were.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from goat_peft import records
from goat_peft.export import Wishes, export
from goat_peft.recipes import Recipe, check, load
from goat_peft.training import record, train

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name -> weighting, rank over the adapter's (None: what loses nothing), whether distilled
SETTINGS = {
    "regression": ("regression", None, False),
    "mean": ("mean", None, False),
    "regression, the adapter's rank": ("regression", 1, False),
    "regression, distilled": ("regression", None, True),
}


def demo(seed: int, folder: Path) -> Recipe:
    """The demo's run."""
    return load("demo-reviews", [f"training.seed={seed}", f"output_dir={folder}"])


def sst2(seed: int, folder: Path, model: str, data: Path, steps: int, rows: int) -> Recipe:
    """SST-2 as generation: the model writes a digit; its score is the likelier of the two. Short enough for two CPU cores."""
    return check(
        {
            "name": "sst2-generation",
            "model": {"name": model, "dtype": "float32"},
            "task": {
                "type": "generation",
                "data": {
                    "train": {"path": str(data / "glue/sst2/train.jsonl.gz"), "limit": 4000},
                    "test": {"path": str(data / "glue/sst2/validation.jsonl.gz"), "limit": rows},
                },
                "prompt": "{sentence}\nSentiment, 0 negative or 1 positive:",
                "response": " {label}",
                "answer": "{label}",
                "score": "likelihood",
                "options": ["0", "1"],
                "option_response": " {option}",
                "max_length": 96,
            },
            "method": {"name": "goat", "preset": "paper", "r": 16, "lora_dropout": 0.0, "target_modules": PROJECTIONS},
            "training": {"learning_rate": 1e-3, "max_steps": steps, "batch_size": 8, "warmup": max(1, steps // 10), "seed": seed, "save_steps": 0},
            "evaluation": {"batch_size": 32, "every_steps": 0},
            "output_dir": str(folder),
        }
    )  # fmt: skip


def measure(run: Path, wishes: Wishes, scratch: Path) -> dict[str, Any]:
    """One export's figures, without those of single layers."""
    result = export(run, wishes, output=scratch, overwrite=True).result
    found = result["export_info"]
    errors = [layer["error"] for layer in found.pop("layers").values()]
    found["layer_error"] = {"mean": sum(errors) / len(errors), "worst": max(errors)}
    settings = {key: result["run_info"][key] for key in ("calibrate", "weighting", "distill", "seed")}
    return settings | {"seconds": round(result["run_info"]["total_time"], 1)} | found


def main() -> None:
    """Train, export, write."""
    parser = argparse.ArgumentParser(description="what an export keeps")
    parser.add_argument("model")
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--task", choices=("demo", "sst2"), action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80, help="training steps of sst2")
    parser.add_argument("--rows", type=int, default=872, help="test rows of sst2")
    parser.add_argument("--distill", type=int, default=30)
    parser.add_argument("--scratch", type=Path, default=Path("runs/export"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "export.json")
    given = parser.parse_args()
    written = records.read_json(given.output) if given.output.is_file() else {}
    measurements = dict(written.get("measurements", {}))
    for task in given.task or ("demo", "sst2"):
        for seed in range(given.seeds):
            run = given.scratch / f"{task}-{seed}"
            if not records.is_finished(run):
                recipe = (
                    demo(seed, run)
                    if task == "demo"
                    else sst2(seed, run, given.model, given.data, given.steps, given.rows)
                )
                train(recipe, overwrite=True)
            rank = records.read_json(run / "adapter" / "adapter_config.json")["r"]
            # The demo's validation rows were not trained on; of the others, training sees a small part.
            calibrate = "validation" if task == "demo" else "train"
            for name, (weighting, times, distilled) in SETTINGS.items():
                wishes = Wishes(
                    calibrate=calibrate,
                    weighting=weighting,
                    rank=None if times is None else times * rank,
                    distill=given.distill if distilled else 0,
                )
                found = measure(run, wishes, given.scratch / "lora")
                measurements[f"{task}, seed {seed}, {name}"] = found
                sys.stdout.write(f"{task}, seed {seed}, {name}: kept {found['kept']}\n")
                sys.stdout.flush()
                info = {"created_at": record.now(), "command": record.command()}
                meta = {"package_info": record.package_info(), "system_info": record.system_info()}
                commands = {**written.get("commands", {}), task: info}
                written = {"commands": commands, "measurements": measurements, "meta_info": meta}
                records.write_json(given.output, written)


if __name__ == "__main__":
    main()
