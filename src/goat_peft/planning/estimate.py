"""A recipe's plan: what each part takes, on each GPU, and how long a step might run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..adapter import GoatLayer
from ..errors import UserError, first_line
from ..ops.paths import HAS_TRITON
from ..recipes import Recipe
from .live import ROUND
from .standin import QuantisedStandIn, architecture, skeleton
from .step import Loss, Workload, run_for_sizes

Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = ("single", "ddp", "fsdp2", "zero2", "zero3")
GIB = 2**30
CONTEXT = round(0.6 * GIB)  # CUDA's context and libraries, outside the allocator
WORKSPACE = 64 * 2**20  # cuBLAS on Hopper: 32 MiB for the forward's thread and as much for the backward's
TFLOPS = 350.0  # what the rows of benchmarks/results/train_step.json come to on an H100 in bfloat16
_BUCKET = 500_000_000  # values: DeepSpeed's default reduce_bucket_size


@dataclass(frozen=True)
class Parts:
    """Bytes of one GPU's share. Their sum is `peak`; `starting` is the most while the experts get their first values, instead of a step."""

    base: int  # frozen weights and buffers
    trained: int  # weights that train
    residual: int  # frozen factors, scales and samples of the adapter
    optimiser: int
    saved: int  # activations, when the forward ends
    rest: int  # gradients and temporaries beyond those, at the peak
    communication: int
    workspace: int
    starting: int

    @property
    def peak(self) -> int:
        return (
            self.base
            + self.trained
            + self.residual
            + self.optimiser
            + self.saved
            + self.rest
            + self.communication
            + self.workspace
        )


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on one GPU of `gpus`, under each strategy asked for."""

    model: str
    method: str
    quantize: str | None
    batch: int
    length: int | None
    checkpointing: bool
    loss: Loss
    gpus: int
    total_parameters: int
    trained_parameters: int
    gradients: int  # bytes, when all exist
    flops: float  # of one micro-batch, forward and backward, with what checkpointing computes again
    step_seconds: float
    parts: dict[Strategy, Parts]

    def as_json(self) -> dict[str, Any]:
        """Plain data, with each strategy's peak."""
        found = asdict(self)
        for strategy, parts in self.parts.items():
            found["parts"][strategy]["peak"] = parts.peak
        return found


def plan(
    recipe: Recipe,
    strategies: tuple[Strategy, ...] = ("single",),
    gpus: int = 1,
    length: int | None = None,
    loss: Loss | None = None,
    tflops: float = TFLOPS,
) -> Plan:
    """Plan a recipe; raise `UserError` for what cannot be planned."""
    if not HAS_TRITON:
        raise UserError(
            "goat plan: follows the operator's GPU path, which needs Triton installed (no GPU); pip install triton"
        )
    config = architecture(recipe)
    workload = workload_of(recipe, config, length, loss)
    model = skeleton(recipe, config)
    base, trained, residual = _weights(model)
    trained_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = _count(model)
    flops, scratch, block = _flops(model, workload, config), _start_scratch(model), _largest_block(model)
    try:
        memory = run_for_sizes(model, workload)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise UserError(
            f"method={recipe.method.name}: a step on {type(model).__name__} of {recipe.model.name} cannot be run for its sizes ({first_line(error)}); "
            "plan another method, or measure"
        ) from error
    whole = Parts(
        base,
        trained,
        residual,
        2 * trained,
        memory.saved,
        max(0, memory.peak - memory.saved),
        0,
        WORKSPACE,
        base + trained + residual + scratch,
    )
    return Plan(
        recipe.model.name, recipe.method.name, recipe.model.quantize, workload.batch, workload.length, workload.checkpointing, workload.loss, gpus,
        total, trained_count, trained, flops, flops / (tflops * 1e12),
        {strategy: _share(whole, strategy, gpus, block, workload.accumulates) for strategy in strategies},
    )  # fmt: skip


def workload_of(recipe: Recipe, config: Any, length: int | None, loss: Loss | None) -> Workload:
    """What a micro-batch of the recipe holds, at its longest; raise `UserError` where the recipe does not say."""
    batch, kind = recipe.training.batch_size, recipe.task.type
    settings: dict[str, Any] = {
        "batch": batch,
        "bf16": recipe.training.bf16,
        "checkpointing": recipe.training.gradient_checkpointing,
        "accumulates": recipe.training.gradient_accumulation_steps > 1,
    }
    if kind == "image_classification":
        vision = getattr(config, "vision_config", config)
        size, patch = vision.image_size, vision.patch_size
        shape = (batch, getattr(vision, "num_channels", 3), size, size)
        inputs = {"pixel_values": (shape, torch.float32), "labels": ((batch,), torch.long)}
        return Workload(inputs, tokens=batch * ((size // patch) ** 2 + 1), length=None, loss="full", **settings)
    length = length or getattr(recipe.task, "max_length", None)
    if length is None:
        raise UserError("task.max_length=None: a plan needs the longest sequence; give --length")
    ids = ((batch, length), torch.long)
    if kind == "text_classification":
        labels = ((batch,), torch.long)
        return Workload(
            {"input_ids": ids, "labels": labels}, tokens=batch * length, length=length, loss="full", **settings
        )
    return Workload(
        {"input_ids": ids, "labels": ids}, tokens=batch * length, length=length, loss=loss or "fused", **settings
    )


def _weights(model: nn.Module) -> tuple[int, int, int]:
    """Bytes of the frozen base, of what trains, and of the adapter's frozen tensors."""
    found, seen = {"base": 0, "trained": 0, "residual": 0}, set()
    adapters = {
        id(m)
        for layer in model.modules()
        if isinstance(layer, GoatLayer)
        for m in layer.children()
        if m is not layer.base_layer
    }
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            kind = "trained" if tensor.requires_grad else "residual" if id(module) in adapters else "base"
            found[kind] += -(-tensor.numel() * tensor.element_size() // ROUND) * ROUND
    return found["base"], found["trained"], found["residual"]


def _count(model: nn.Module) -> int:
    """Parameters of a model; those of quantised linears as before packing."""
    packed = (m for m in model.modules() if isinstance(m, QuantisedStandIn))
    return sum(p.numel() for p in model.parameters()) + sum(
        m.in_features * m.out_features - m.weight.numel() for m in packed
    )


def _flops(model: nn.Module, workload: Workload, config: Any) -> float:
    """Of a forward and a backward: 2 for each weight and token, as many for the input's gradient and the weight's where it trains, attention besides.

    Checkpointing adds the forward of the blocks that it runs again; the head is in none.
    """
    blocks = (block for block in model.modules() if isinstance(block, GradientCheckpointingLayer))
    inside = {id(module) for block in blocks for module in block.modules()}
    total, again = 0.0, 0.0
    for module in model.modules():
        forward = 0.0
        if isinstance(module, GoatLayer):
            for name in module.goat_A:
                tensors = module.experts(name)
                residual = 0 if tensors.residual_A is None else tensors.residual_A.numel() + tensors.residual_B.numel()  # type: ignore[union-attr]
                experts = tensors.A.numel() + tensors.B.numel() + tensors.router.numel()
                total += 6.0 * experts + 4.0 * residual
                forward += 2.0 * (experts + residual)
        elif isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
            total += (6.0 if module.weight.requires_grad else 4.0) * size
            forward = 2.0 * size
        if id(module) in inside:
            again += forward
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    per_image = workload.tokens / workload.batch
    attention = 4.0 * per_image * getattr(text, "hidden_size", 0) * getattr(text, "num_hidden_layers", 0)
    causal = (
        0.5
        if workload.length is not None and "labels" in workload.inputs and len(workload.inputs["labels"][0]) == 2
        else 1.0
    )
    recomputed = again + causal * attention if workload.checkpointing else 0.0
    return workload.tokens * (total + 3.5 * causal * attention + recomputed)


def _start_scratch(model: nn.Module) -> int:
    """Bytes of the largest decomposition: the weight in float64, its Gram matrix, the eigenvectors and the solver's own, see `singular_triplets`."""
    largest = 0
    for layer in model.modules():
        if isinstance(layer, GoatLayer) and any(config.uses_residual for config in layer.configs.values()):
            m, n = layer.out_features, layer.in_features
            largest = max(largest, 8 * (2 * m * n + 4 * min(m, n) ** 2))
    return largest


def _largest_block(model: nn.Module) -> int:
    """Bytes of the largest block of a list of layers: what a sharded strategy gathers at a time."""
    sizes = [
        sum(t.numel() * t.element_size() for t in (*child.parameters(), *child.buffers()))
        for module in model.modules() if isinstance(module, nn.ModuleList) for child in module
    ]  # fmt: skip
    return max(sizes, default=0)


def _share(whole: Parts, strategy: Strategy, gpus: int, block: int, accumulates: bool) -> Parts:
    """One GPU's share. Only `single` is measured; the others follow from what each strategy documents that it shards and keeps.

    Under FSDP2 gradients stay whole where they accumulate: accelerate has them reduced, and so parted, after the last micro-batch alone.
    """

    def part(size: int) -> int:
        return -(-size // gpus)

    found = asdict(whole)
    gradients = whole.trained
    if strategy == "ddp":
        found["communication"] = gradients  # its buckets
    elif strategy == "zero2":
        # A float32 copy of the weights that a GPU steps, and a bucket; gradients are sharded once reduced.
        found |= {"optimiser": part(whole.optimiser + whole.trained), "communication": 4 * min(_BUCKET, gradients // 4)}
        found["rest"] = max(0, whole.rest - (gradients - part(gradients)))
    elif strategy in ("fsdp2", "zero3"):
        found |= {name: part(found[name]) for name in ("base", "trained", "optimiser")}
        found["communication"] = 2 * block  # one block in use, the next on its way
        if strategy == "zero3" or not accumulates:
            found["rest"] = max(0, whole.rest - (gradients - part(gradients)))
        found["starting"] = (
            found["base"]
            + found["trained"]
            + whole.residual
            + (whole.starting - whole.base - whole.trained - whole.residual)
            + block
        )
    return Parts(**found)
