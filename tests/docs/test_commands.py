"""Every command in the pages is one that the program takes: verb, options, recipe, task, overrides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import PAGES, ROOT, Command, commands, page_id, prose, write_files

from goat_peft import recipes
from goat_peft.cli.app import app
from goat_peft.compare.plan import load_plan
from goat_peft.errors import UserError

UsageError: Any = typer.BadParameter.__base__  # typer brings its own click, or uses the installed one
GOAT = typer.main.get_command(app)
READS_RECIPE = {"train", "launch", "plan"}  # their first argument is a recipe
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+$|.*[/.]|<")  # RECIPE, RUN, mine.yaml: what the reader puts in


def goat_arguments(command: Command) -> list[str] | None:
    """The words after `goat`, or None for another program; `accelerate launch ... -m goat_peft` counts."""
    words = command.words
    if words[0] == "goat":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "goat_peft":
        return words[words.index("-m") + 2 :]
    return None


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse as the program does, without running anything; return verb and parameters."""
    command: Any = GOAT
    name, context = "goat", None
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            return name, context.params
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        name = command.name


def check(arguments: list[str]) -> None:
    """Raise for a line that the program would refuse before it looks at the reader's own files."""
    if "..." in arguments:
        arguments = [word for word in arguments if word != "..."]
        assert arguments[0] in GOAT.commands
        return
    try:
        verb, given = parsed(arguments)
    except typer.Exit as end:  # --help
        assert end.exit_code == 0
        return
    for task in given.get("task") or []:
        if not PLACEHOLDER.match(task):
            recipes.load_task(task)
    recipe = given.get("recipe") or (given.get("name") if verb in {"show", "copy"} else None)
    if recipe and (Path(recipe).exists() or not PLACEHOLDER.match(recipe)):
        recipes.load(recipe, given.get("overrides") or [])
    if verb == "compare" and not PLACEHOLDER.match(given["plan"]):
        load_plan(given["plan"], given.get("overrides") or [])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_goat_line_is_one_the_program_takes(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    wrong = []
    for command in commands(page):
        arguments = goat_arguments(command)
        if not arguments:
            continue
        try:
            check(arguments)
        except (UserError, UsageError) as error:
            wrong.append(f"{command}: {type(error).__name__}: {getattr(error, 'message', error)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_verb_in_the_text_exists(page: Path) -> None:
    for verb in re.findall(r"`goat ([a-z]\S*?)[ `]", prose(page)):
        assert set(verb.split("|")) <= set(GOAT.commands), f"{page.name}: goat {verb}"


def test_the_pages_show_most_of_the_program() -> None:
    shown = {(goat_arguments(command) or [""])[0] for page in PAGES for command in commands(page)}
    assert set(GOAT.commands) - shown <= {"demo"}  # which `make demo` calls


def test_a_wrong_line_is_found() -> None:
    for line in (
        "trian demo-reviews",
        "train demo-review",
        "train demo-reviews --resmue",
        "train demo-reviews epochs=2",
    ):
        with pytest.raises((UserError, UsageError)):
            check(line.split())
    check(["train", "demo-reviews", "method.r=16"])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_other_commands_name_what_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands(page):
        words = [word for word in command.words if word != "cd"]
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in words[1:]), command
        if words[0] == "python" and words[1].endswith(".py"):
            assert PLACEHOLDER.match(Path(words[1]).stem) or (ROOT / words[1]).exists(), command
