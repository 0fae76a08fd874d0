"""`goat inspect ADAPTER`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import records
from ..errors import UserError
from ..reporting.tables import count, short_layer
from .output import console, say

HELP = "Say what an adapter is: base, settings, sizes, scales, and how busy its experts were."


def inspect(
    adapter: Annotated[Path, typer.Argument(help="folder of a saved adapter, or a run's folder")],
    layers: Annotated[bool, typer.Option("--layers", help="one row per adapted layer")] = False,
) -> None:
    """Read config and tensors; no base model is loaded."""
    from safetensors import safe_open

    from ..training.loading import check_weights

    folder = adapter / "adapter" if (adapter / "adapter").is_dir() else adapter
    config = _config(folder)
    check_weights(folder, "adapter_model.safetensors")
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        scales = {name: file.get_tensor(name).tolist() for name in shapes if name.endswith("goat_scale")}
    size = (folder / "adapter_model.safetensors").stat().st_size
    say(
        f"{folder}: {config.get('peft_type')} adapter of {config.get('base_model_name_or_path')}, {size / 2**20:.2f} MiB"
    )
    shown = ("task_type", "r", "num_experts", "router", "top_k", "init_weights", "init_router", "scaling", "eta", "rho", "lora_alpha")  # fmt: skip
    say(
        ", ".join(
            f"{name} {config[name]}"
            for name in shown
            if config.get(name) is not None and (name != "top_k" or config.get("router", "topk") == "topk")
        )
    )
    console.print(_tensor_table(shapes))
    if scales:
        values = [value for row in scales.values() for value in row]
        say(f"scale s over {len(scales)} layers: {min(values):.3g} to {max(values):.3g}")
    usage = _usage(folder)
    if layers and (scales or usage):
        console.print(_layer_table(shapes, scales, usage))
    elif usage:
        shares = [share for row in usage for share in row["share"]]
        say(
            f"expert usage: shares from {min(shares):.3f} to {max(shares):.3f} (even: {1 / len(usage[0]['share']):.3f}); --layers shows all"
        )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UserError(
            f"adapter={folder}: has no adapter_config.json; give the folder of a saved adapter or a run's folder"
        )
    return records.read_settings(path, "adapter", "copy it again from its source")


def _usage(folder: Path) -> list[dict[str, Any]]:
    """Usage rows that a run stored beside its adapter: those of the scored split, else those of training."""
    path = folder.parent / records.EXPERT_USAGE
    if not path.is_file():
        return []
    stored = records.read_json(path)
    return next((rows for rows in reversed(list(stored.values())) if rows), [])


def _tensor_table(shapes: dict[str, list[int]]) -> Table:
    """Sum the tensors by kind, the last part of their names that is not `weight`."""
    kinds: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        parts = [part for part in name.split(".") if part not in {"weight", "bias"}]
        size = 1
        for side in shape:
            size *= side
        kinds.setdefault(parts[-1], []).append(size)
    table = Table("tensor", "how many", "values")
    for kind, sizes in sorted(kinds.items()):
        table.add_row(kind, str(len(sizes)), count(sum(sizes)))
    table.add_row("all", str(len(shapes)), count(sum(map(sum, kinds.values()))))
    return table


def _layer_table(shapes: dict[str, list[int]], scales: dict[str, list[float]], usage: list[dict[str, Any]]) -> Table:
    """One row per layer: out x in, its scale, and each expert's share of routed tokens."""
    shares = {row["layer"]: row["share"] for row in usage}
    entropy = {row["layer"]: row["entropy"] for row in usage}
    table = Table("layer", "out x in", "scale", "share per expert", "entropy")
    for name, values in scales.items():
        layer = name.removesuffix(".goat_scale")
        used = next((key for key in shares if layer.endswith(key) or key.endswith(layer)), None)
        size = f"{shapes[f'{layer}.goat_B'][0]} x {shapes[f'{layer}.goat_A'][1]}"
        scale = f"{values[0]:.3g}" if len(set(values)) == 1 else f"{min(values):.3g} to {max(values):.3g}"
        share = " ".join(f"{s:.2f}" for s in shares[used]) if used else ""
        table.add_row(short_layer(layer), size, scale, share, f"{entropy[used]:.2f}" if used else "")
    return table
