"""`goat chat RUN`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from .output import complain, say

HELP = "Talk to the model of a generation run; /reset forgets the conversation, /exit leaves, Ctrl-C stops an answer."


def chat(
    run: Annotated[Path, typer.Argument(help="folder that `goat train` wrote")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as model.dtype=bfloat16")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer, in tokens")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always writes the likeliest token")] = 0.0,
    recipe_prompt: Annotated[
        bool,
        typer.Option("--recipe-prompt", help="read messages in the recipe's prompt, not the tokenizer's chat template"),
    ] = False,
) -> None:
    """Read a line, write an answer, again; lines may come from a pipe, one a turn."""
    from ..errors import UserError
    from ..view import Conversation, open_run

    talk = Conversation(open_run(run, overrides or []), max_new_tokens, temperature, recipe_prompt)
    typed = sys.stdin.isatty()
    if typed:
        form = "the tokenizer's chat template" if talk.uses_chat_template else "the recipe's prompt"
        say(
            f"{run}, through {form if talk.uses_chat_template or talk.template else 'no template'}. {HELP.partition('; ')[2]}"
        )
    for message in _typed() if typed else (line.strip() for line in sys.stdin):
        if message == "/exit":
            return
        if message == "/reset":
            talk.reset()
        elif message:
            try:
                talk.ask(message, lambda piece: typer.echo(piece, nl=False))
            except UserError as error:  # too long a message is no reason to leave
                complain(str(error))
            typer.echo()


def _typed() -> Iterator[str]:
    """Lines typed at the prompt, until the end of input; Ctrl-C there starts a new line."""
    import readline  # noqa: F401 - gives `input` its history and editing

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("\n/exit or Ctrl-D leaves")
