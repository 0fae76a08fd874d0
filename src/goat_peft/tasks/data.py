"""Rows of the three splits: read, or cut from the training rows; and templates over their columns."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from datasets import Dataset

from ..errors import UserError, first_line
from ..recipes.schema import Cut, Data
from .sources import load_source, require_columns, resolve_path, short_enough

__all__ = [
    "Splits",
    "cut_rows",
    "fill",
    "load_source",
    "load_splits",
    "require_columns",
    "resolve_path",
    "short_enough",
    "template_columns",
]


@dataclass(frozen=True)
class Splits:
    """The rows of a task; a split that the recipe does not define, or that nobody asked for, is None."""

    train: Dataset | None
    validation: Dataset | None
    test: Dataset | None

    def named(self, name: str) -> Dataset:
        """Return a split by name; raise `UserError` when the recipe defines none."""
        rows = getattr(self, name)
        if rows is None:
            raise UserError(f"evaluation.split={name}: the recipe has no such split; give task.data.{name} or a cut")
        return rows


def load_splits(data: Data, only: str | None = None, field: str = "task.data") -> Splits:
    """Read the splits of a task and cut those that have no source of their own from the training rows.

    Args:
        only: the one split that is wanted; no other source is read for it.
        field: where the data stands in the recipe, for messages.
    """

    def wanted(name: str) -> bool:
        return only in (None, name)

    found: dict[str, Dataset] = {}
    for name in ("validation", "test"):
        source = getattr(data, name)
        if source is not None and wanted(name):
            found[name] = load_source(source, f"{field}.{name}", data.folder)
    cuts = data.cut is not None and (wanted("train") or getattr(data.cut, str(only), None) is not None)
    if data.train is not None and (cuts or wanted("train")):
        rows = load_source(data.train, f"{field}.train", data.folder)
        found |= {"train": rows} if data.cut is None else cut_rows(rows, data.cut, f"{field}.cut")
    return Splits(**{name: found.get(name) if wanted(name) else None for name in ("train", "validation", "test")})


def cut_rows(rows: Dataset, cut: Cut, field: str = "task.data.cut") -> dict[str, Dataset]:
    """Cut `rows` into splits of the wanted sizes; with `group_by`, no value of that column is in two splits.

    Test is cut before validation and both before train, so that the test rows stay the same whatever the other sizes.
    """
    if cut.group_by is None:
        groups = [[index] for index in range(len(rows))]
    else:
        require_columns(rows, [cut.group_by], f"{field}.group_by")
        by_value: dict[object, list[int]] = {}
        for index, value in enumerate(rows[cut.group_by]):
            by_value.setdefault(value, []).append(index)
        groups = list(by_value.values())
    random.Random(cut.seed).shuffle(groups)
    splits: dict[str, Dataset] = {}
    for name in ("test", "validation", "train"):
        wanted = _size(getattr(cut, name), cut.at_most, len(rows))
        if wanted is None and name != "train":
            continue
        taken: list[int] = []
        while groups and (wanted is None or len(taken) < wanted):
            taken += groups.pop()
        if not taken or (wanted is not None and len(taken) < wanted):
            raise UserError(
                f"{field}.{name}={getattr(cut, name)}: only {len(taken)} of {len(rows)} rows are left for it; "
                "ask for fewer"
            )
        splits[name] = rows.select(sorted(taken[:wanted]))
    return splits


def _size(asked: float | None, at_most: int | None, total: int) -> int | None:
    """Turn a share of all rows into a number of rows, one at least."""
    if asked is None or asked >= 1:
        return None if asked is None else int(asked)
    rows = max(1, int(asked * total))
    return rows if at_most is None else min(rows, at_most)


def template_columns(template: str) -> list[str]:
    """Columns that a format string names in braces, each once; none when it is a plain column name."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    return list(dict.fromkeys(re.split(r"[.\[]", name)[0] for name in names))


class _Filled(Formatter):
    """Fills templates as `str.format` does, but with values that are there."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The value of a column; an unnamed `{}` has none."""
        return kwargs[str(key)]

    def format_field(self, value: Any, format_spec: str) -> str:
        """The value as text."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise ValueError("a value is missing; leave the row out of the data")
        return super().format_field(value, format_spec)


_FILLED = _Filled()


def fill(template: str, rows: Dataset, field: str) -> list[str]:
    """Fill a format string such as `{question} {choices[text][0]}` with each row; `field` names it in errors."""
    names = template_columns(template)
    require_columns(rows, names, field)
    texts = []
    for index, values in enumerate(zip(*(rows[name] for name in names), strict=True)):
        try:
            texts.append(_FILLED.vformat(template, (), dict(zip(names, values, strict=True))))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{field}={template!r}: row {index} cannot fill it ({first_line(error)})") from None
    return texts
