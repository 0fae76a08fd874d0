"""`goat judge RUN --model JUDGE --endpoint URL`."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from .. import records
from ..errors import UserError, first_line
from .output import complain, console, errors, say

HELP = "Have answers graded by a judge model (FastChat's single-answer grading); a judgement that is there is never asked for again."
PICTURE = "judge.png"
RESULT = "judge.json"
LOG = "judgements.jsonl"
# FastChat's request; anything else is the user's to ask for.
SETTINGS = {"temperature": 0, "max_tokens": 2048}


def judge(
    answers: Annotated[Path, typer.Argument(help="folder of a chat run, or an answer file in FastChat's format")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="fields of the request; temperature=0 and max_tokens=2048 unless you say otherwise (null leaves one out)",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="the judge's name at the endpoint, such as gpt-4")] = ...,  # type: ignore[assignment]
    endpoint: Annotated[
        str, typer.Option(help="address of an OpenAI-compatible service, such as https://HOST/v1")
    ] = ...,  # type: ignore[assignment]
    samples: Annotated[int, typer.Option(min=1, help="judgements per answer")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="requests under way at once")] = 4,
    turns: Annotated[
        Literal["1", "both"], typer.Option(help="turns graded; the paper's score is the first turn's")
    ] = "1",
    key_variable: Annotated[str, typer.Option(help="environment variable that holds the key")] = "OPENAI_API_KEY",
    questions: Annotated[Path | None, typer.Option(help="FastChat's question.jsonl; a run has its own")] = None,
    references: Annotated[
        Path | None, typer.Option(help="FastChat's reference_answer/gpt-4.jsonl, for math, reasoning and coding")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the judgements; judge/JUDGE beside the answers")
    ] = None,
) -> None:
    """Grade what is missing, write the result, print the scores."""
    clock = time.perf_counter()
    key = _key(key_variable, endpoint)
    job = _import()
    if key and job.is_secret(key) and any(key in argument for argument in sys.argv):
        raise UserError("the key stands in the command itself; leave it out, it is read from --key-variable")
    request = _request(settings or [])
    files = job.find_files(answers, questions, references)
    items = job.read_items(files, [1] if turns == "1" else [1, 2], {"model": model, "settings": request})
    folder = output or _folder(answers, files) / _file_name(model)
    server = job.Endpoint(endpoint, model, key, request)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        with job.open_log(folder / LOG) as log:
            graded = _grade(job, items, server, log, samples, concurrency)
    except KeyboardInterrupt:
        complain(f"interrupted; every judgement so far is kept in {folder / LOG}, continue with: {command}")
        sys.exit(130)
    figures = job.summarise(items, graded, samples)
    told = {"model": files.model, "judge": model, "endpoint": endpoint, "request": request, "turns": turns}
    result = _result(told, files, command, figures, time.perf_counter() - clock)
    rows = job.fastchat_rows(items, graded, files.model, model)
    records.write_text(folder / f"{_file_name(model)}_single.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    from ..reporting.judge import draw

    draw(result, folder / PICTURE)
    records.write_json(folder / RESULT, result)
    _report(files.model, model, figures, folder, command)


def _import() -> Any:
    """Import the judge, whose client is an extra."""
    try:
        from .. import judge as job
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise UserError(
            "goat judge: needs the package openai; install it with: pip install 'goat-peft[judge]'"
        ) from None
    return job


def _grade(job: Any, items: Any, server: Any, log: Any, samples: int, concurrency: int) -> Any:
    """Grade under a progress bar that shows retries, tokens and the last trouble."""
    from ..training.callbacks import bar

    with bar() as progress:
        shown = progress.add_task("judge", total=None, note="")

        def watch(tally: Any) -> None:
            notes = [f"{(tally.prompt_tokens + tally.completion_tokens) / 1000:.0f} k tokens"]
            if tally.failed:
                notes.append(f"{tally.failed} failed")
            if tally.retries:
                notes.append(escape(f"{tally.retries} retries, last: {tally.trouble[:60]}"))
            progress.update(shown, total=tally.total, completed=tally.done, note=", ".join(notes))

        return job.grade(items, server, log, samples=samples, concurrency=concurrency, watch=watch)


def _request(overrides: list[str]) -> dict[str, Any]:
    """The request's fields: FastChat's, with what the user sets."""
    request: dict[str, Any] = dict(SETTINGS)
    for override in overrides:
        name, sign, text = override.partition("=")
        if not sign or not name:
            raise UserError(f"{override}: not a field of the request; write key=value, such as temperature=0.7")
        if name in {"model", "messages", "stream", "n"}:
            raise UserError(f"{override}: cannot be set; the judge is --model, judgements per answer are --samples")
        try:
            request[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{override}: the value is not YAML ({first_line(error)}); quote it") from None
    return {name: value for name, value in request.items() if value is not None}


def _key(variable: str, endpoint: str) -> str | None:
    """Read the key, which goes to the endpoint and nowhere else; a service on this machine may do without one."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        # Not repeated in the message: it may be the key itself.
        raise UserError("--key-variable: not the name of an environment variable; give its name, never the key")
    job = _import()
    job.check_url(endpoint)
    key = os.environ.get(variable, "").strip()
    if not key and not job.is_local(endpoint):
        raise UserError(
            f"--key-variable={variable}: the variable is not set; export it with the service's key (any word for a service "
            "that takes none)"
        )
    if key and endpoint.startswith("http:") and not job.is_local(endpoint):
        errors.print(f"note: {endpoint} is not https; the key travels in the clear", markup=False)
    return key or None


def _folder(answers: Path, files: Any) -> Path:
    """Where judgements of these answers lie: inside a run, else beside the answer file."""
    return answers / "judge" if answers.is_dir() else files.answers.with_name(f"{files.model}-judge")


def _file_name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".") or "judge"


def _result(told: dict[str, Any], files: Any, command: str, figures: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The three blocks of every result file, with the grading in place of a training."""
    from importlib.metadata import version

    from ..training import record

    return {
        "run_info": {
            "created_at": record.now(),
            "total_time": seconds,
            "command": command,
            **told,
            "protocol": "FastChat single-answer grading",
        },
        "judge_info": figures,
        "meta_info": {
            "dataset_info": files.digests(),
            "package_info": record.package_info() | {"openai-version": version("openai")},
            "system_info": record.system_info(),
        },
    }


def _report(answered: str, judge_name: str, figures: dict[str, Any], folder: Path, command: str) -> None:
    """Print scores, spread, cost and what is missing; exit 1 when something is."""
    title = escape(f"{answered}, judged by {judge_name}")
    table = Table("", "score", "standard error", "questions", title=title, title_justify="left")
    turns = figures["turns"] if len(figures["turns"]) > 1 else {}
    lines = [("all", figures), *((f"turn {turn}", row) for turn, row in turns.items()), *figures["categories"].items()]
    for name, row in lines:
        table.add_row(escape(name), _number(row["score"]), _number(row["standard_error"]), str(row["questions"]))
    console.print(table)
    counts = figures["counts"]
    if figures["judge_sd"] is not None:
        say(f"between judgements of one answer: standard deviation {figures['judge_sd']:.2f}")
    say(
        f"{counts['judgements']} judgements, {counts['malformed_replies']} replies without a rating, {counts['retries']} "
        f"retries; {counts['prompt_tokens']} tokens sent, {counts['completion_tokens']} received"
    )
    say(f"{folder / RESULT} holds the figures, {folder / LOG} every reply")
    if counts["failed"]:
        for row in figures["failures"][:5]:
            complain(f"question {row['question_id']}, turn {row['turn']}: {row['error']}")
        complain(f"{counts['failed']} judgements failed and are in no mean; ask for them again with: {command}")
        raise typer.Exit(1)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
