"""Generation: a prompt and a response; trained on the response, scored by an extracted answer or by the likeliest option."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from datasets import Dataset, concatenate_datasets
from peft import TaskType
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import SFTConfig

from ..errors import UserError
from . import answers, processes
from .base import DataTask, Family, Scores, Scoring, Task, register
from .data import fill, short_enough, template_columns
from .decoding import Sampling, Stops, example_ids, generate_texts
from .likelihood import OptionRow, option_scores
from .trainers import GenerationTrainer, on_one_device

CHUNK = 1000  # rows tokenised at a time: their Python lists are far larger than the Arrow table they end in
Keep = Callable[[list[dict[str, Any]]], None]
PARTS = re.compile(r"\s*/\s*")


class GenerationOptions(DataTask):
    """Prompt in, text out."""

    type: Literal["generation"] = "generation"
    prompt: str = Field(description="template over columns, such as '{instruction}\\n### Response:\\n'")
    response: str | None = Field(None, description="template of what the model learns to write; needed for training")
    max_length: PositiveInt = Field(512, description="tokens of prompt and response; longer examples are cut")
    score: Literal["generate", "likelihood"] = Field(
        "generate", description="write an answer and extract it, or choose the likeliest of the options (cheaper)"
    )
    answer: str = Field(description="template of the reference answer")
    answer_pattern: answers.Pattern | None = Field(
        None, description="regular expression on the filled `answer`; its first group is the reference"
    )
    compare: Literal["text", "number"] = Field("text", description="how the answer and the reference are compared")
    ignore_case: bool = Field(True, description="extract and compare without regard to case")
    tolerance: NonNegativeFloat = Field(1e-6, description="numbers that differ by no more are the same")
    extract: answers.Extractions = Field(
        [], description="regular expression that finds the answer, or a list of them, tried in order"
    )
    max_new_tokens: PositiveInt = Field(32, description="tokens generated when scoring")
    stop: Stops = Field([], description="texts before which a generated text ends")
    sampling: Sampling | None = Field(None, description="draw tokens; the likeliest is taken when not given")
    options: list[str] = Field([], description="templates of the texts that `score: likelihood` chooses from")
    options_pattern: answers.Pattern | None = Field(
        None, description="in place of `options`: regular expression on the prompt; its group holds them, parted by /"
    )
    option_response: str = Field("{option}", description="what the model writes for an option")

    @field_validator("prompt", "response", "answer")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is not None and not template_columns(template):
            raise ValueError("names no column; write columns in braces, such as '{instruction}'")
        return template

    @field_validator("option_response")
    @classmethod
    def _names_the_option(cls, template: str) -> str:
        if template_columns(template) != ["option"]:
            raise ValueError("has to name the option, and nothing else, in braces, such as 'the answer is {option}'")
        return template

    @model_validator(mode="after")
    def _can_score(self) -> GenerationOptions:
        if self.score == "generate" and not self.extract:
            raise ValueError("extract=[]: score=generate needs a regular expression that finds the answer")
        if self.score == "likelihood" and bool(self.options) == (self.options_pattern is not None):
            raise ValueError("score=likelihood: needs options or options_pattern, one of the two")
        return self


class Generation(Task):
    """Supervised fine-tuning on responses; batched generation or option likelihoods for the score."""

    peft_type: ClassVar[TaskType] = TaskType.CAUSAL_LM
    captures_steps: ClassVar[bool] = True

    @property
    def main_metric(self) -> str:
        """The score's own name, so that the two ways of scoring are never taken for one another."""
        return "exact_match" if self.options.score == "generate" else "likelihood_accuracy"

    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the causal language model."""
        return AutoModelForCausalLM.from_pretrained(path, **settings)

    def prepare(self, rows: Dataset, processor: PreTrainedTokenizerBase, split: str) -> Dataset:
        """Return rows of `input_ids` (prompt, response, end of text) and `completion_mask`, 1 on what is learned.

        Training rows that reach `data.train.max_tokens` are left out, and so are those whose prompt alone fills
        `max_length`: nothing to learn would be left. The trainer cuts others at `max_length`. `train_rows` counts both.
        """
        if not processor.eos_token:
            raise UserError(
                "model.name: its tokenizer has no end-of-sequence token; a generation task needs a causal language model's"
            )
        if self.options.response is None:
            raise UserError("task.response: missing; training needs a template of what the model learns to write")

        def examples(part: Dataset) -> list[tuple[list[int], list[int]]]:
            texts = zip(self._fill("prompt", part), self._fill("response", part), strict=True)
            return [example_ids(processor, prompt, response) for prompt, response in texts]

        def lengths(part: Dataset) -> list[int]:
            return [len(prompt) + len(response) + 1 for prompt, response in examples(part)]

        if split == "train":
            rows = short_enough(rows, self.options.data.train, lengths, "task.data.train")
        chunks, longest = [], self.options.max_length
        counts = {"train": 0, "cut": 0, "dropped": 0}
        for start in range(0, len(rows), CHUNK):
            found = examples(rows.select(range(start, min(start + CHUNK, len(rows)))))
            if split == "train":
                whole = len(found)
                found = [(prompt, response) for prompt, response in found if len(prompt) < longest]
                counts["dropped"] += whole - len(found)
                counts["train"] += len(found)
                counts["cut"] += sum(len(prompt) + len(response) + 1 > longest for prompt, response in found)
                if not found:
                    continue
            ids = [[*prompt, *response, processor.eos_token_id] for prompt, response in found]
            masks = [[0] * len(prompt) + [1] * (len(response) + 1) for prompt, response in found]
            chunks.append(Dataset.from_dict({"input_ids": ids, "completion_mask": masks}))
        if split == "train":
            if not chunks:
                raise UserError(
                    f"task.max_length={longest}: the prompt alone fills it in each of the {len(rows)} training rows; raise it"
                )
            self.train_rows = counts
        return concatenate_datasets(chunks)

    def trainer(
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: Dataset,
        validation: Dataset | None,
        processor: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build TRL's SFTTrainer with the loss on the response alone."""
        settings = SFTConfig(**arguments, max_length=self.options.max_length, completion_only_loss=True, packing=False)
        return GenerationTrainer(
            model=model,
            args=on_one_device(settings),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=processor,
            callbacks=callbacks,
        )

    def check(self, rows: Dataset) -> None:
        """Every row has a prompt and a usable reference answer, which is among its options."""
        prompts, references = self._fill("prompt", rows), self._references(rows)
        if self.options.score == "likelihood":
            self._choices(rows, prompts, references)

    def evaluate(self, model: nn.Module, rows: Dataset, processor: PreTrainedTokenizerBase, scoring: Scoring) -> Scores:
        """Score as the options say; a text without an answer is counted as failed and is wrong."""
        likelihood = self.options.score == "likelihood"
        prompts, references = self._fill("prompt", rows), self._references(rows)
        mine = processes.share(scoring.kept.missing(len(rows)))
        scored = 0

        def keep(judged: list[dict[str, Any]]) -> None:
            nonlocal scored
            scoring.kept.add(judged)
            scored += len(judged)
            scoring.progress(scored, len(mine))

        if likelihood:
            self._choose(model, processor, self._choices(rows, prompts, references), references, mine, scoring, keep)
        else:
            self._write(model, processor, prompts, references, mine, scoring, keep)
        predictions = scoring.kept.rows()
        share = sum(row["correct"] for row in predictions) / len(predictions)
        if likelihood:
            return Scores({self.main_metric: share}, predictions)
        failed = sum(row["prediction"] is None for row in predictions)
        return Scores({self.main_metric: share}, predictions, {"failed_extractions": failed})

    def _write(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[str],
        references: list[str],
        indices: list[int],
        scoring: Scoring,
        keep: Keep,
    ) -> None:
        """Generate texts for the wanted rows and judge each."""
        generate_texts(
            model,
            tokenizer,
            prompts,
            max_new_tokens=self.options.max_new_tokens,
            batch_size=scoring.batch_size,
            indices=indices,
            stop=self.options.stop,
            sampling=self.options.sampling,
            done=lambda places, texts: keep(
                [self.judge(place, text, references[place]) for place, text in zip(places, texts, strict=True)]
            ),
        )

    def _choose(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        choices: list[OptionRow],
        references: list[str],
        indices: list[int],
        scoring: Scoring,
        keep: Keep,
    ) -> None:
        """Take the likeliest option of the wanted rows."""

        def done(places: list[int], scores: list[list[float]]) -> None:
            judged = []
            for place, row in zip(places, scores, strict=True):
                options = choices[place].options
                guess = options[row.index(max(row))]
                correct = self._same(guess, references[place])
                found = {"index": place, "label": references[place], "prediction": guess, "correct": correct}
                judged.append({**found, "scores": dict(zip(options, row, strict=True))})
            keep(judged)

        option_scores(model, tokenizer, choices, batch_size=scoring.batch_size, indices=indices, done=done)

    def extract(self, text: str) -> str | None:
        """Return the answer in a generated text, or None when there is none; a number's text when numbers are compared."""
        found = answers.find(text, self.options.extract, self.options.ignore_case)
        if found is not None and self.options.compare == "number" and answers.as_number(found) is None:
            return None
        return found

    def judge(self, index: int, text: str, reference: str) -> dict[str, Any]:
        """The prediction row of a generated text."""
        guess = self.extract(text)
        correct = guess is not None and self._same(guess, reference)
        return {"index": index, "label": reference, "prediction": guess, "correct": correct, "text": text}

    def _same(self, guess: str, reference: str) -> bool:
        if self.options.compare == "number":
            first, second = answers.as_number(guess), answers.as_number(reference)
            return (
                first is not None and second is not None and answers.same_number(first, second, self.options.tolerance)
            )
        if self.options.ignore_case:
            return guess.casefold() == reference.casefold()
        return guess == reference

    def _references(self, rows: Dataset) -> list[str]:
        """The reference answer of each row; a row without a usable one is an error."""
        texts = [text.strip() for text in self._fill("answer", rows)]
        pattern = self.options.answer_pattern
        if pattern is not None:
            way = [answers.Extraction(pattern=pattern)]
            found = [answers.find(text, way) for text in texts]
            for index, (text, answer) in enumerate(zip(texts, found, strict=True)):
                if answer is None:
                    raise UserError(
                        f"task.answer_pattern={pattern}: does not match the answer of row {index}, {_short(text)}"
                    )
            texts = [answer for answer in found if answer is not None]
        if self.options.compare == "number" and self.options.score == "generate":
            for index, text in enumerate(texts):
                if answers.as_number(text) is None:
                    raise UserError(
                        f"task.compare=number: the answer of row {index}, {_short(text)}, is no number; "
                        "give answer_pattern, or compare: text"
                    )
        return texts

    def _choices(self, rows: Dataset, prompts: list[str], references: list[str]) -> list[OptionRow]:
        """What each row chooses from; the reference must be among it."""
        if self.options.options:
            filled = [
                fill(text, rows, "task.options") if template_columns(text) else [text] * len(rows)
                for text in self.options.options
            ]
            options = [list(row) for row in zip(*filled, strict=True)]
        else:
            options = [self._options_in(index, prompt) for index, prompt in enumerate(prompts)]
        lead = self.options.option_response.partition("{option}")[0]
        choices = []
        for index, (prompt, row, reference) in enumerate(zip(prompts, options, references, strict=True)):
            if not any(self._same(option, reference) for option in row):
                raise UserError(
                    f"task.options: row {index} chooses from {', '.join(row)}, and its answer {_short(reference)} is not among them"
                )
            responses = [self.options.option_response.format(option=option) for option in row]
            choices.append(OptionRow(prompt, lead, row, responses))
        return choices

    def _options_in(self, index: int, prompt: str) -> list[str]:
        pattern = str(self.options.options_pattern)
        found = answers.find(prompt, [answers.Extraction(pattern=pattern)])
        if found is None:
            raise UserError(
                f"task.options_pattern={pattern}: does not match the prompt of row {index}, {_short(prompt)}"
            )
        return PARTS.split(found)

    def _fill(self, name: str, rows: Dataset) -> list[str]:
        template = getattr(self.options, name)
        texts = fill(template, rows, f"task.{name}")
        for index, text in enumerate(texts):
            if not text.strip():
                raise UserError(
                    f"task.{name}={template!r}: row {index} of the data fills it with nothing; leave it out"
                )
        return texts


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


register(
    Family(
        name="generation",
        description="prompt and response; exact match of an extracted answer, or the likeliest option",
        options=GenerationOptions,
        task=Generation,
    )
)
