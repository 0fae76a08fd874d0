"""`goat export` as a function: a GOAT adapter becomes a plain LoRA, and what that costs is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.progress import Progress
from torch import nn
from transformers import set_seed

from .. import records
from ..errors import UserError
from ..tasks import Processor
from ..training import record
from ..training.callbacks import bar
from ..training.evaluation import Findings, Test, open_tests, score
from ..training.loading import device, load_adapter, load_base, load_processor, quiet_libraries
from ..training.targets import Target, resolve
from .distillation import distill
from .factors import WEIGHTINGS, LinearFactors, compressed, linear_factors
from .lora import adapted_layers, build_lora, twin_of
from .rows import Rows, batches_of, choose_rows, mean_loss
from .source import WANTED, adapter_folder, fetched
from .statistics import collect_statistics

WRITTEN = (records.EXPORT, *WANTED, "README.md")
BATCH = 16  # rows at most in a step of distillation, whatever scores in larger ones


@dataclass(frozen=True)
class Wishes:
    """How to export.

    Attributes:
        calibrate: `train` or `validation` of the task, or a file of rows in its columns.
        rows: how many of them; a fifth is held back for the losses.
        rank: of the LoRA; the most that loses nothing, twice the adapter's at most, when None.
        weighting: what takes the place of the routing weights, see `factors.linear_factors`.
        distill: steps of distillation.
        seed: draws the rows and their order.
    """

    calibrate: str = "train"
    rows: int = 256
    rank: int | None = None
    weighting: str = "regression"
    distill: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Exported:
    """A finished export: the folder of the LoRA and its `export.json` as read back."""

    path: Path
    result: dict[str, Any]


def export(
    target: str | Path,
    wishes: Wishes = Wishes(),
    recipe: str | None = None,
    tasks: list[str] | tuple[str, ...] = (),
    overrides: list[str] | tuple[str, ...] = (),
    output: Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a LoRA that stands in for the GOAT adapter of `target`; see `targets.resolve` for the arguments that say what it is scored on.

    Raises:
        UserError: the target is no GOAT adapter, the rows cannot be used, or the folder is taken.
    """
    started, clock = record.now(), time.perf_counter()
    if wishes.weighting not in WEIGHTINGS:
        raise UserError(f"weighting={wishes.weighting}: no such weighting; choose from {', '.join(WEIGHTINGS)}")
    with quiet_libraries():
        place = fetched(str(target))
        found = resolve(place, recipe, list(tasks), list(overrides))
        adapter = adapter_folder(found, Path(place))
        name = found.name if place == str(target) else str(target).rpartition("/")[2]  # of the hub, not of its cache
        folder = output or Path("runs") / f"{name}-lora"
        _check_free(folder, Path(place), overwrite)
        tests = open_tests(found.task, found.settings)
        rows = choose_rows(found.task, wishes.calibrate, wishes.rows, found.settings.split, wishes.seed)
        with bar() as progress:
            lora, parts = _Session(found, adapter, wishes, tests, rows, progress).run()
        for written in WRITTEN:
            (folder / written).unlink(missing_ok=True)
        lora.save_pretrained(str(folder))
    result = {
        "run_info": {
            "created_at": started,
            "total_time": time.perf_counter() - clock,
            "command": record.command(),
            "target": name,
            "kind": found.kind,
            "split": found.settings.split,
            "task": found.task.options.type,
            "labels": [str(label) for label in found.task.outputs] if found.task.outputs else None,
            **vars(wishes),
        },
        "export_info": parts,
        "meta_info": record.origins(found.model, [test.task.options for test in tests]),
    }
    records.write_json(folder / records.EXPORT, result)
    return Exported(folder, result)


def _check_free(folder: Path, source: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but an earlier export that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file; choose a folder")
    if folder.resolve() in (source.resolve(), (source / "adapter").resolve()):
        raise UserError(f"--output {folder}: is what is exported; give a folder of its own")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / records.EXPORT).is_file():
        raise UserError(f"--output {folder}: holds files that are not an export's; give an empty folder or a new one")
    if not overwrite:
        raise UserError(f"--output {folder}: holds an export; give --overwrite to replace it, or another folder")


class _Session:
    """State that the steps of one export share."""

    def __init__(
        self, found: Target, adapter: Path, wishes: Wishes, tests: list[Test], rows: Rows, progress: Progress
    ) -> None:
        self.found, self.adapter, self.wishes = found, adapter, wishes
        self.tests, self.rows, self.progress = tests, rows, progress

    def run(self) -> tuple[PeftModel, dict[str, Any]]:
        """Load, calibrate, build, distil, measure; return the LoRA and the figures."""
        found, wishes = self.found, self.wishes
        set_seed(found.seed)
        processor = load_processor(found.model, found.task)
        base = load_base(found.model, found.task, processor).to(device())
        twin = twin_of(base)
        routed: Any = load_adapter(base, self.adapter).to(device()).eval()
        size = min(found.settings.batch_size, BATCH, len(self.rows.fit))
        with batches_of(found.task, self.rows, processor, size, wishes.seed) as trainer_for:
            trainer = trainer_for(routed)
            factors, tokens = self._calibrate(routed, trainer)
            rank = self._rank(factors)
            thin = {name: compressed(part.A, part.B, rank) for name, part in factors.items()}
            lora = build_lora(routed, twin, thin, rank).to(device())
            trainer_of_lora = trainer_for(lora)
            measure = partial(self._measure, processor=processor)
            models = {
                "base": measure("base", routed, lambda: mean_loss(trainer), routed.disable_adapter()),
                "routed": measure("routed", routed, lambda: mean_loss(trainer)),
                "exported": measure("exported", lora, lambda: mean_loss(trainer_of_lora)),
            }
            steps: list[float] = []
            if wishes.distill:
                shown = self.progress.add_task("distil", total=wishes.distill, note="")
                steps = distill(
                    lora, routed, trainer_of_lora, processor, wishes.distill,
                    lambda done, value: self.progress.update(shown, completed=done, note=f"{value:.4f}"),
                )  # fmt: skip
                self.progress.remove_task(shown)
                models["distilled"] = measure("distilled", lora, lambda: mean_loss(trainer_of_lora))
        return lora, {
            "rank": rank,
            "exact_rank": max(part.rank for part in factors.values()),
            "rows": {"fit": len(self.rows.fit), "held_back": len(self.rows.held_back), "tokens": tokens},
            "models": {name: {"loss": loss, **_figures(of)} for name, (loss, of) in models.items()},
            "kept": kept(models, self.tests[0].field + self.tests[0].task.main_metric),
            "agreement": {name: agreement(models["routed"][1], of) for name, (_, of) in models.items()},
            "divergence": steps,
            "layers": {
                name: {"error": part.error, "mean_weights": part.mean_weights} for name, part in factors.items()
            },
        }

    def _calibrate(self, routed: PeftModel, trainer: Any) -> tuple[dict[str, LinearFactors], int]:
        """Run the calibration rows through the routed model; each layer's stand-in, and how many tokens the first layer saw."""
        loader = trainer.get_train_dataloader()
        shown = self.progress.add_task("calibrate", total=len(loader), note="")
        with collect_statistics(routed) as seen:
            for batch in loader:
                trainer.prediction_step(routed, batch, prediction_loss_only=True)
                self.progress.advance(shown)
        self.progress.remove_task(shown)
        layers = adapted_layers(routed)
        for name in layers:
            if name not in seen:
                raise UserError(
                    f"--calibrate {self.wishes.calibrate}: its rows never reach {name}; give rows of another kind"
                )
        factors = {name: linear_factors(layer, seen[name], self.wishes.weighting) for name, layer in layers.items()}
        return factors, next(iter(seen.values())).tokens

    def _rank(self, factors: dict[str, LinearFactors]) -> int:
        exact = max(part.rank for part in factors.values())
        if self.wishes.rank is None:
            return exact
        if not 1 <= self.wishes.rank <= exact:
            raise UserError(
                f"--rank {self.wishes.rank}: the experts and the residual together have rank {exact}; give 1 to {exact}"
            )
        return self.wishes.rank

    def _measure(
        self,
        label: str,
        model: nn.Module,
        loss: Callable[[], float],
        within: AbstractContextManager[Any] | None = None,
        *,
        processor: Processor,
    ) -> tuple[float, Findings]:
        """Loss on the held-back rows and scores on the tests."""
        with within or nullcontext(), torch.no_grad():
            return loss(), score(model, self.tests, processor, self.found.settings, self.progress, label)


def _figures(findings: Findings) -> dict[str, Any]:
    return {"metrics": findings.metrics, "counts": findings.counts, "samples": findings.samples}


def kept(models: dict[str, tuple[float, Findings]], metric: str) -> dict[str, dict[str, float | None]]:
    """The share of the routed model's gain over the base that each export keeps, in the loss and in the score `metric` (the average of several).

    None where the routed model gained too little to divide by: in the loss less than a hundredth of the base's, in the score less than two standard errors of
    its own share of right rows.
    """

    def value(name: str) -> tuple[float, float]:
        loss, found = models[name]
        return -loss, found.metrics.get("average", found.metrics.get(metric, 0.0))

    share, rows_scored = value("routed")[1], models["routed"][1].samples
    noise = (0.01 * abs(models["base"][0]), 2 * math.sqrt(max(share * (1 - share), 0.0) / max(rows_scored, 1)))
    rows: dict[str, dict[str, float | None]] = {}
    for name in ("exported", "distilled"):
        if name in models:
            gains = [
                (own - base, routed - base)
                for own, base, routed in zip(value(name), value("base"), value("routed"), strict=True)
            ]
            shares = [own / whole if whole > least else None for (own, whole), least in zip(gains, noise, strict=True)]
            rows[name] = dict(zip(("loss", "score"), shares, strict=True))
    return rows


def agreement(routed: Findings, other: Findings) -> float:
    """The share of test rows for which two models predict the same."""
    pairs = [
        (one.get("prediction"), two.get("prediction"))
        for (_, own), (_, theirs) in zip(routed.found, other.found, strict=True)
        for one, two in zip(own.predictions, theirs.predictions, strict=True)
    ]
    return sum(one == two for one, two in pairs) / len(pairs)
