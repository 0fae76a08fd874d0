"""Length-normalised likelihood of given options: a cheaper score than generation, one forward pass per batch of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .decoding import eval_mode, example_ids


@dataclass(frozen=True)
class OptionRow:
    """One question.

    Attributes:
        prompt: what the model is given.
        lead: how every response begins before its option ("the correct answer is "); its tokens are not scored.
        options: the texts chosen from.
        responses: lead, option and what may follow it, in the order of `options`.
    """

    prompt: str
    lead: str
    options: list[str]
    responses: list[str]


@dataclass(frozen=True)
class _Sequence:
    """Token ids of prompt and response; those from `start` on are scored."""

    ids: list[int]
    start: int


def option_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[OptionRow],
    *,
    batch_size: int,
    done: Callable[[list[int], list[list[float]]], None],
    indices: list[int] | None = None,
) -> None:
    """Score every option of the wanted rows, longest first, and hand them to `done(indices, scores per row)`.

    An option's score is the mean log-probability (nats, natural logarithm) of its tokens after prompt and lead.

    Args:
        batch_size: options per forward pass; a row's options are never parted, so a pass may hold more.
        indices: which rows; all when not given.
    """
    wanted = list(range(len(rows))) if indices is None else indices
    sequences = {index: [_encode(tokenizer, rows[index], text) for text in rows[index].responses] for index in wanted}
    order = sorted(wanted, key=lambda index: -max(len(one.ids) for one in sequences[index]))
    with eval_mode(model), torch.inference_mode():
        while order:
            chunk = [order.pop(0)]
            size = len(sequences[chunk[0]])
            while order and size + len(sequences[order[0]]) <= batch_size:
                chunk.append(order.pop(0))
                size += len(sequences[chunk[-1]])
            scores = iter(_forward(model, tokenizer, [one for index in chunk for one in sequences[index]]))
            done(chunk, [[next(scores) for _ in sequences[index]] for index in chunk])


def _encode(tokenizer: PreTrainedTokenizerBase, row: OptionRow, response: str) -> _Sequence:
    front, whole = example_ids(tokenizer, row.prompt, response)
    lead = example_ids(tokenizer, row.prompt, row.lead)[1] if row.lead else []
    same = 0
    while same < min(len(lead), len(whole)) and lead[same] == whole[same]:
        same += 1
    if same == len(whole):
        raise UserError(
            f"task.options: {response!r} adds nothing to {row.lead!r} that could be scored; give another text"
        )
    return _Sequence(front + whole, len(front) + same)


def _forward(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: list[_Sequence]) -> list[float]:
    """Mean log-probability of each sequence's scored tokens, in float32.

    Padding is behind: positions count from 0, and a causal model's tokens do not see what follows them. Only the logits
    of the last positions are made, from the first scored token of the batch on.
    """
    device = next(model.parameters()).device
    width = max(len(one.ids) for one in batch)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([one.ids + [pad] * (width - len(one.ids)) for one in batch], device=device)
    mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in batch], device=device)
    first = min(one.start for one in batch) - 1
    keep = {"logits_to_keep": width - first} if _keeps_logits(model) else {}
    # Counted from the end: an adapter may put tokens of its own in front.
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits[:, first - width :]
    logs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, first + 1 :, None]).squeeze(-1)
    return [logs[row, one.start - first - 1 : len(one.ids) - first - 1].mean().item() for row, one in enumerate(batch)]


def _keeps_logits(model: nn.Module) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(base.forward).parameters
