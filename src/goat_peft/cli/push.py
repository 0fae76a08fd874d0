"""`goat push RUN REPO_ID`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import say

HELP = "Upload a run's adapter, or an export, to the Hub with a model card; log in first with `hf auth login`."


def push(
    run: Annotated[Path, typer.Argument(help="folder that `goat train` or `goat export` wrote")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="name on the hub, such as user/name")],
    base: Annotated[
        str | None, typer.Option("--base", help="hub name of the base model, where the run names a local folder")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="licence of the weights by its name on the hub, such as apache-2.0")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="a new repository that only you see")] = False,
    logs: Annotated[
        bool, typer.Option("--logs", help="also recipe, result and expert usage, with the local paths they hold")
    ] = False,
    stage: Annotated[
        Path | None, typer.Option("--stage", help="write what would be uploaded to this folder, and upload nothing")
    ] = None,
) -> None:
    """Upload, and say what and where to."""
    from .. import publish

    if stage is not None:
        staged = publish.stage(run, repo_id, stage, base, licence, logs)
        say(f"{staged.path}: {', '.join(staged.files)}; nothing was uploaded")
        return
    done = publish.push(run, repo_id, base=base, licence=licence, private=private, logs=logs)
    say(f"{done.url}: {', '.join(done.files)}")
