"""Real steps of a recipe's architecture with random weights on the GPU here: what a plan is checked against."""

from __future__ import annotations

import gc
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapter.factor_cache import use_factor_cache
from ..bench.measure import append_rows, environment
from ..bench.quantised import quantise
from ..errors import UserError
from ..recipes import Recipe
from ..recipes.schema import METHODS
from ..tasks import bind
from .estimate import GIB, Plan, workload_of
from .standin import architecture, random_model
from .step import Workload, bare, prepare

_DEVICE = "cuda"
_STEPS = 4  # micro-batches; layers learn in the first what they share, the optimiser gets its moments at its end


@dataclass(frozen=True)
class Measured:
    """Peak bytes of a step, and of starting the method on the base; median seconds of a step."""

    peak: int
    starting: int
    step_seconds: float


def require_gpu() -> None:
    """Raise `UserError` without a GPU."""
    if not torch.cuda.is_available():
        raise UserError("--measure: needs a CUDA device, and there is none here; leave it out for the plan alone")


def measure(recipe: Recipe, length: int | None, plan: Plan) -> Measured:
    """Run a few steps of random tokens or images as `plan` supposes them."""
    config = architecture(recipe)
    workload = workload_of(recipe, config, length, plan.loss)
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(recipe.training.seed)
    with torch.device(_DEVICE):
        model: nn.Module = random_model(recipe, config)
    model.requires_grad_(False)
    if recipe.model.quantize is not None:
        model = quantise(model, recipe.model.quantize)
        gc.collect()
    torch.cuda.reset_peak_memory_stats()
    with use_factor_cache(None):
        model = METHODS[recipe.method.name].build(model, recipe.method, bind(recipe.task).peft_type)
    starting = torch.cuda.max_memory_allocated()
    prepare(model, workload)
    if workload.loss == "fused":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(bare(model), outputs=("log_probs", "entropy", "is_top1"))
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    seconds = _steps(model, workload, _vocabulary(config))
    return Measured(torch.cuda.max_memory_allocated(), starting, seconds)


def row(recipe: Recipe, plan: Plan, found: Measured) -> dict[str, Any]:
    """Prediction and measurement side by side, with their circumstances."""
    parts = plan.parts["single"]
    return {
        "model": plan.model, "method": plan.method, "quantize": plan.quantize, "parameters": plan.total_parameters, "trained_parameters": plan.trained_parameters,
        "batch": plan.batch, "accumulation": recipe.training.gradient_accumulation_steps, "length": plan.length, "checkpointing": plan.checkpointing, "bf16": recipe.training.bf16, "loss": plan.loss,
        "predicted_gib": parts.peak / GIB, "measured_gib": found.peak / GIB, "error": parts.peak / found.peak - 1,
        "predicted_starting_gib": parts.starting / GIB, "measured_starting_gib": found.starting / GIB,
        "predicted_step_ms": plan.step_seconds * 1e3, "step_ms": found.step_seconds * 1e3,
    } | environment(_DEVICE)  # fmt: skip


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a results file."""
    append_rows(path, rows)


def _vocabulary(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", 2)


def _steps(model: nn.Module, workload: Workload, vocabulary: int) -> float:
    """Median seconds of a micro-batch, the first two left out; AdamW steps after each, or after each second one where the recipe accumulates."""
    inputs = {}
    for name, (shape, dtype) in workload.inputs.items():
        if dtype.is_floating_point:
            inputs[name] = torch.randn(shape, device=_DEVICE, dtype=dtype)
        else:
            inputs[name] = torch.randint(0, vocabulary if len(shape) == 2 else 2, shape, device=_DEVICE)
    if "labels" in inputs and "input_ids" in inputs and inputs["labels"].shape == inputs["input_ids"].shape:
        inputs["labels"] = inputs["input_ids"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    times = []
    for index in range(_STEPS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        with torch.autocast(_DEVICE, dtype=torch.bfloat16) if workload.bf16 else nullcontext():
            if workload.loss == "full":
                loss = model(**inputs).loss
            else:
                loss = -model(**inputs, fused_lm_head=True).log_probs.sum() / workload.tokens
        loss.backward()
        del loss
        if index % 2 or not workload.accumulates:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])
