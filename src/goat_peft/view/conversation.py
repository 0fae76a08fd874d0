"""Talking to a model that a run trained: what it reads for a turn, and its answer as it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import TaskType
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from ..errors import UserError
from ..tasks.data import template_columns
from ..training.callbacks import FirstInterrupt
from .opening import Opened


class Stop(FirstInterrupt, StoppingCriteria):
    """Turns the first Ctrl-C into the end of the answer under way."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each sequence (batch,) ends here."""
        return torch.full((input_ids.shape[0],), self.asked, device=input_ids.device)


class Conversation:
    """Turns of a user and a model.

    The model reads them in the tokenizer's chat template. Without one, or with `recipe_prompt`, each message fills the recipe's prompt template, as in
    training, and earlier turns stand before it, each ended by the end-of-text token; a template of several columns, which one message cannot fill, is
    left out. The oldest turns are forgotten when the model's length is used up.
    """

    def __init__(self, opened: Opened, max_new_tokens: int, temperature: float, recipe_prompt: bool) -> None:
        """Raise `UserError` for a run whose model does not write."""
        if opened.task.peft_type != TaskType.CAUSAL_LM or not isinstance(opened.processor, PreTrainedTokenizerBase):
            raise UserError(
                f"run={opened.path}: its task is {opened.recipe.task.type}, whose model does not write; chat needs a run of a generation task"
            )
        self.model, self.tokenizer = opened.model, opened.processor
        self.turns: list[tuple[str, str]] = []
        self.stop = Stop()
        self.template = None if self.tokenizer.chat_template and not recipe_prompt else _one_column(opened)
        self.uses_chat_template = bool(self.tokenizer.chat_template) and not recipe_prompt
        self.length = opened.length
        if self.length is not None and max_new_tokens >= self.length:
            raise UserError(
                f"--max-new-tokens={max_new_tokens}: the model reads and writes {self.length} tokens in all; give fewer"
            )
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        self.settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=_ends(opened.model, self.tokenizer),
            **sampling,
        )

    def reset(self) -> None:
        """Forget all turns."""
        self.turns = []

    @torch.inference_mode()
    def ask(self, message: str, write: Callable[[str], None]) -> str:
        """Answer `message`; `write` takes the answer piece by piece. Ctrl-C ends the answer, which counts as far as it goes."""
        inputs = self._fitting(message)
        device = next(self.model.parameters()).device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        with self.stop:
            written = self.model.generate(
                **inputs,
                generation_config=self.settings,
                stopping_criteria=StoppingCriteriaList([self.stop]),
                streamer=_Pieces(self.tokenizer, write),
            )
        new = written[0, inputs["input_ids"].shape[1] :]
        answer = str(self.tokenizer.decode(new, skip_special_tokens=True))
        self.turns.append((message, answer))
        return answer

    def _fitting(self, message: str) -> dict[str, torch.Tensor]:
        """What the model reads; the oldest turns go until it fits."""
        while True:
            inputs = self._inputs(message)
            room = None if self.length is None else self.length - self.settings.max_new_tokens
            if room is None or inputs["input_ids"].shape[1] <= room:
                return inputs
            if not self.turns:
                raise UserError(
                    f"message: is {inputs['input_ids'].shape[1]} tokens long and the model has room for {room}; shorten it or --max-new-tokens"
                )
            del self.turns[0]

    def _inputs(self, message: str) -> dict[str, torch.Tensor]:
        if self.uses_chat_template:
            messages = []
            for user, assistant in [*self.turns, (message, None)]:
                messages.append({"role": "user", "content": user})
                if assistant is not None:
                    messages.append({"role": "assistant", "content": assistant})
            encoded: Any = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            end = self.tokenizer.eos_token or ""
            earlier = "".join(self._prompt(user) + answer + end for user, answer in self.turns)
            encoded = self.tokenizer(earlier + self._prompt(message), return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _prompt(self, message: str) -> str:
        """The recipe's template with the message in it."""
        if self.template is None:
            return message
        (column,) = template_columns(self.template)
        return self.template.format(**{column: message})


class _Pieces(TextStreamer):
    """Hands text on as soon as it cannot change any more."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take a piece."""
        if text:
            self.write(text)


def _one_column(opened: Opened) -> str | None:
    """The recipe's prompt template, where one message can fill it."""
    template = getattr(opened.recipe.task, "prompt", None)
    if template is None or len(template_columns(template)) != 1:
        return None
    (column,) = template_columns(template)
    try:
        template.format(**{column: ""})
    except (LookupError, TypeError, ValueError, AttributeError):  # such as {choices[text][0]}
        return None
    return template


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the model's own generation settings, and the tokenizer's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = own if isinstance(own, list) else [own]
    return sorted({id for id in [*ids, tokenizer.eos_token_id] if id is not None})
