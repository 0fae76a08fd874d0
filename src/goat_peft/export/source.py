"""Where the adapter that is exported lies."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from .. import records
from ..errors import UserError, first_line
from ..training.targets import Target

WANTED = ("adapter_config.json", "adapter_model.safetensors")


def fetched(target: str) -> str:
    """The target itself where it is local, else the folder that its adapter was fetched into from the hub."""
    if Path(target).exists() or target.startswith((".", "/", "~", "runs/")):
        return target
    try:
        return snapshot_download(target, allow_patterns=list(WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"target={target}: no such folder, and no such adapter on the hub ({first_line(error)}); "
            "give the folder of a run or an adapter, or a hub name"
        ) from None


def adapter_folder(found: Target, place: Path) -> Path:
    """The folder of the target's adapter; raises `UserError` where it has none or another method's."""
    folder = place / "adapter" if found.kind == "run" else place
    file = folder / "adapter_config.json"
    if found.kind == "base" or not file.is_file():
        raise UserError(f"target={place}: has no adapter; export takes a run or an adapter trained with GOAT")
    method = records.read_settings(file, "adapter", "copy it again from its source").get("peft_type")
    if method != "GOAT":
        raise UserError(
            f"target={place}: its adapter is {method}, which PEFT loads as it is; export is for GOAT's experts"
        )
    return folder
