"""What is uploaded: weights, settings, card and pictures, in a folder of their own; nothing else of the run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .. import records
from ..errors import UserError
from .card import write_card
from .facts import Facts, export_facts, is_local, run_facts

PICTURES = (records.EXPERTS_PICTURE, records.CURVE_PICTURE)
LOGS = (records.RECIPE, records.RESULT, records.EXPERT_USAGE)
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Staged:
    """A folder ready to upload, and its files."""

    path: Path
    files: list[str]


def stage(
    source: Path, repo_id: str, folder: Path, base: str | None = None, licence: str | None = None, logs: bool = False
) -> Staged:
    """Copy what the Hub gets of a run or an export into the empty `folder`, and write its card.

    The base in `adapter_config.json` becomes the hub name, so that others can load it and no path of this machine is told.

    Args:
        base: hub name of the base, where the run names a local one.
        logs: also the recipe, the result and the expert usage, as they are, with what paths they hold.

    Raises:
        UserError: the source is no finished run or export, or its base has no name on the hub.
    """
    exported = (source / records.EXPORT).is_file()
    facts = export_facts(source, base) if exported else run_facts(source, base)
    weights = source if exported else source / ("adapter" if facts.kind == "adapter" else "model")
    if not list(weights.glob("*.safetensors")):
        raise UserError(f"run={source}: has no weights in safetensors; the run did not finish")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"--stage {folder}: is not empty; give an empty folder or a new one")
    for file in [*weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json")]:
        shutil.copyfile(file, folder / file.name)
    _settings(weights, folder, facts)
    pictures = [name for name in PICTURES if (source / name).is_file()]
    for name in pictures:
        shutil.copyfile(source / name, folder / name)
    for name in LOGS if logs and not exported else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_card(facts, repo_id, licence, pictures).save(folder / "README.md")
    return Staged(folder, sorted(path.name for path in folder.iterdir()))


def _settings(weights: Path, folder: Path, facts: Facts) -> None:
    """The configs, with the hub name of the base for the name it had here."""
    for name in (CONFIG, "config.json", "generation_config.json"):
        if not (weights / name).is_file():
            continue
        config = records.read_settings(weights / name, "run", "copy it again from its source")
        if name == CONFIG:
            config["base_model_name_or_path"] = facts.base
        elif is_local(str(config.get("_name_or_path", ""))):
            config["_name_or_path"] = facts.base
        records.write_json(folder / name, config)
