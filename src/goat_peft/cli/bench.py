"""`goat bench QUESTION`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from ..bench import QUESTIONS
from .output import say

app = typer.Typer(
    help="Measure GOAT against the frozen model, LoRA and a loop over experts, in one run.", no_args_is_help=True
)


def _add(question: str, text: str) -> None:
    # The script reads its own options, --help among them.
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name=question, help=text, context_settings=passed_on)
    def bench(context: typer.Context) -> None:
        importlib.import_module(f"goat_peft.bench.{question.replace('-', '_')}").main(context.args)


for _question, _text in QUESTIONS.items():
    _add(_question, _text)


@app.command(help="Draw the rows of train-step and decode.")
def plot(
    results: Annotated[Path, typer.Option(help="folder of the measured rows")] = Path("benchmarks/results"),
    output: Annotated[Path, typer.Option(help="PNG to write")] = Path("benchmarks/speed.png"),
) -> None:
    """Draw, from files alone."""
    from ..reporting.bench import draw

    draw(results, output)
    say(f"{output}: drawn from {results}")
