"""Rows of the three splits: read from the hub, a local file or an installed package, then cut."""

from __future__ import annotations

import importlib.util
import random
import re
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from datasets import Dataset, load_dataset

from ..errors import UserError, closest, first_line
from ..recipes.schema import Cut, Data, Source

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED = {".gz", ".bz2", ".xz"}


@dataclass(frozen=True)
class Splits:
    """The rows of a task; a split that the recipe does not define is None."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None

    def named(self, name: str) -> Dataset:
        """Return a split by name; raise `UserError` when the recipe defines none."""
        rows = getattr(self, name)
        if rows is None:
            raise UserError(f"evaluation.split={name}: the recipe has no such split; give task.data.{name} or a cut")
        return rows


def resolve_path(path: str, field: str) -> Path:
    """Turn `package:NAME/inner/path` or a local path into an existing path.

    The package is found, never imported: none of its code runs.
    """
    if not path.startswith("package:"):
        found = Path(path).expanduser()
    else:
        package, _, inner = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{field}={path}: package {package} is not installed; install it with pip, --no-deps is enough"
            )
        found = Path(next(iter(spec.submodule_search_locations))) / inner
    if not found.exists():
        raise UserError(
            f"{field}={path}: no such file or folder; check the path (relative paths start at {Path.cwd()})"
        )
    return found


def load_source(source: Source, field: str) -> Dataset:
    """Read one source's rows, in the file's order, filtered and limited as it says."""
    rows = _read(source, field)
    for column, values in source.keep.items():
        require_columns(rows, [column], f"{field}.keep")
        wanted = set(values)
        rows = rows.select([i for i, value in enumerate(rows[column]) if value in wanted])
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise UserError(f"{field}: no rows are left; check the file and `keep`")
    return rows


def load_splits(data: Data) -> Splits:
    """Read all splits of a recipe and cut those that have no source of their own from the training rows."""
    train = load_source(data.train, "task.data.train")
    given = {
        name: load_source(source, f"task.data.{name}")
        for name, source in (("validation", data.validation), ("test", data.test))
        if source is not None
    }
    cuts: dict[str, Dataset] = {"train": train}
    if data.cut is not None:
        cuts = cut_rows(train, data.cut)
    return Splits(
        train=cuts["train"],
        validation=given.get("validation", cuts.get("validation")),
        test=given.get("test", cuts.get("test")),
    )


def cut_rows(rows: Dataset, cut: Cut) -> dict[str, Dataset]:
    """Cut `rows` into splits of the wanted sizes; with `group_by`, no value of that column is in two splits.

    Test is cut before validation and both before train, so that the test rows stay the same whatever the other sizes.
    """
    if cut.group_by is None:
        groups = [[index] for index in range(len(rows))]
    else:
        require_columns(rows, [cut.group_by], "task.data.cut.group_by")
        by_value: dict[object, list[int]] = {}
        for index, value in enumerate(rows[cut.group_by]):
            by_value.setdefault(value, []).append(index)
        groups = list(by_value.values())
    random.Random(cut.seed).shuffle(groups)
    splits: dict[str, Dataset] = {}
    for name in ("test", "validation", "train"):
        wanted = getattr(cut, name)
        if wanted is None and name != "train":
            continue
        taken: list[int] = []
        while groups and (wanted is None or len(taken) < wanted):
            taken += groups.pop()
        if not taken or (wanted is not None and len(taken) < wanted):
            raise UserError(
                f"task.data.cut.{name}={wanted}: only {len(taken)} of {len(rows)} rows are left for it; ask for fewer"
            )
        splits[name] = rows.select(sorted(taken[:wanted]))
    return splits


def require_columns(rows: Dataset, columns: list[str], field: str) -> None:
    """Raise `UserError` when a column that a recipe names is not there."""
    for column in columns:
        if column not in rows.column_names:
            raise UserError(f"{field}={column}: the data has no such column; {closest(column, rows.column_names)}")


def template_columns(template: str) -> list[str]:
    """Columns that a format string names in braces, each once; none when it is a plain column name."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    return list(dict.fromkeys(re.split(r"[.\[]", name)[0] for name in names))


def fill(template: str, rows: Dataset, field: str) -> list[str]:
    """Fill a format string such as `{question} {choices[text][0]}` with each row; `field` names it in errors."""
    names = template_columns(template)
    require_columns(rows, names, field)
    texts = []
    for index, values in enumerate(zip(*(rows[name] for name in names), strict=True)):
        try:
            texts.append(template.format(**dict(zip(names, values, strict=True))))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{field}={template!r}: row {index} cannot fill it ({first_line(error)})") from None
    return texts


def _read(source: Source, field: str) -> Dataset:
    if source.dataset is not None:
        try:
            return load_dataset(source.dataset, source.config, split=source.split, revision=source.revision)
        except Exception as error:
            raise UserError(
                f"{field}.dataset={source.dataset}: cannot be loaded ({first_line(error)}); check name, config, split "
                f"and the network, or set {field}={{path: FILE}}"
            ) from error
    path = resolve_path(str(source.path), f"{field}.path")
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    reader = READERS.get(suffixes[-1]) if suffixes else None
    if reader is None:
        raise UserError(f"{field}.path={source.path}: not a known kind of file; use {', '.join(READERS)}")
    try:
        return load_dataset(reader, data_files=str(path), split="train")
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(f"{field}.path={source.path}: cannot be read as {reader} ({first_line(cause)})") from error
