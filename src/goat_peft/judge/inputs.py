"""What is graded: questions, answers and reference answers in FastChat's files, as one list of requests to the judge."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import records
from ..errors import UserError, first_line
from . import prompts

# FastChat's own layout, inside the folder where a run keeps its answers.
ANSWERS = "model_answer"
QUESTIONS = "question.jsonl"
REFERENCES = "reference_answer/gpt-4.jsonl"

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One answer to be graded.

    Attributes:
        question_id: the question's number.
        category: the question's category.
        turn: 1 or 2.
        prompt: name of the grading prompt.
        messages: what the judge receives.
        key: digest of what the judge receives and of who it is; another answer or judge has another key.
    """

    question_id: int
    category: str
    turn: int
    prompt: str
    messages: list[prompts.Message]
    key: str


@dataclass(frozen=True)
class Files:
    """Where the three inputs lie; `references` is None when there is no such file."""

    answers: Path
    questions: Path
    references: Path | None

    def digests(self) -> dict[str, dict[str, str]]:
        """Path and SHA-256 of each, so that a result says which answers it is about."""
        named = {"answers": self.answers, "questions": self.questions, "references": self.references}
        return {
            name: {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in named.items()
            if path is not None
        }

    @property
    def model(self) -> str:
        """Name of the graded model: the answer file's, as FastChat takes it."""
        return self.answers.name.split(".jsonl")[0]


def find_files(answers: Path, questions: Path | None, references: Path | None) -> Files:
    """Find the inputs: `answers` is a run's folder or an answer file; the other two are looked for in FastChat's layout.

    Raises:
        UserError: one of them is not there.
    """
    if answers.is_dir():
        # Beside the predictions: in the run itself, or with one of the tests that it names.
        found = sorted(
            path for place in ("", "tests/*/") for path in answers.glob(f"{place}{records.FASTCHAT}/{ANSWERS}/*.jsonl")
        )
        if len(found) != 1:
            raise UserError(
                f"answers={answers}: {len(found)} answer files in {records.FASTCHAT}/{ANSWERS}; give the folder of a run of the chat "
                "task, or an answer file in FastChat's format"
            )
        answers = found[0]
    around = answers.resolve().parent.parent
    if questions is None:
        questions = around / QUESTIONS
    if references is None and (around / REFERENCES).is_file():
        references = around / REFERENCES
    for option, path in (("answers", answers), ("--questions", questions), ("--references", references)):
        if path is not None and not path.is_file():
            raise UserError(f"{option}={path}: no such file; give FastChat's JSON lines (.gz too)")
    return Files(answers, questions, references)


def read_items(files: Files, turns: list[int], judge: Row) -> list[Item]:
    """Read the files and build one item per question and turn, in the questions' order.

    Args:
        files: where the inputs lie.
        turns: turns to grade, from 1.
        judge: the judge's name and request settings, which belong to every key.

    Raises:
        UserError: a line, a field, an answer or a reference answer is missing.
    """
    questions = _read(files.questions, "--questions", "turns")
    answers = _read(files.answers, "answers", "choices")
    references = {} if files.references is None else _read(files.references, "--references", "choices")
    items = []
    for number, question in questions.items():
        category, asked = str(question.get("category", "")), question["turns"]
        if number not in answers:
            raise UserError(
                f"answers={files.answers}: has no answer to question {number}; score the model on all of them"
            )
        if not isinstance(asked, list) or not all(isinstance(text, str) for text in asked):
            raise UserError(f"--questions={files.questions}: turns of question {number} is not a list of texts")
        given = _turns(answers[number], f"answers={files.answers}")
        for turn in turns:
            if turn > len(asked):
                continue
            if turn > len(given):
                raise UserError(
                    f"--turns: {files.answers} answers turn 1 of question {number} only; grade with --turns 1, "
                    "or answer both with task.turns=2"
                )
            prompt = prompts.choose(category, turn)
            reference: list[str] = []
            if category in prompts.WITH_REFERENCE:
                reference = _reference(references, number, category, turn, files.references)
            messages = prompt.messages(asked[:turn], given[:turn], reference)
            items.append(Item(number, category, turn, prompt.name, messages, _digest([judge, number, turn, messages])))
    return items


def _reference(references: dict[int, Row], number: int, category: str, turn: int, path: Path | None) -> list[str]:
    if number not in references:
        raise UserError(
            f"--references={path}: question {number} ({category}) is graded against a reference answer and there is none; "
            "give FastChat's reference_answer/gpt-4.jsonl"
        )
    turns = _turns(references[number], f"--references={path}")
    if len(turns) < turn:
        raise UserError(
            f"--references={path}: question {number} has no reference answer to turn {turn}; use a whole file"
        )
    return turns[:turn]


def _turns(row: Row, field: str) -> list[str]:
    """Texts of an answer record's first choice, the one FastChat grades."""
    try:
        turns = row["choices"][0]["turns"]
        if not turns or not all(isinstance(text, str) for text in turns):
            raise TypeError
    except (LookupError, TypeError):
        raise UserError(
            f"{field}: question {row['question_id']} has no choices[0].turns of texts; see FastChat's answer format"
        ) from None
    return turns


def _read(path: Path, field: str, needed: str) -> dict[int, Row]:
    """Rows of a file of JSON lines by question, in the file's order; of two rows for a question the last one counts."""
    rows: dict[int, Row] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for place, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("question_id"), int) or needed not in row:
                    raise UserError(f"{field}={path}: line {place} lacks question_id (a whole number) or {needed}")
                rows[row["question_id"]] = row
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{field}={path}: cannot be read as JSON lines ({first_line(error)})") from None
    if not rows:
        raise UserError(f"{field}={path}: is empty; give FastChat's JSON lines")
    return rows


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
