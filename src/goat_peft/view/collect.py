"""The data of the page: routing of texts or images, load, spectra, movement and curves, as plain values for JSON."""

from __future__ import annotations

import base64
import fnmatch
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import records
from ..adapter import GoatLayer
from ..adapter.capture import TokenRouting, capture_routing
from ..errors import UserError
from ..recipes import Recipe
from ..reporting.tables import short_layer
from .curves import curves
from .opening import Opened, Watch, open_run, read_recipe
from .samples import Grid, Sample, own_text, split_samples
from .weights import expert_states, spectrum

BUDGET = 4_700_000  # bytes of data, so that the page stays below 5 MB
STEPS = 255  # routing weights are stored as whole 255ths


@dataclass(frozen=True)
class Wishes:
    """What the user wants on the page.

    `rows`: rows of the evaluation split. `texts`: texts of one's own, which come first. `tokens`: longest text, in tokens.
    `layers`: patterns of module names, such as `*query*`; none takes all.
    """

    rows: int = 8
    texts: tuple[str, ...] = ()
    tokens: int = 128
    layers: tuple[str, ...] = ()


def collect(run: Path, overrides: list[str], wishes: Wishes, watch: Watch) -> dict[str, Any]:
    """Everything the page shows of `run`; a run without GOAT experts has curves only.

    Raises `UserError` for a folder that is no finished run, a pattern that names no layer, or a first text that alone is too large for a page.
    """
    recipe = read_recipe(run, overrides)
    if not (run / records.RESULT).is_file():
        raise UserError(f"run={run}: has no {records.RESULT}; the run did not finish, continue it with --resume")
    result = _read(run / records.RESULT)
    data = {"run": _facts(run, recipe, result), "curves": curves(result)}
    if not has_experts(run):
        return data | {"experts": None, "layers": [], "texts": [], "load": [], "left_out": 0}
    opened = open_run(run, overrides)
    layers = chosen_layers(opened, wishes.layers)
    shown = []
    for done, layer in enumerate(layers):
        watch("spectra", done, len(layers))
        shown.append(_layer(layer))
    samples = [own_text(opened, text, i + 1, wishes.tokens) for i, text in enumerate(wishes.texts)]
    samples += split_samples(opened, wishes.rows, wishes.tokens, with_predictions=not overrides)
    data |= {"experts": _experts(layers[0]), "layers": shown, "load": _stored_load(run, layers)}
    return data | _texts(opened, layers, samples, BUDGET - len(json.dumps(data)), watch)


def has_experts(run: Path) -> bool:
    """Whether `run` saved a GOAT adapter."""
    path = run / "adapter" / "adapter_config.json"
    return path.is_file() and _read(path).get("peft_type") == "GOAT"


def chosen_layers(opened: Opened, patterns: tuple[str, ...]) -> list[GoatLayer]:
    """The adapted layers whose names match one of `patterns`, in the model's order; all of them without a pattern."""
    layers = {module.name: module for module in opened.model.modules() if isinstance(module, GoatLayer)}
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            raise UserError(
                f"--layers={pattern}: matches no adapted layer; their names are such as {next(iter(layers))}, and * stands for any part"
            )
    kept = [name for name in layers if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return [layers[name] for name in kept]


def encode(shares: Tensor) -> bytes:
    """Numbers from 0 to 1 as bytes, in whole 255ths; a number above 0 never becomes 0, so that a used expert stays one."""
    steps = (shares * STEPS).round()
    return torch.where(shares > 0, steps.clamp_min(1), steps).byte().numpy().tobytes()


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of the run; a broken one gives a `UserError`."""
    return records.read_settings(path, "run", "train again")


def _facts(run: Path, recipe: Recipe, result: dict[str, Any]) -> dict[str, Any]:
    info, train = result["run_info"], result["train_info"]
    last = train["metrics"][-1]
    return {
        "name": recipe.name,
        "folder": str(run),
        "method": recipe.method.name,
        "model": recipe.model.name,
        "task": recipe.task.type,
        "created": info["created_at"],
        "command": info["command"],
        "seconds": train["train_time"],
        "trained": train["num_trainable_params"],
        "parameters": train["num_total_params"],
        "figures": {
            name: value
            for name, value in last.items()
            if isinstance(value, float) and math.isfinite(value) and name.startswith(("test", "valid"))
        },
    }


def _experts(layer: GoatLayer) -> dict[str, Any]:
    """What all layers share: E, how many of them serve every token, and how the router chooses."""
    config = layer.configs["default"]
    return {
        "count": config.num_experts,
        "shared": config.shared_experts,
        "router": config.router,
        "active": config.active_experts,
        "start": str(config.init_weights),
    }


def _layer(layer: GoatLayer) -> dict[str, Any]:
    found = spectrum(layer.base_weight())
    return {
        "name": layer.name,
        "short": short_layer(layer.name),
        "inputs": layer.in_features,
        "outputs": layer.out_features,
        "spectrum": asdict(found) | {"values": [_digits(value) for value in found.values]},
        "experts": [{k: _digits(v) for k, v in asdict(state).items()} for state in expert_states(layer)],
    }


def _stored_load(run: Path, layers: list[GoatLayer]) -> list[dict[str, Any]]:
    """Shares of routed tokens (layers, routed experts) that the run measured, one entry a split; None for a layer it did not see."""
    path = run / records.EXPERT_USAGE
    if not path.is_file():
        return []
    found = []
    for split, rows in _read(path).items():
        shares = {row["layer"]: [_digits(share) for share in row["share"]] for row in rows}
        if rows:
            title = "training" if split == "train" else f"{split} split"
            found.append({"title": title, "shares": [shares.get(layer.name) for layer in layers]})
    return found


def _texts(opened: Opened, layers: list[GoatLayer], samples: list[Sample], budget: int, watch: Watch) -> dict[str, Any]:
    """Routing of as many samples as fit `budget` bytes, and the load of all of them together."""
    texts: list[dict[str, Any]] = []
    counts: list[Tensor] = []
    for done, sample in enumerate(samples):
        watch("texts" if sample.picture is None else "images", done, len(samples))
        text, used = _route(opened, layers, sample)
        budget -= len(json.dumps(text))
        if budget < 0:
            break
        texts.append(text)
        counts.append(used)
    if samples and not texts:
        raise UserError(
            f"--tokens: the routing of {samples[0].title} in {len(layers)} layers takes more than {BUDGET / 1e6:.1f} MB; choose fewer --layers or --tokens"
        )
    return {
        "texts": texts,
        "left_out": len(samples) - len(texts),
        "texts_load": [[_digits(v) for v in row] for row in torch.stack(counts).sum(0).tolist()] if counts else [],
    }


@torch.inference_mode()
def _route(opened: Opened, layers: list[GoatLayer], sample: Sample) -> tuple[dict[str, Any], Tensor]:
    """One sample's entry, and how many of its tokens each routed expert of each layer got, (layers, R)."""
    device = next(opened.model.parameters()).device
    with capture_routing(opened.model) as found:
        opened.model(
            **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in sample.inputs.items()}
        )
    calls = [found[layer.name][0] if layer.name in found else None for layer in layers]
    if sample.picture is not None:
        sample = _with_patches(opened, sample, calls)
    shared = layers[0].configs["default"].shared_experts
    length, rows, weights, probabilities = len(sample.tokens), [], b"", b""
    used = torch.zeros(len(layers), layers[0].configs["default"].routed_experts)
    for index, call in enumerate(calls):
        # A pooler reads one vector of the whole text; a layer that reads anything else than the tokens has no row to show.
        count = 0 if call is None else call.weights.numel() // call.weights.shape[-1]
        rows.append(count if count in (1, length) else 0)
        if call is not None and rows[-1]:
            used[index] = (call.weights.reshape(count, -1)[:, shared:] > 0).sum(0)
            weights += encode(call.weights)
            probabilities += encode(call.probabilities)
    entry = {
        "title": sample.title,
        "start": sample.start,
        "note": sample.note,
        "tokens": sample.tokens,
        "kinds": sample.kinds,
        "cut": sample.cut,
        "picture": sample.picture,
        "grid": None if sample.grid is None else asdict(sample.grid),
        "rows": rows,
        "weights": base64.b64encode(weights).decode(),
        "probabilities": base64.b64encode(probabilities).decode(),
    }
    return entry, used


def _with_patches(opened: Opened, sample: Sample, calls: list[TokenRouting | None]) -> Sample:
    """Lay the tokens that the layers read out as the image's patches, after the tokens that come before these (class token, registers)."""
    config = getattr(opened.model.config, "vision_config", opened.model.config)
    height, width = sample.inputs["pixel_values"].shape[-2:]
    rows, columns = height // config.patch_size, width // config.patch_size
    length = max((call.weights.shape[-2] for call in calls if call is not None and call.weights.dim() == 3), default=0)
    first = length - rows * columns
    if first < 0:
        raise UserError(
            f"model.name={opened.recipe.model.name}: its layers read {length} tokens for {rows} x {columns} patches; the page cannot place them"
        )
    tokens = [f"token {i + 1}" for i in range(first)]
    tokens += [f"row {i // columns + 1}, column {i % columns + 1}" for i in range(rows * columns)]
    kinds = ["special"] * first + [""] * (rows * columns)
    return replace(sample, tokens=tokens, kinds=kinds, grid=Grid(rows, columns, first))


def _digits(value: Any) -> Any:
    """A float with four significant digits, which is more than a page can show; anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
