"""`result.json`: the three blocks of PEFT's method comparison, so that figures can be laid side by side."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from .. import __version__
from ..recipes import ModelSettings, Recipe, TaskOptions

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "safetensors",
    "scikit-learn",
)
# What the trainers log of a mixture's experts beside the loss.
EXPERT_FIGURES = ("balance_loss", "expert_imbalance", "expert_imbalance_worst", "experts_idle")


def now() -> str:
    """The time as text, in UTC and to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line that started this process, as it can be typed again."""
    program = Path(sys.argv[0]).name
    return shlex.join([program, *sys.argv[1:]])


def package_info() -> dict[str, str | None]:
    """Versions of the packages that a result depends on, and this one's commit where it runs from a checkout, under the keys PEFT's harness uses."""
    own = {"goat-peft-version": __version__, "goat-peft-commit-hash": _commit()}
    return own | {f"{name}-version": _version(name) for name in PACKAGES}


def system_info() -> dict[str, Any]:
    """The machine: system, processor, cores, accelerator."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = "cpu"
    if accelerator is not None:
        name = torch.cuda.get_device_name(0) if accelerator.type == "cuda" else accelerator.type
    return {
        "system": platform.system(),
        "release": platform.release(),
        "version": platform.version(),
        "machine": platform.machine(),
        "processor": platform.processor() or _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": name,
        "python": platform.python_version(),
    }


def meta_info(recipe: Recipe) -> dict[str, Any]:
    """The `meta_info` block of a recipe: where model and data came from, versions, machine."""
    return origins(recipe.model, [recipe.task, *recipe.evaluation.tests])


def origins(model: ModelSettings, tasks: list[TaskOptions]) -> dict[str, Any]:
    """The `meta_info` block of a model and the tasks it was trained or scored on, the first of them under the splits' bare names."""
    sources = {}
    for place, task in enumerate(tasks):
        data = getattr(task, "data", None)
        prefix = f"{task.name} " if place else ""
        for split in ("train", "validation", "test") if data is not None else ():
            if getattr(data, split) is not None:
                sources[prefix + split] = {**getattr(data, split).model_dump(mode="json"), "folder": data.folder}  # type: ignore[union-attr]
    shown = ("path", "dataset", "config", "split", "revision", "folder")
    return {
        "model_info": {"name": model.name, "revision": model.revision},
        "dataset_info": {name: {key: source[key] for key in shown} for name, source in sources.items()},
        "package_info": package_info(),
        "system_info": system_info(),
        "pytorch_info": torch.__config__.show(),
    }


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return (trainable, all) parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def memory_block() -> dict[str, int]:
    """Peak memory of the accelerator in bytes; zeros on a machine without one."""
    if not torch.cuda.is_available():
        return dict.fromkeys(
            ("accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th"), 0
        )
    reserved, peak = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    return {
        "accelerator_memory_reserved_avg": reserved,
        "accelerator_memory_max": peak,
        "accelerator_memory_reserved_99th": peak,
    }


def peft_config(model: nn.Module) -> dict[str, Any] | None:
    """The active adapter's settings, or None for a model without one."""
    return model.active_peft_config.to_dict() if isinstance(model, PeftModel) else None


def size_of(folder: Path) -> int:
    """Bytes of the weight files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def history_rows(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn the Trainer's log into rows with the names PEFT's harness uses ("train loss", "valid accuracy")."""
    rows = []
    for entry in log_history:
        row: dict[str, Any] = {"step": entry["step"], "epoch": entry.get("epoch")}
        if "loss" in entry:
            row |= {"train loss": entry["loss"], "learning rate": entry.get("learning_rate")}
            row |= {"grad norm": entry.get("grad_norm")}
            row |= {name: entry[name] for name in EXPERT_FIGURES if name in entry}
        elif "eval_loss" in entry:
            skip = ("_runtime", "_per_second", "_num_tokens")
            names = [key for key in entry if key.startswith("eval_") and not key.endswith(skip)]
            row |= {f"valid {name.removeprefix('eval_')}": entry[name] for name in names}
        else:
            continue
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The commit of this package's source, with "-dirty" where files differ from it; None where it is in no repository of its own."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10)
        told = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None


def _processor() -> str:
    """The processor's name on Linux, where `platform` leaves it empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
