"""Assembles the verbs, and turns the errors a user can mend into one line and an exit code."""

from __future__ import annotations

import platform
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from .. import __version__
from ..errors import UserError
from . import (
    bench,
    chat,
    compare,
    demo,
    evaluate,
    export,
    inspect,
    judge,
    launch,
    plan,
    push,
    recipes,
    report,
    train,
    view,
)
from .output import complain, say

app = typer.Typer(
    name="goat",
    help="Fine-tune with GOAT and compare it with LoRA and full fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_versions(wanted: bool) -> None:
    if wanted:
        below = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
        say(f"goat-peft {__version__} ({below}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    versions: Annotated[
        bool,
        typer.Option("--version", callback=_tell_versions, is_eager=True, help="Print the versions and stop."),
    ] = False,
) -> None:
    pass


app.command(name="train", help=train.HELP)(train.train)
app.command(name="launch", help=launch.HELP)(launch.launch)
app.command(name="eval", help=evaluate.HELP)(evaluate.evaluate)
app.add_typer(recipes.app, name="recipes")
app.command(name="plan", help=plan.HELP)(plan.plan)
app.command(name="inspect", help=inspect.HELP)(inspect.inspect)
app.command(name="judge", help=judge.HELP)(judge.judge)
app.add_typer(bench.app, name="bench")
app.command(name="view", help=view.HELP)(view.view)
app.command(name="chat", help=chat.HELP)(chat.chat)
app.command(name="export", help=export.HELP)(export.export)
app.command(name="push", help=push.HELP)(push.push)
app.command(name="compare", help=compare.HELP)(compare.compare)
app.command(name="report", help=report.HELP)(report.report)
app.command(name="demo", help=demo.HELP)(demo.demo)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit 2 for an input that cannot work, 130 after Ctrl-C."""
    # Notices between the libraries below us, which a user of the command can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(accelerate|transformers|peft|trl)\.")
    try:
        app(arguments, standalone_mode=True)
    except UserError as error:
        complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)
