"""Chat: instruction and response for training; MT-Bench's questions, of one or two turns, for the answers that a judge grades.

The answers are written in FastChat's layout and format (`fastchat/question.jsonl`, `fastchat/model_answer/MODEL.jsonl`).
What can be measured without a judge is whether there is an answer; the score comes from `goat judge`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from datasets import Dataset
from peft import PeftModel
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from torch import nn
from transformers import PreTrainedTokenizerBase

from .. import records
from ..errors import UserError
from . import processes
from .base import DataTask, Family, Scores, Scoring, register
from .data import fill, require_columns, template_columns
from .decoding import Sampling, Stops, generate_texts
from .generation import Generation

# FastChat's temperature per category of question; the others are answered at the last one.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
COLUMNS = ["question_id", "category", "turns"]
ALPACA_TURN = "\n\n### Instruction:\n{instruction}\n\n### Response:\n"


class ChatOptions(DataTask):
    """Instruction in, response out; tested on questions in FastChat's records (question_id, category, turns)."""

    type: Literal["chat"] = "chat"
    prompt: str = Field(description="template over the column of instructions; a question takes that column's place")
    response: str = Field(description="template of what the model learns to write after the prompt")
    next_turn: str = Field(
        ALPACA_TURN, description="template over the same column; what follows the first answer and its end mark"
    )
    turns: Literal[1, 2] = Field(1, description="turns answered; the paper's score is the first turn's")
    temperatures: Literal["greedy", "fastchat"] = Field(
        "greedy", description="greedy, or drawn at FastChat's temperature for each category"
    )
    seed: NonNegativeInt = Field(0, description="seed of drawn answers")
    stop: Stops = Field([], description="texts that end an answer, such as '### Instruction:'")
    max_length: PositiveInt = Field(1024, description="tokens of prompt and response; longer examples are cut")
    max_new_tokens: PositiveInt = Field(1024, description="tokens of an answer; FastChat allows 1024")
    model_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the model's name in the answer file; base and adapter kind when not given",
    )

    @field_validator("prompt")
    @classmethod
    def _one_column(cls, template: str) -> str:
        if len(template_columns(template)) != 1:
            raise ValueError("must name one column, whose place a question takes, such as '{instruction}'")
        return template

    @field_validator("response")
    @classmethod
    def _names_columns(cls, template: str) -> str:
        if not template_columns(template):
            raise ValueError("names no column; write columns in braces, such as '{output}'")
        return template

    @model_validator(mode="after")
    def _same_column(self) -> ChatOptions:
        column = template_columns(self.prompt)
        if self.turns == 2 and template_columns(self.next_turn) != column:
            raise ValueError(f"next_turn must name the column of prompt, {{{column[0]}}}, and no other")
        return self


class Chat(Generation):
    """Trained as generation is; evaluated by writing answers down."""

    main_metric = "answered"

    def check(self, rows: Dataset) -> None:
        """Every row is a question of FastChat's form."""
        read_questions(rows)

    def evaluate(self, model: nn.Module, rows: Dataset, processor: PreTrainedTokenizerBase, scoring: Scoring) -> Scores:
        """Answer every question; the share of answers that hold a text is `answered`.

        A kept row is one answer; its index is `turn * questions + question`, turns counted from 0.
        """
        questions = read_questions(rows)
        asked = range(min(self.options.turns, max(len(row["turns"]) for row in questions)))
        shares = [processes.share(self._missing(questions, turn, scoring)) for turn in asked]
        done, total = 0, sum(map(len, shares))
        for turn, share in zip(asked, shares, strict=True):
            texts = {row["index"]: row["text"] for row in scoring.kept.rows()}
            prompts = self._prompts(questions, turn, texts, processor.eos_token)
            for sampling, indices in self._groups(questions, share):

                def keep(chunk: list[int], answers: list[str]) -> None:
                    nonlocal done
                    now = time.time()
                    scoring.kept.add(
                        [{"index": i, "text": text, "time": now} for i, text in zip(chunk, answers, strict=True)]
                    )
                    done += len(chunk)
                    scoring.progress(done, total)

                generate_texts(
                    model,
                    processor,
                    prompts,
                    indices=indices,
                    max_new_tokens=self.options.max_new_tokens,
                    batch_size=scoring.batch_size,
                    stop=self.options.stop,
                    sampling=sampling,
                    done=keep,
                )
        return self._scores(questions, {row["index"]: row for row in scoring.kept.rows()}, self._model_id(model))

    def _missing(self, questions: list[dict[str, Any]], turn: int, scoring: Scoring) -> list[int]:
        """Indices of this turn's answers that no earlier run has finished."""
        count = len(questions)
        here = scoring.kept.missing(count * self.options.turns)
        return [index for index in here if index // count == turn and len(questions[index % count]["turns"]) > turn]

    def _prompts(self, questions: list[dict[str, Any]], turn: int, texts: dict[int, str], end: str) -> list[str]:
        """Prompts by index; those of earlier turns are empty. The end mark stands where training put it: behind an answer."""
        column, count = template_columns(self.options.prompt)[0], len(questions)
        prompts = self._turn("prompt", column, [row["turns"][0] for row in questions])
        if turn == 0:
            return prompts
        second = [row["turns"][1] if len(row["turns"]) > 1 else "" for row in questions]
        follow = self._turn("next_turn", column, second)
        return [""] * count + [prompts[i] + texts[i].strip() + end + follow[i] for i in range(count)]

    def _turn(self, name: str, column: str, texts: list[str]) -> list[str]:
        return fill(getattr(self.options, name), Dataset.from_dict({column: texts}), f"task.{name}")

    def _groups(
        self, questions: list[dict[str, Any]], indices: list[int]
    ) -> Iterator[tuple[Sampling | None, list[int]]]:
        """Split indices by the temperature that their question is answered at; None is greedy."""
        groups: dict[float, list[int]] = {}
        for index in indices:
            category = questions[index % len(questions)]["category"]
            drawn = self.options.temperatures == "fastchat"
            groups.setdefault(TEMPERATURES.get(category, OTHER_TEMPERATURE) if drawn else 0.0, []).append(index)
        for temperature, members in groups.items():
            if temperature == 0.0:
                yield None, members
            else:
                yield Sampling(temperature=temperature, top_p=1.0, seed=self.options.seed), members

    def _scores(self, questions: list[dict[str, Any]], found: dict[int, dict[str, Any]], model: str) -> Scores:
        predictions, lines = [], []
        for place, question in enumerate(questions):
            turns = range(min(self.options.turns, len(question["turns"])))
            rows = [found[turn * len(questions) + place] for turn in turns]
            answers = [row["text"].strip() for row in rows]
            predictions.append({"index": place, **question, "answers": answers})
            lines.append(answer_record(question["question_id"], model, answers, rows[-1]["time"]))
        answers = [text for row in predictions for text in row["answers"]]
        empty = sum(not text for text in answers)
        return Scores(
            metrics={"answered": 1 - empty / len(answers)},
            predictions=predictions,
            counts={
                "answers": len(answers),
                "empty_answers": empty,
                "mean_answer_words": round(sum(len(text.split()) for text in answers) / len(answers)),
            },
            files={
                f"{records.FASTCHAT}/question.jsonl": json_lines(questions),
                f"{records.FASTCHAT}/model_answer/{model}.jsonl": json_lines(lines),
            },
            note="No judge has read these answers yet: `goat judge RUN --model JUDGE --endpoint URL` gives them their score.",
        )

    def _model_id(self, model: nn.Module) -> str:
        """Name of the answer file: the recipe's, else the base model's with the adapter's kind."""
        if self.options.model_id is not None:
            return self.options.model_id
        name = PurePosixPath(getattr(model.config, "_name_or_path", "")).name or "model"
        if isinstance(model, PeftModel):
            name += f"-{model.active_peft_config.peft_type.lower()}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def read_questions(rows: Dataset) -> list[dict[str, Any]]:
    """Questions in FastChat's form, from rows that have its columns.

    Raises:
        UserError: a column is missing, a question has no text, or two share an id.
    """
    require_columns(rows, COLUMNS, "task.data.test")
    questions = []
    for index, (number, category, turns) in enumerate(zip(*(rows[name] for name in COLUMNS), strict=True)):
        if (
            not isinstance(turns, list)
            or not turns
            or not all(isinstance(text, str) and text.strip() for text in turns)
        ):
            raise UserError(
                f"task.data.test: row {index} has turns={turns!r}; give a list of texts, none of them empty"
            )
        questions.append({"question_id": number, "category": category, "turns": turns})
    if len({row["question_id"] for row in questions}) < len(questions):
        raise UserError("task.data.test: two rows have the same question_id; number the questions")
    return questions


def answer_record(question_id: int, model: str, turns: list[str], when: float) -> dict[str, Any]:
    """One line of FastChat's answer file; the id is a digest, so that the same answer has the same one."""
    digest = hashlib.sha256(json.dumps([question_id, model, turns]).encode()).hexdigest()[:22]
    return {
        "question_id": question_id,
        "answer_id": digest,
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": when,
    }


def json_lines(rows: list[dict[str, Any]]) -> str:
    """Rows as JSON lines, in ASCII: FastChat reads its files in whatever encoding the machine prefers."""
    return "".join(json.dumps(row) + "\n" for row in rows)


register(
    Family(
        name="chat",
        description="instructions and responses; answers to MT-Bench for a judge",
        options=ChatOptions,
        task=Chat,
    )
)
