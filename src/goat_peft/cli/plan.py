"""`goat plan RECIPE [key=value ...]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import UserError, closest
from ..recipes import load
from ..reporting.tables import count
from .output import console, say

if TYPE_CHECKING:
    from ..planning import Parts, Plan

HELP = "Say what a recipe will take before it runs: memory part by part, on each GPU, and time. Needs neither weights nor a GPU."
_ROWS = {
    "base": "frozen base",
    "trained": "trained weights",
    "residual": "adapter's frozen factors",
    "optimiser": "optimiser (AdamW)",
    "saved": "activations kept by the forward",
    "rest": "gradients and temporaries beyond, at the peak",
    "communication": "communication buffers",
    "workspace": "cuBLAS workspace",
}


def plan(
    recipe: Annotated[str, typer.Argument(help="YAML file, or name of a shipped recipe (see `goat recipes list`)")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="such as training.batch_size=4 model.quantize=nf4"),
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="GiB of one GPU; says what fits")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that train together")] = 1,
    strategy: Annotated[
        str | None,
        typer.Option(help="single, ddp, fsdp2, zero2 or zero3; on several GPUs all but the first when not given"),
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="longest sequence; task.max_length when not given")] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="of a language model: fused, as `goat train` computes it, or full, from all logits at once"),
    ] = None,
    tflops: Annotated[float | None, typer.Option(min=0.1, help="throughput that times are estimated with")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON to standard output instead of tables")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="also run a few steps with random weights on the GPU here, and compare")
    ] = False,
    results: Annotated[Path, typer.Option(help="file that --measure adds a row to")] = Path(
        "benchmarks/results/plan.json"
    ),
) -> None:
    """Plan, print, and with --measure compare."""
    checked = load(recipe, overrides or [])
    # Imported here: a typing mistake should not wait for torch.
    from .. import planning

    chosen = _strategies(strategy, gpus, planning.STRATEGIES)
    if loss not in (None, "fused", "full"):
        raise UserError(f"--loss={loss}: {closest(str(loss), ['fused', 'full'])}")
    if measure:
        from ..planning.measured import require_gpu

        require_gpu()
        if chosen != ("single",):
            raise UserError("--measure: compares one GPU's step; leave out --gpus and --strategy")
    found = planning.plan(checked, chosen, gpus, length, loss, tflops or planning.TFLOPS)  # type: ignore[arg-type]
    row = _measured(checked, length, found, results) if measure else None
    if as_json:
        extra: dict[str, Any] = {} if row is None else {"measured": row}
        say(json.dumps(found.as_json() | extra, indent=1))
        return
    _print(found, gpu_memory, tflops or planning.TFLOPS)
    if row is not None:
        say(
            f"measured on {row['device']}: peak {row['measured_gib']:.2f} GiB, predicted {row['predicted_gib']:.2f} ({row['error']:+.1%}); "
            f"starting {row['measured_starting_gib']:.2f}, predicted {row['predicted_starting_gib']:.2f}; step {row['step_ms']:.1f} ms, "
            f"estimated {row['predicted_step_ms']:.1f}; row added to {results}"
        )


def _strategies(name: str | None, gpus: int, known: tuple[str, ...]) -> tuple[str, ...]:
    if name is None:
        return known[:1] if gpus == 1 else known[1:]
    if name not in known:
        raise UserError(f"--strategy={name}: {closest(name, list(known))}")
    if (name == "single") != (gpus == 1):
        raise UserError(f"--strategy={name}: does not go with --gpus={gpus}; use single on one GPU, another on several")
    return (name,)


def _measured(recipe: Any, length: int | None, found: Plan, results: Path) -> dict[str, Any]:
    from ..planning import measured

    row = measured.row(recipe, found, measured.measure(recipe, length, found))
    measured.append(results, [row])
    return row


def _print(found: Plan, gpu_memory: float | None, tflops: float) -> None:
    size = f"{found.batch} x {found.length}" if found.length else f"{found.batch} images"
    say(
        f"{found.method} on {found.model}{f' in {found.quantize}' if found.quantize else ''}: {count(found.trained_parameters)} of "
        f"{count(found.total_parameters)} parameters train; micro-batch {size}"
        f"{', activations computed again' if found.checkpointing else ''}"
    )
    table = Table("GiB on each GPU", *found.parts)
    for field, label in _ROWS.items():
        values = [getattr(parts, field) for parts in found.parts.values()]
        if any(values):
            table.add_row(label, *map(_gib, values))
    table.add_row("peak of a step", *(_gib(parts.peak) for parts in found.parts.values()), style="bold")
    table.add_row("peak while the method starts", *(_gib(parts.starting) for parts in found.parts.values()))
    console.print(table)
    if gpu_memory is not None:
        for name, parts in found.parts.items():
            say(_verdict(name, parts, gpu_memory))
    say(
        f"{found.flops / 1e12:.1f} TFLOP a micro-batch: about {found.step_seconds * 1e3:.0f} ms at {tflops:g} TFLOP/s (an estimate; set --tflops to what "
        "your GPU reaches)"
    )


def _verdict(name: str, parts: Parts, gpu_memory: float) -> str:
    from ..planning.estimate import CONTEXT, GIB

    needed = (max(parts.peak, parts.starting) + CONTEXT) / GIB
    word = "fits" if needed <= gpu_memory else "does not fit"
    return f"{name}: {word} in {gpu_memory:g} GiB; needs {needed:.2f} with {CONTEXT / GIB:.1f} for CUDA's context"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f}" if size else "-"
