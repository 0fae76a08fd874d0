"""Is `training.cuda_graphs` the same training, and how much faster? MRPC on MiniLM, methods side by side.

Each method trains three times: as shipped; with the batches that captured steps get (`even`), without graphs; and with graphs. The losses of the last two
have to agree, dropout included, as they draw the same numbers.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from goat_peft import recipes
from goat_peft.recipes.schema import METHODS
from goat_peft.tasks import bind, captured
from goat_peft.training.evaluation import usage_rows
from goat_peft.training.folder import RunFolder
from goat_peft.training.loading import device, load_base, load_processor, quiet_libraries
from goat_peft.training.run import training_arguments


class Clock(TrainerCallback):
    """Seconds between two steps, both waited for."""

    def __init__(self, first: int, last: int) -> None:
        self.at, self.times = (first, last), []

    def on_step_end(self, args, state, control, **_):
        if state.global_step in self.at:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())


def train(arguments, overrides, way):
    recipe = recipes.load(arguments.recipe, overrides)
    task, method = bind(recipe.task), METHODS[recipe.method.name]
    rows = task.load().train
    set_seed(0)
    processor = load_processor(recipe.model, task)
    model = method.build(load_base(recipe.model, task, processor).to(device()), recipe.method, task.peft_type)
    clock = Clock(arguments.steps // 2, arguments.steps)
    given = training_arguments(recipe, RunFolder(Path("unused")), False)
    trainer = task.trainer(model, given, task.prepare(rows, processor, "train"), None, processor, [clock])
    shapes = captured.SHAPES
    trainer.remove_callback(PrinterCallback)
    if way != "plain":
        trainer.capture_steps(lambda note: print("  note:", note, flush=True))
    if way == "even":
        captured.SHAPES = 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    trainer.train()
    captured.SHAPES = shapes
    log = [row for row in trainer.state.log_history if "loss" in row]
    found = {
        "losses": [row["loss"] for row in log],
        "balance": [row["balance_loss"] for row in log if "balance_loss" in row],
        "norms": [row["grad_norm"] for row in log],
        "tokens": sum(row["tokens"] for row in usage_rows(model)),
        "share": [row["share"] for row in usage_rows(model)][:1],
        "steps_per_s": (arguments.steps - arguments.steps // 2) / (clock.times[1] - clock.times[0]),
        "seconds": time.perf_counter() - begin,
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else None,
        "notes": trainer.notes,
    }
    del trainer, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder that holds minilm/")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds glue/mrpc/train.jsonl.gz")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--methods", default="lora,goat,dora,adamole,hydralora,full")
    parser.add_argument("--recipe", default="mrpc-minilm")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as training.bf16=true")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.methods.split(","):
        base = [
            f"model.name={arguments.models / 'minilm'}",
            f"task.data.train={{path: {arguments.data / 'glue/mrpc/train.jsonl.gz'}}}",
            "task.data.test=null", "task.data.cut=null", f"method={name}",
            f"training.max_steps={arguments.steps}", "training.epochs=null", "training.logging_steps=10", "training.save_steps=0",
            *([] if name.startswith("full") else ["method.lora_dropout=0.05"]), *arguments.overrides,
        ]  # fmt: skip
        found = rows[name] = {}
        for way in ("plain", "even", "graphs"):
            with quiet_libraries():
                found[way] = train(arguments, base, way)
        print(
            f"{name}: steps/s " + ", ".join(f"{way} {row['steps_per_s']:.1f}" for way, row in found.items()), end="; "
        )
        print(
            "faster "
            + f"{found['graphs']['steps_per_s'] / found['plain']['steps_per_s']:.2f}x; seconds in all "
            + ", ".join(f"{row['seconds']:.1f}" for row in found.values())
        )
        for way, row in found.items():
            print(f"  {way:7}" + " ".join(f"{loss:8.4f}" for loss in row["losses"]), flush=True)
        for key in ("losses", "norms", "balance"):
            worst = max(
                (abs(a - b) / max(abs(a), 1e-9) for a, b in zip(found["even"][key], found["graphs"][key])), default=0.0
            )
            print(f"  {key}: largest relative difference of even and graphs {worst:.2e}")
        print(
            f"  counted tokens: even {found['even']['tokens']:.0f}, graphs {found['graphs']['tokens']:.0f}; GiB reserved {[row['peak_gib'] for row in found.values()]}",
            flush=True,
        )
        if arguments.out:
            about = {
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            }
            arguments.out.write_text(json.dumps(about | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
