"""`goat recipes list|tasks|show|copy|check`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import recipes
from ..errors import UserError, closest
from ..recipes import Data, Recipe, Source, TaskOptions
from .output import complain, console, say

app = typer.Typer(help="List, show, copy and check recipes and task files.", no_args_is_help=True)


@app.command(name="list", help="List the shipped recipes by family; with --family, each with its model.")
def list_recipes(
    family: Annotated[str | None, typer.Option("--family", help="one family alone, such as glue")] = None,
) -> None:
    """Print a line per task, or a line per recipe of one family."""
    known = recipes.families()
    if family is None:
        console.print(_overview(known))
        return
    if family not in known:
        raise UserError(f"--family={family}: no such family; {closest(family, known)}")
    table = Table("recipe", "model", "description", title=family, title_justify="left")
    for name in known[family]:
        recipe = recipes.load(name)
        table.add_row(name, recipe.model.name, recipe.description.strip())
    console.print(table)


@app.command(help="List the task files that `use:` and `goat eval --task` take, or print one.")
def tasks(name: Annotated[str | None, typer.Argument(help="task file to print")] = None) -> None:
    """Print a table, or the YAML of one task."""
    if name is not None:
        options = recipes.load_task(name)
        say("\n".join([*(f"# {line}" for line in _provenance(options)), recipes.read_task_text(name).rstrip()]))
        return
    table = Table("task", "type", "train", "test", "licence")
    for known in recipes.task_files():
        options = recipes.load_task(known)
        licence = options.about.licence if options.about else ""
        table.add_row(known, options.type, _rows(options, "train"), _rows(options, "test"), licence)
    console.print(table)


@app.command(help="Print a shipped recipe and where its data comes from, or a file with overrides applied.")
def show(
    name: Annotated[str, typer.Argument(help="shipped name or file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="with the files that it extends and uses, and every default filled in")
    ] = False,
) -> None:
    """Print YAML that `goat train` takes; what is said of the data stands in comments."""
    recipe = recipes.load(name, overrides or [])
    text = recipes.to_yaml(recipe) if full or overrides else recipes.read_text(name)
    said = _provenance(recipe.task, tested=not recipe.evaluation.tests)
    for test in recipe.evaluation.tests:
        said += _provenance(test, trained=False)
    say("\n".join([*(f"# {line}" for line in said), text.rstrip()]))


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


@app.command(
    help="Check recipes without loading a model or data; all shipped ones and all task files when none is named."
)
def check(names: Annotated[list[str] | None, typer.Argument(help="shipped names or files")] = None) -> None:
    """Check each; exit 2 when one does not hold."""
    held = [_holds(name, recipes.load, f"{name}: ok") for name in names or recipes.shipped()]
    if not names:
        held += [_holds(f"task {name}", lambda _, name=name: recipes.load_task(name)) for name in recipes.task_files()]  # type: ignore[misc]
        say(f"{sum(held)} of {len(held)} recipes and task files hold")
    if not all(held):
        raise typer.Exit(2)


def _holds(name: str, load: Callable[[str], Any], said: str | None = None) -> bool:
    try:
        load(name)
    except UserError as error:
        complain("\n".join(f"{name}: {line}" for line in str(error).splitlines()))
        return False
    if said:
        say(said)
    return True


def _overview(known: dict[str, list[str]]) -> Table:
    """One line per task: its family, and the recipes that train on it."""
    table = Table("family", "task", "recipes")
    for family, names in known.items():
        by_task: dict[str, list[Recipe]] = {}
        for recipe in map(recipes.load, names):
            by_task.setdefault(recipe.task.name, []).append(recipe)
        for index, (task, found) in enumerate(sorted(by_task.items())):
            named = ", ".join(recipe.name for recipe in found)
            last = index == len(by_task) - 1
            table.add_row(family if index == 0 else "", task or "(its own)", named, end_section=last)
    return table


def _provenance(options: TaskOptions, trained: bool = True, tested: bool = True) -> list[str]:
    """Say where a task's data comes from: source, licence, size, version, and the rows of the splits that are used."""
    lines = [f"{options.name or options.type}, version {options.version}"]
    if options.about is not None:
        about = options.about
        lines = [f"{lines[0]}: {about.source}", f"  licence: {about.licence}; size: {about.size}"]
    for split in ("train", "validation") * trained + ("test",) * tested:
        source = _source(options, split)
        if source is not None:
            place = source.dataset or source.path
            part = " ".join(filter(None, [source.config, source.split if source.dataset else None]))
            count = f"{source.rows:,} rows" if source.rows else "rows not counted"
            lines.append(f"  {split}: {place}{f' ({part})' if part else ''}, {count}{_revision(source)}")
    return lines


def _revision(source: Source) -> str:
    """Say whether rows from the network stay what they are; local files have no revision."""
    if source.revision:
        return f", revision {source.revision}"
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    remote = source.dataset or any(path.startswith("https://") for path in paths)
    return ", no revision pinned" if remote else ""


def _rows(options: TaskOptions, split: str) -> str:
    source = _source(options, split)
    return "" if source is None else f"{source.rows:,}" if source.rows else "?"


def _source(options: TaskOptions, split: str) -> Source | None:
    data = getattr(options, "data", None)
    return getattr(data, split) if isinstance(data, Data) else None
