"""Which answers of a run were right, row by row: read from its folder, and as a few bytes of `comparison.json`."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import records
from ..errors import UserError, first_line
from ..training import digests


@dataclass(frozen=True)
class Answers:
    """Right or wrong for each row of one test set, in the data's order; `rows` is a digest of the rows' labels, by which other rows are found out."""

    rows: str
    right: list[bool]


def read_answers(run: Path) -> list[Answers] | None:
    """The answers of a finished run, a list entry for each test set; None where its task does not say which were right.

    Raises `UserError` for a damaged file.
    """
    file = run / records.PREDICTIONS
    files = [file] if file.is_file() else sorted(run.glob(f"{records.TESTS}/*/{records.PREDICTIONS}"))
    found = []
    for place in files:
        try:
            lines = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise UserError(f"output={place}: is damaged ({first_line(error)}); remove its run folder {run}") from None
        # Several samples of one problem are no examples of their own.
        if not lines or any("correct" not in line or line.get("sample") for line in lines):
            return None
        labels = [[line.get(name) for name in ("index", "label", "problem", "name")] for line in lines]
        found.append(Answers(digests.of_value(labels), [bool(line["correct"]) for line in lines]))
    return found or None


def packed(answers: list[Answers] | None) -> list[dict[str, Any]] | None:
    """Answers as JSON, a bit each: in base64 which are `right`, eight to a byte from the highest bit on, and how many (`count`)."""
    if answers is None:
        return None
    return [
        {
            "rows": block.rows,
            "count": len(block.right),
            "right": base64.b64encode(np.packbits(np.array(block.right, dtype=bool)).tobytes()).decode(),
        }
        for block in answers
    ]


def unpacked(blocks: list[dict[str, Any]] | None) -> list[Answers] | None:
    """What `packed` was given; raise `ValueError` for blocks that are damaged."""
    if blocks is None:
        return None
    found = []
    for block in blocks:
        data = np.frombuffer(base64.b64decode(block["right"], validate=True), dtype=np.uint8)
        if len(data) != -(-block["count"] // 8):
            raise ValueError(f"answers: {len(data)} bytes do not hold {block['count']} rows")
        found.append(Answers(block["rows"], np.unpackbits(data, count=block["count"]).astype(bool).tolist()))
    return found
