"""The same training twice with the same seed: how far losses and final adapter weights are apart. Each run in a process of its own.

python results/determinism.py --model FOLDER --out $OUT/determinism.json     SmolLM2-135M from FOLDER, or its shapes with random weights without --model
python results/determinism.py --out /tmp/determinism.json --tiny             here, on the CPU
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/determinism"))
    parser.add_argument("--timeout", type=int, default=80, help="seconds for one run")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--worker", default="")
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    if options.worker:
        train(options)
        return
    import torch

    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for deterministic in (False, True):
        row: dict[str, Any] = {"use_deterministic_algorithms": deterministic, "steps": STEPS}
        environ = dict(os.environ) | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if deterministic else {})
        names = [f"{'deterministic' if deterministic else 'default'}-{run}" for run in (1, 2)]
        try:
            for name in names:
                flags = [
                    "--out",
                    str(options.out),
                    "--folder",
                    str(options.folder),
                    "--model",
                    options.model,
                    "--worker",
                    name,
                ]
                flags += ["--tiny"] * options.tiny + ["--deterministic"] * deterministic
                log = (options.folder / f"{name}.log").open("w")
                subprocess.run(
                    [sys.executable, __file__, *flags],
                    check=True,
                    timeout=options.timeout,
                    env=environ,
                    stdout=log,
                    stderr=log,
                )
            row |= difference(*(options.folder / name for name in names))
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            row["error"] = str(error)[-300:]
        rows.append(row)
        print(row, flush=True)
        packages = ("goat-peft", "torch", "transformers", "peft", "triton")
        found: dict[str, Any] = {}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        environment = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "versions": found,
            "model": "tiny Llama" if options.tiny else "SmolLM2-135M" + ("" if options.model else " shapes, random weights"),
            "batch": "8 x 256 tokens, dropout 0.05, bf16 autocast, AdamW, lr 1e-4" if not options.tiny else "2 x 16 tokens, dropout 0.05, float32",
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join(["python", *sys.argv]),
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


def train(options: argparse.Namespace) -> None:
    import warnings

    import torch
    from peft import get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from goat_peft import GoatConfig
    from goat_peft.adapter.factor_cache import use_factor_cache

    if options.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if options.tiny:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).requires_grad_(False)
    elif options.model:
        base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(device)
    else:
        from goat_peft.bench.workloads import build_base

        base = build_base("smollm2-135m", 30, torch.bfloat16, device)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = GoatConfig(
        r=8 if options.tiny else 32,
        num_experts=4 if options.tiny else 8,
        top_k=2,
        lora_dropout=0.05,
        target_modules=names,
    )
    with use_factor_cache(None):
        model = get_peft_model(base, config).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    tensors = {f"start.{n}": p.detach().cpu().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2 if options.tiny else 1e-4, weight_decay=0.0)
    rows, words = ((2, 16), 64) if options.tiny else ((8, 256), 49152)
    losses, begin = [], time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            ids = torch.randint(3, words, rows, generator=torch.Generator().manual_seed(step)).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=not options.tiny):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        tensors["losses"] = torch.stack(losses).float().cpu()
    told = sorted({str(w.message).splitlines()[0][:160] for w in caught if "determinist" in str(w.message)})
    save_file(
        tensors | {n: p.detach().cpu().contiguous() for n, p in trained.items()},
        options.folder / f"{options.worker}.safetensors",
    )
    seconds = time.perf_counter() - begin
    (options.folder / f"{options.worker}.json").write_text(
        json.dumps({"warned": told, "ms_per_step": round(seconds * 1e3 / STEPS, 1)})
    )


def difference(first: Path, second: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    one, two = (load_file(path.with_name(path.name + ".safetensors")) for path in (first, second))
    weights = [n for n in one if n != "losses" and not n.startswith("start.")]
    apart = sum((one[n].double() - two[n].double()).square().sum() for n in weights) ** 0.5
    size = sum(one[n].double().square().sum() for n in weights) ** 0.5
    moved = sum((one[n].double() - one[f"start.{n}"].double()).square().sum() for n in weights) ** 0.5
    losses = (one["losses"] - two["losses"]).abs()
    unequal = losses.nonzero()
    return {
        "same_to_the_bit": all(torch.equal(one[n], two[n]) for n in one),
        "same_start": all(torch.equal(one[f"start.{n}"], two[f"start.{n}"]) for n in weights),
        "weights_max_absolute": max((one[n] - two[n]).abs().max().item() for n in weights),
        "weights_relative": (apart / size).item(), "weights_relative_to_movement": (apart / moved).item(),
        "losses_max_absolute": losses.max().item(), "losses_max_relative": (losses / one["losses"].abs()).max().item(),
        "first_step_whose_loss_differs": int(unequal[0]) + 1 if len(unequal) else None,
        "first_loss": one["losses"][0].item(), "last_losses": [one["losses"][-1].item(), two["losses"][-1].item()],
    } | json.loads(first.with_name(first.name + ".json").read_text())  # fmt: skip


if __name__ == "__main__":
    main()
