"""What is fed through the model for the page: rows of the run's split, or texts of one's own, with their tokens as a reader sees them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .. import records
from ..errors import UserError
from ..tasks.image_classification import model_inputs
from .opening import Opened

START = 70  # characters of a text in a list
NOT_DECODED = "\ufffd"  # what a tokenizer makes of bytes that are only part of a character


@dataclass(frozen=True)
class Grid:
    """The patches of an image, row by row after `first` other tokens."""

    rows: int
    columns: int
    first: int


@dataclass(frozen=True)
class Sample:
    """One text or image.

    `start`: how the text begins, for a list. `note`: what is known of it. `inputs`: a batch of one, for the model. `tokens`: what a reader sees for each token. `kinds`: for each token "" (text), "special" or "response".
    `cut`: tokens left out at the end. `picture`: an image as a data URI, as the model sees it; its tokens are known once the model has read it.
    """

    title: str
    start: str
    note: str
    inputs: dict[str, Tensor]
    tokens: list[str]
    kinds: list[str]
    cut: int = 0
    picture: str | None = None
    grid: Grid | None = None


def own_text(opened: Opened, text: str, number: int, limit: int) -> Sample:
    """A text of the user's, as it is; raises `UserError` for a model of images."""
    if not isinstance(opened.processor, PreTrainedTokenizerBase):
        raise UserError(f"--text={text!r}: this run's model reads images; leave --text out")
    ids = opened.processor(text)["input_ids"]
    if not ids:
        raise UserError(f"--text={text!r}: is no token for this model; write some words")
    most = min(limit, opened.length or limit, opened.processor.model_max_length)
    return _text_sample(opened.processor, ids, [0] * len(ids), most, f"Own text {number}", "")


def split_samples(opened: Opened, count: int, limit: int, with_predictions: bool) -> list[Sample]:
    """The first `count` rows of the run's evaluation split; `with_predictions` notes what the run predicted for them.

    Where a task's evaluation rows are not in the form it trains on, as problems without an answer, the first rows of another split are taken.
    """
    if count == 0:
        return []
    scored = opened.recipe.evaluation.split
    refused = UserError(f"run={opened.path}: its task has no rows to show; give --text, or set task.data")
    for split in dict.fromkeys((scored, "validation", "train")):
        try:
            rows = opened.task.load(split).named(split)
            rows = rows.select(range(min(count, len(rows))))
            prepared = opened.task.prepare(rows, opened.processor, "evaluation")
        except UserError as error:
            refused = refused if split != scored else error
            continue
        notes = _predictions(opened, len(rows)) if with_predictions and split == scored else [""] * len(rows)
        found = [prepared[index] for index in range(len(rows))]
        return [_sample(opened, row, f"{split} {i + 1}", notes[i], limit) for i, row in enumerate(found)]
    raise refused


def _sample(opened: Opened, row: dict[str, Any], title: str, note: str, limit: int) -> Sample:
    """A sample of one prepared row."""
    if "pixel_values" in row:
        return _image_sample(opened, row["pixel_values"], title, note)
    ids = list(row["input_ids"])
    learned = row.get("completion_mask") or [0] * len(ids)
    return _text_sample(opened.processor, ids, learned, limit, title, note)


def _text_sample(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], learned: list[int], limit: int, title: str, note: str
) -> Sample:
    """The tokens `ids`, at most `limit`; `learned` is 1 where the token is the model's to write."""
    special = set(tokenizer.all_special_ids)
    kept = ids[:limit]
    kinds = ["special" if id in special else "response" if learned[i] else "" for i, id in enumerate(kept)]
    tokens = [_token_text(tokenizer, id) for id in kept]
    start = " ".join(str(tokenizer.decode(kept, skip_special_tokens=True)).split())[:START]
    return Sample(title, start, note, {"input_ids": torch.tensor([kept])}, tokens, kinds, cut=len(ids) - len(kept))


def _token_text(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    text = str(tokenizer.decode([id]))
    return text if text.strip() and NOT_DECODED not in text else _raw_text(tokenizer, id, text)


def _raw_text(tokenizer: PreTrainedTokenizerBase, id: int, text: str) -> str:
    """White space is kept as it is; part of a character becomes the tokenizer's own name for it."""
    return text if text and not text.strip() else str(tokenizer.convert_ids_to_tokens(id))


def _image_sample(opened: Opened, pixels: Tensor, title: str, note: str) -> Sample:
    """An image (height, width, 3) of bytes, as the model sees it before normalisation."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=85)
    picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    inputs = model_inputs(opened.model, {"pixel_values": pixels[None]}, opened.processor)
    return Sample(title, "", note, inputs, [], [], picture=picture)


def _predictions(opened: Opened, count: int) -> list[str]:
    """For each of the first `count` rows: its label, and what the run predicted."""
    path = opened.path / records.PREDICTIONS
    notes = [""] * count
    if not path.is_file():
        return notes
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        index = row.get("index", count)
        if index < count and "correct" in row:
            mark = "right" if row["correct"] else "wrong"
            notes[index] = f"label {row.get('label')}, predicted {row.get('prediction')}: {mark}"
    return notes
