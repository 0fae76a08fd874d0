"""`goat recipes list|show|copy|check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import recipes
from ..errors import UserError, closest
from .output import complain, console, say

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)


@app.command(name="list", help="List the shipped recipes.")
def list_recipes() -> None:
    """Print name, task, method and description of each."""
    table = Table("name", "task", "method", "description")
    for name in recipes.shipped():
        recipe = recipes.load(name)
        table.add_row(name, recipe.task.type, recipe.method.name, recipe.description.strip())
    console.print(table)


@app.command(help="Print a shipped recipe, or a file with overrides applied and every default filled in.")
def show(
    name: Annotated[str, typer.Argument(help="shipped name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    full: Annotated[bool, typer.Option("--full", help="with every default filled in")] = False,
) -> None:
    """Print YAML that `goat train` takes."""
    text = recipes.to_yaml(recipes.load(name, overrides or [])) if full or overrides else recipes.read_text(name)
    say(text.rstrip())


@app.command(help="Copy a shipped recipe to a file of your own.")
def copy(
    name: Annotated[str, typer.Argument(help="shipped name")],
    destination: Annotated[Path | None, typer.Argument(help="file or folder; ./NAME.yaml when not given")] = None,
) -> None:
    """Write the file, never over another one."""
    if name not in recipes.shipped():
        raise UserError(f"recipe={name}: not a shipped recipe; {closest(name, recipes.shipped())}")
    target = destination or Path(f"{name}.yaml")
    if target.is_dir():
        target = target / f"{name}.yaml"
    if target.exists():
        raise UserError(f"destination={target}: exists; choose another name or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(recipes.read_text(name), encoding="utf-8")
    say(f"{target}: edit it, then run: goat train {target}")


@app.command(help="Check recipes without loading a model or data; all shipped ones when none is named.")
def check(names: Annotated[list[str] | None, typer.Argument(help="shipped names or files")] = None) -> None:
    """Check each; exit 2 when one does not hold."""
    failed = False
    for name in names or recipes.shipped():
        try:
            recipes.load(name)
        except UserError as error:
            failed = True
            complain("\n".join(f"{name}: {line}" for line in str(error).splitlines()))
        else:
            say(f"{name}: ok")
    if failed:
        raise typer.Exit(2)
