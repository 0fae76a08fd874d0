"""`goat launch ENGINE RECIPE [key=value ...]`: `goat train` in one process a GPU, through accelerate's launcher."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .. import recipes
from ..errors import UserError, closest
from .output import say

HELP = "Train a recipe on several GPUs: ddp, fsdp2, zero2 or zero3, through `accelerate launch`."


def launch(
    engine: Annotated[str, typer.Argument(help="ddp, fsdp2, zero2 or zero3 (the last two need deepspeed)")],
    recipe: Annotated[str, typer.Argument(help="YAML file, or name of a shipped recipe (see `goat recipes list`)")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as method.r=16")] = None,
    number: Annotated[
        int, typer.Option("--processes", min=0, show_default=False, help="one a GPU; all GPUs when not given")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last complete checkpoint")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run left")] = False,
) -> None:
    """Say the command, and become it."""
    config = config_of(engine)
    recipes.load(recipe, overrides or [])  # a typing mistake is told once, not by every process
    flags = ["--resume"] * resume + ["--overwrite"] * overwrite
    given = ["--config_file", str(config), "--num_processes", str(_processes(engine, number)), "-m", "goat_peft"]
    given += ["train", recipe, *(overrides or []), *flags]
    say(shlex.join(["accelerate", "launch", *given]))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *given])


def engines() -> list[str]:
    """Names of the shipped configurations of accelerate, sorted."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def config_of(engine: str) -> Path:
    """The configuration of an engine; raises `UserError` for one that is not shipped or not installed."""
    if engine not in engines():
        raise UserError(f"engine={engine}: no such engine; {closest(engine, engines())}")
    if engine.startswith("zero") and find_spec("deepspeed") is None:
        raise UserError(
            f"engine={engine}: needs DeepSpeed, which is not installed; pip install deepspeed, or use fsdp2"
        )
    return Path(str(_folder() / f"{engine}.yaml"))


def _folder() -> Traversable:
    return files("goat_peft.recipes") / "launch"


def _processes(engine: str, number: int) -> int:
    import torch  # here: a typing mistake should not wait for it

    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if number > gpus > 0:
        raise UserError(f"--processes={number}: this machine has {gpus} GPUs; give {gpus} at most")
    if gpus == 0 and (engine != "ddp" or number == 0):
        raise UserError(
            f"engine={engine}: this machine has no GPU; on its CPU only ddp runs, with --processes, or use `goat train`"
        )
    return number or gpus
