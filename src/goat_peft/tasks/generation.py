"""Generation: a prompt and a response; trained on the response, scored by extracting an answer and comparing it."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from peft import TaskType
from pydantic import Field, PositiveInt, field_validator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import SFTConfig

from ..errors import UserError
from .base import DataTask, Family, Progress, Scores, Task, register
from .data import fill, template_columns
from .trainers import GenerationTrainer


class GenerationOptions(DataTask):
    """Prompt in, text out."""

    type: Literal["generation"] = "generation"
    prompt: str = Field(description="template over columns, such as '{instruction}\\n### Response:\\n'")
    response: str = Field(description="template of what the model learns to write after the prompt")
    answer: str = Field(description="template of the reference that the extracted answer must equal")
    extract: str = Field(description="regular expression; its first group (or the whole match) is the answer")
    extract_which: Literal["first", "last"] = Field("first", description="which match counts")
    ignore_case: bool = Field(True, description="compare answers without regard to case")
    max_length: PositiveInt = Field(512, description="tokens of prompt and response; longer examples are cut")
    max_new_tokens: PositiveInt = Field(32, description="tokens generated when scoring")

    @field_validator("prompt", "response", "answer")
    @classmethod
    def _names_columns(cls, template: str) -> str:
        if not template_columns(template):
            raise ValueError("names no column; write columns in braces, such as '{instruction}'")
        return template

    @field_validator("extract")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return pattern


class Generation(Task):
    """Supervised fine-tuning on responses; greedy, batched, left-padded generation for the score."""

    peft_type: ClassVar[TaskType] = TaskType.CAUSAL_LM
    main_metric: ClassVar[str] = "exact_match"

    def load_model(self, path: str, settings: dict[str, Any]) -> PreTrainedModel:
        """Load the causal language model."""
        return AutoModelForCausalLM.from_pretrained(path, **settings)

    def prepare(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, split: str) -> Dataset:
        """Return rows of `prompt` and `completion`; SFTTrainer tokenises them, adds eos and masks the prompt."""
        if not tokenizer.eos_token:
            raise UserError(
                "model.name: its tokenizer has no end-of-sequence token; a generation task needs a causal language model's"
            )
        return Dataset.from_dict({"prompt": self._fill("prompt", rows), "completion": self._fill("response", rows)})

    def trainer(
        self,
        model: nn.Module,
        arguments: dict[str, Any],
        train: Dataset,
        validation: Dataset | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """Build TRL's SFTTrainer with the loss on the response alone."""
        settings = SFTConfig(**arguments, max_length=self.options.max_length, completion_only_loss=True, packing=False)
        return GenerationTrainer(
            model=model,
            args=settings,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress
    ) -> Scores:
        """Generate greedily, longest prompts first; a text without an answer is counted as failed and as wrong."""
        model.eval()
        prompts, answers = self._fill("prompt", rows), self._fill("answer", rows)
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        order = sorted(range(len(prompts)), key=lambda index: -lengths[index])
        texts: list[str] = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for index, text in zip(chunk, self._generate(model, tokenizer, [prompts[i] for i in chunk]), strict=True):
                texts[index] = text
            progress(start + len(chunk), len(order))
        predictions = [
            self._judge(i, text, answer) for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
        ]
        failed = sum(row["prediction"] is None for row in predictions)
        share = sum(row["correct"] for row in predictions) / len(predictions)
        return Scores({"exact_match": share}, predictions, {"failed_extractions": failed})

    def extract(self, text: str) -> str | None:
        """Return the answer in a generated text, or None when there is none."""
        flags = re.IGNORECASE if self.options.ignore_case else 0
        found = list(re.finditer(self.options.extract, text, flags))
        if not found:
            return None
        match = found[0 if self.options.extract_which == "first" else -1]
        return (match.group(1) if match.re.groups else match.group(0)).strip()

    def _judge(self, index: int, text: str, answer: str) -> dict[str, Any]:
        guess = self.extract(text)
        if self.options.ignore_case:
            correct = guess is not None and guess.casefold() == answer.strip().casefold()
        else:
            correct = guess == answer.strip()
        return {"index": index, "label": answer, "prediction": guess, "correct": correct, "text": text}

    def _generate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
        # Left padding: the new tokens must follow the prompt's last token, not padding.
        side, tokenizer.padding_side = tokenizer.padding_side, "left"
        try:
            batch = tokenizer(prompts, return_tensors="pt", padding=True)
        finally:
            tokenizer.padding_side = side
        batch = batch.to(next(model.parameters()).device)
        written = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def _fill(self, name: str, rows: Dataset) -> list[str]:
        template = getattr(self.options, name)
        texts = fill(template, rows, f"task.{name}")
        for index, text in enumerate(texts):
            if not text.strip():
                raise UserError(
                    f"task.{name}={template!r}: row {index} of the data fills it with nothing; leave it out"
                )
        return texts


register(
    Family(
        name="generation",
        description="prompt and response; exact match of an extracted answer",
        options=GenerationOptions,
        task=Generation,
    )
)
