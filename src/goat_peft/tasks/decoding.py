"""Texts out of a causal language model: batched, left-padded, greedy or sampled, the same for every batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)

from ..recipes.schema import Strict

Done = Callable[[list[int], list[str]], None]


def _no_empty_text(stop: list[str]) -> list[str]:
    if "" in stop:
        raise ValueError("an empty text would end every answer at once; leave it out")
    return stop


Stops = Annotated[list[str], AfterValidator(_no_empty_text)]


class Sampling(Strict):
    """Draw tokens instead of taking the likeliest."""

    temperature: PositiveFloat = Field(0.8, description="divides the logits; the paper's code uses 0.8")
    top_p: float = Field(
        0.95, gt=0, le=1, description="smallest set of tokens with this much probability is drawn from"
    )
    seed: NonNegativeInt = Field(0, description="a prompt's draws depend on this and its place in the data alone")


def generate_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    done: Done,
    indices: list[int] | None = None,
    stop: list[str] | tuple[str, ...] = (),
    sampling: Sampling | None = None,
    add_special_tokens: bool = True,
) -> None:
    """Generate a text per prompt, longest prompts first, and hand each batch to `done(indices, texts)`.

    A text ends at the end-of-sequence token or before the first of the `stop` strings; neither is part of it. Prompts
    are tokenised as they are for training, with what the tokenizer adds in front and without an end mark.

    Args:
        indices: which of the prompts; all when not given. A sampled text depends on the seed and its prompt's index, not on
            batch size, order or which other prompts are wanted.
        add_special_tokens: False for prompts that hold their marks already, such as those of a chat template.
    """
    wanted = list(range(len(prompts))) if indices is None else indices
    ids = {index: prompt_ids(tokenizer, prompts[index], add_special_tokens) for index in wanted}
    order = sorted(wanted, key=lambda index: -len(ids[index]))
    with eval_mode(model), torch.inference_mode():
        for chunk in _chunks(order, batch_size, ids if _minds_padding(model) else None):
            draws = None if sampling is None else draw(sampling, chunk, max_new_tokens)
            rows = [ids[index] for index in chunk]
            done(chunk, _generate(model, tokenizer, rows, max_new_tokens, list(stop), sampling, draws))


def _chunks(order: list[int], size: int, apart: dict[int, list[int]] | None) -> list[list[int]]:
    """Part `order` into batches; with `apart`, prompts of different lengths never share one."""
    groups: list[list[int]] = []
    for index in order:
        fits = groups and len(groups[-1]) < size
        if fits and (apart is None or len(apart[groups[-1][0]]) == len(apart[index])):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _minds_padding(model: nn.Module) -> bool:
    """Whether padding changes what the model writes: PEFT's prompt learning puts its tokens in front of the padding."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards each module is in the mode it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a prompt; an end-of-sequence mark that the tokenizer puts behind every text is taken off again."""
    ids = list(tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"])
    if add_special_tokens and ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids.pop()
    return ids


def example_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, the same as when texts are generated, and of the response that follows it, without an end mark.

    The two are tokenised as one text, as a reader would; where that merges the prompt's last token with the response's
    first, the response is tokenised alone, so that the model learns from the very prompt that it will be given.
    """
    front = prompt_ids(tokenizer, prompt)
    whole = prompt_ids(tokenizer, prompt + response)
    if whole[: len(front)] == front:
        return front, whole[len(front) :]
    return front, list(tokenizer(response, add_special_tokens=False)["input_ids"])


@contextmanager
def _own_settings_aside(model: nn.Module) -> Iterator[None]:
    """Inside, what the model's own generation settings ask for (such as a repetition penalty) does not count."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask (rows, longest), int64; padding in front, so that new tokens follow the prompt."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def draw(sampling: Sampling, indices: list[int], steps: int) -> Tensor:
    """One uniform number per prompt and step (prompts, steps), float64, from a generator of each prompt's own."""
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 + index)
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    max_new_tokens: int,
    stop: list[str],
    sampling: Sampling | None,
    draws: Tensor | None,
) -> list[str]:
    device = next(model.parameters()).device
    ends = end_ids(model, tokenizer)
    ids, mask = left_padded(rows, _pad_id(tokenizer), device)
    processors, criteria = LogitsProcessorList(), StoppingCriteriaList()
    if sampling is not None and draws is not None:
        processors.append(_Sampler(sampling, draws.to(device), ids.shape[1]))
    if stop:
        criteria.append(_StopAt(tokenizer, stop, ids.shape[1]))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=_pad_id(tokenizer),
        eos_token_id=ends,
    )
    with _own_settings_aside(model):
        written = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors,
            stopping_criteria=criteria,
        )
    new = [_until(row, ends) for row in written[:, ids.shape[1] :].tolist()]
    return [cut(text, stop) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _until(row: list[int], ends: list[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]


def cut(text: str, stop: list[str]) -> str:
    """The text up to the first of the stop strings."""
    ends = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    return text[: min(ends)] if ends else text


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: the tokenizer's, which training teaches, and those that the model itself names."""
    own: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({token for token in (tokenizer.eos_token_id, *own) if token is not None})


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


class _Sampler(LogitsProcessor):
    """Leaves one token possible per row: the one whose share of the cumulated probability holds the row's number."""

    def __init__(self, sampling: Sampling, draws: Tensor, start: int) -> None:
        self.temperature, self.draws, self.start = sampling.temperature, draws, start
        self.top_p = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Take scores (rows, vocabulary) and return them with all but the drawn token at -inf."""
        scores = scores.float() / self.temperature
        if self.top_p is not None:
            scores = self.top_p(input_ids, scores)
        upto = scores.double().softmax(-1).cumsum(-1)
        number = self.draws[:, input_ids.shape[1] - self.start, None] * upto[:, -1:]
        chosen = (upto <= number).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class _StopAt(StoppingCriteria):
    """Ends a row once its new text holds a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: list[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        # A token is a byte at least; one more on each side for a character or a space that the cut takes apart.
        self.tail = max(len(mark.encode()) for mark in stop) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return per row (rows,), bool, whether it is done."""
        new = input_ids[:, self.start :][:, -self.tail :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return torch.tensor([any(mark in text for mark in self.stop) for text in texts], device=input_ids.device)
