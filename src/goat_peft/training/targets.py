"""What `goat eval` takes: a run's folder, the folder of any PEFT adapter, or a bare base model; and what it is scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from .. import records
from ..errors import UserError, first_line
from ..recipes import Evaluation, ModelSettings, Recipe, apply_override, load, load_task
from ..tasks import Processor, Task, bind
from . import digests
from .loading import load_adapter, load_base, load_trained

SEED = 0  # draws a bare base model's classification head


@dataclass(frozen=True)
class Target:
    """A model to score, and on what.

    Attributes:
        kind: "run", "adapter" or "base".
        name: short, for folders and titles.
        model: the base model.
        task: gives the model its head, and the rows where the settings name no tests.
        identity: plain data that tells this model from any other.
        load: builds the model, given its processor.
        seed: of the draws of a fresh head.
    """

    kind: str
    name: str
    model: ModelSettings
    task: Task
    settings: Evaluation
    identity: Any
    load: Callable[[Processor], nn.Module]
    seed: int


def resolve(target: str, recipe: str | None, tasks: list[str], overrides: list[str]) -> Target:
    """Find out what `target` is and what it is to be scored on.

    Args:
        recipe: shipped name or file whose task (or tests) count in place of a run's own.
        tasks: names or files of tasks that count in place of those of the recipe.
        overrides: `key=value`; with `tasks`, `task.KEY=VALUE` changes each of them.

    Raises:
        UserError: the target is nothing that can be scored, or nothing says on what.
    """
    own = [text for text in overrides if tasks and text.startswith("task.")]
    others = [text for text in overrides if text not in own]
    folder = Path(target)
    if (folder / records.RECIPE).is_file():
        return _run(folder, recipe, tasks, own, others)
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, recipe, tasks, own, others)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"target={target}: holds no {records.RECIPE}, no adapter_config.json and no config.json; give the folder of a run, "
            "an adapter or a model"
        )
    if not folder.exists() and target.startswith((".", "/", "~", "runs/")):
        raise UserError(f"target={target}: no such folder; give the folder of a run, an adapter or a model")
    return _base(target, recipe, tasks, own, others)


def _run(folder: Path, recipe: str | None, tasks: list[str], own: list[str], overrides: list[str]) -> Target:
    trained = load(str(folder / records.RECIPE), [] if recipe else overrides)
    if not (folder / "adapter").is_dir() and not (folder / "model").is_dir():
        raise UserError(
            f"target={folder}: has no adapter and no model; the run did not finish, continue it with --resume"
        )
    scored = load(recipe, overrides) if recipe else trained
    task = bind(trained.task)
    settings = _settings(scored.evaluation, tasks, own)
    if recipe and not tasks and not settings.tests:
        # Another recipe's own split, scored with the head that the run trained.
        settings = _as_tests(scored)
    identity = {"base": digests.of_base(trained.model), "weights": digests.of_saved(folder)}
    return Target(
        kind="run",
        name=folder.resolve().name,
        model=trained.model,
        task=task,
        settings=settings,
        identity=identity,
        load=lambda processor: load_trained(trained, folder, task, processor),
        seed=trained.training.seed,
    )


def _adapter(folder: Path, recipe: str | None, tasks: list[str], own: list[str], overrides: list[str]) -> Target:
    try:
        config = records.read_json(folder / "adapter_config.json")
        named, revision = config["base_model_name_or_path"], config.get("revision")
        if not isinstance(named, str) or not isinstance(revision, str | None):
            raise TypeError(f"base_model_name_or_path {named!r}, revision {revision!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"adapter={folder}: adapter_config.json does not say which base model it belongs to ({first_line(error)}); "
            "copy it again from its source"
        ) from None
    given: dict[str, Any] = {"name": named, "revision": revision}
    model, task, settings, seed = _scored_on(f"adapter={folder}", given, recipe, tasks, own, overrides)
    name = folder.resolve().parent.name if folder.resolve().name == "adapter" else folder.resolve().name
    return Target(
        kind="adapter",
        name=name,
        model=model,
        task=task,
        settings=settings,
        identity={"base": digests.of_base(model), "weights": digests.of_adapter(folder), "seed": seed},
        load=lambda processor: load_adapter(load_base(model, task, processor), folder),
        seed=seed,
    )


def _base(target: str, recipe: str | None, tasks: list[str], own: list[str], overrides: list[str]) -> Target:
    model, task, settings, seed = _scored_on(f"target={target}", {"name": target}, recipe, tasks, own, overrides)
    return Target(
        kind="base",
        name=Path(target).name,
        model=model,
        task=task,
        settings=settings,
        identity={"base": digests.of_base(model), "weights": None, "seed": seed},
        load=lambda processor: load_base(model, task, processor),
        seed=seed,
    )


def _scored_on(
    what: str, model: dict[str, Any], recipe: str | None, tasks: list[str], own: list[str], overrides: list[str]
) -> tuple[ModelSettings, Task, Evaluation, int]:
    """Base model, head, tests and seed for a target that is no run; `model` is what the target says of its base."""
    if recipe:
        scored = load(recipe, overrides)
        changed = {text.partition("=")[0].removeprefix("model.") for text in overrides if text.startswith("model")}
        kept = {key: value for key, value in model.items() if key not in changed and "model" not in changed}
        settings = _settings(scored.evaluation, tasks, own)
        # The recipe's revision is one of its own model.
        named = scored.model.model_copy(update={"revision": None, **kept})
        return named, bind(scored.task), settings, scored.training.seed
    if not tasks:
        raise UserError(f"{what}: nothing says what to score it on; give --task NAME (such as gsm8k), or --recipe NAME")
    data: dict[str, Any] = {"model": model, "evaluation": {}}
    for text in overrides:
        if not text.startswith(("model.", "evaluation.")):
            raise UserError(f"{text}: means nothing without a recipe; give model.KEY, evaluation.KEY or task.KEY")
        apply_override(data, text)
    try:
        chosen = ModelSettings.model_validate(data["model"])
        settings = _settings(Evaluation.model_validate(data["evaluation"]), tasks, own)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}={first.get('input')}: {first['msg']}") from None
    return chosen, bind(settings.tests[0]), settings, SEED


def _settings(settings: Evaluation, tasks: list[str], own: list[str]) -> Evaluation:
    """Put the tasks that the command names in the place of the settings' tests."""
    if not tasks:
        return settings
    changes = [text.removeprefix("task.") for text in own]
    places = any(text.startswith("data.folder=") for text in changes)
    loaded = []
    for name in tasks:
        inside = [f"data.folder={Path(settings.folder) / Path(name).stem}"] if settings.folder and not places else []
        loaded.append(load_task(name, [*inside, *changes]))
    names = [options.name for options in loaded]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--task {name}: is named twice; name each task once")
    return settings.model_copy(update={"tests": loaded, "split": "test"})


def _as_tests(recipe: Recipe) -> Evaluation:
    """A recipe's own test split as a named test."""
    task = recipe.task if recipe.task.name else recipe.task.model_copy(update={"name": recipe.name})
    return recipe.evaluation.model_copy(update={"tests": [task]})
