"""Rows of one source: from the hub, a web address, local files, a folder of images or an installed package; then filtered."""

from __future__ import annotations

import glob
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_dataset

from ..errors import UserError, closest, first_line
from ..recipes.schema import Source

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED = {".gz", ".bz2", ".xz"}
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# Examples measured at a time while rows that are too long are left out.
CHUNK = 1000


def resolve_path(path: str, field: str) -> Path:
    """Turn `package:NAME/inner/path` or a local path into an existing path.

    The package is found, never imported: none of its code runs. Nothing outside of it is reached by its name.
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
        if leaves(inner):
            raise UserError(f"{field}={path}: leads out of package {package}; give the file's own path instead")
        found = Path(next(iter(spec.submodule_search_locations))) / inner
    if not found.exists():
        raise UserError(
            f"{field}={path}: no such file or folder; check the path (relative paths start at {Path.cwd()})"
        )
    return found


def leaves(inner: str) -> bool:
    """Whether a path that belongs inside a folder leads out of it."""
    return Path(inner).is_absolute() or ".." in Path(inner).parts


def load_source(source: Source, field: str, folder: str | None = None) -> Dataset:
    """Read one source's rows, in the file's order, counted, filtered and limited as it says.

    With `max_tokens` the limit is not applied here: which rows are short enough is known once there is a tokenizer
    (`short_enough`).

    Args:
        folder: local folder read in place of the hub.
    """
    rows = _read(source, field, folder)
    if source.rows is not None and len(rows) != source.rows:
        raise UserError(
            f"{field}.rows={source.rows}: that many rows are expected, and the data has {len(rows)}; check where it "
            f"comes from, or take it as it is with rows: null ({field}.rows=null)"
        )
    rows = _filtered(_renamed(rows, source, field), source, field)
    if source.limit is not None and source.max_tokens is None:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise UserError(f"{field}: no rows are left; check the file and the filters (keep, containing)")
    return rows


def short_enough(rows: Dataset, source: Source, lengths: Callable[[Dataset], list[int]], field: str) -> Dataset:
    """Return the rows whose example has fewer than `max_tokens` tokens, up to the source's limit; all without `max_tokens`.

    Args:
        lengths: gives the number of tokens of each row's whole example (prompt, response and end).
    """
    if source.max_tokens is None:
        return rows
    kept: list[int] = []
    wanted = source.limit or len(rows)
    for start in range(0, len(rows), CHUNK):
        chunk = range(start, min(start + CHUNK, len(rows)))
        measured = zip(chunk, lengths(rows.select(chunk)), strict=True)
        kept += [index for index, length in measured if length < source.max_tokens]
        if len(kept) >= wanted:
            break
    if not kept:
        raise UserError(f"{field}.max_tokens={source.max_tokens}: every row is longer; allow more")
    return rows.select(kept[:wanted])


def require_columns(rows: Dataset, columns: list[str], field: str) -> None:
    """Raise `UserError` when a column that a recipe names is not there."""
    for column in columns:
        if column not in rows.column_names:
            raise UserError(f"{field}={column}: the data has no such column; {closest(column, rows.column_names)}")


def _renamed(rows: Dataset, source: Source, field: str) -> Dataset:
    """Give columns the names that the task knows, where they have others."""
    for old, new in source.columns.items():
        if old not in rows.column_names and new in rows.column_names:
            continue
        require_columns(rows, [old], f"{field}.columns")
        if new in rows.column_names:
            raise UserError(f"{field}.columns.{old}={new}: the data has both columns; leave {old} out")
        rows = rows.rename_column(old, new)
    return rows


def _filtered(rows: Dataset, source: Source, field: str) -> Dataset:
    """Apply `keep`, `containing`, `not_containing` and `cut_after`, in this order."""
    for column, values in source.keep.items():
        require_columns(rows, [column], f"{field}.keep")
        wanted = set(values)
        rows = rows.select([index for index, value in enumerate(rows[column]) if value in wanted])
    for column, texts in source.containing.items():
        found = _texts(rows, column, f"{field}.containing")
        rows = rows.select([index for index, value in enumerate(found) if any(text in value for text in texts)])
    for column, texts in source.not_containing.items():
        found = [value.casefold() for value in _texts(rows, column, f"{field}.not_containing")]
        folded = [text.casefold() for text in texts]
        rows = rows.select([index for index, value in enumerate(found) if not any(text in value for text in folded)])
    for column, pattern in source.cut_after.items():
        found = _texts(rows, column, f"{field}.cut_after")
        matches = [re.search(pattern, value, re.DOTALL) for value in found]
        cut = [value[: match.end()] if match else value for match, value in zip(matches, found, strict=True)]
        rows = rows.remove_columns(column).add_column(column, cut)
    return rows


def _texts(rows: Dataset, column: str, field: str) -> list[str]:
    require_columns(rows, [column], field)
    values = list(rows[column])
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"{field}.{column}: row {index} holds {value!r}, which is no text; name another column")
    return values


def _read(source: Source, field: str, folder: str | None) -> Dataset:
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    if folder is not None and all(_is_remote(path) for path in paths):
        name = source.file or source.split
        return _read_files(_in_folder(folder, name, field), f"{field}.file={name}")
    if source.dataset is None:
        return _joined([_read_path(path, f"{field}.path") for path in paths], f"{field}.path={source.path}")
    try:
        return load_dataset(source.dataset, source.config, split=source.split, revision=source.revision)
    except Exception as error:
        raise UserError(
            f"{field}.dataset={source.dataset}: cannot be loaded ({first_line(error)}); check name, config, split "
            f"and the network, or set {field}={{path: FILE}}"
        ) from error


def _is_remote(path: str) -> bool:
    return path.startswith("https://")


def _read_path(path: str, field: str) -> Dataset:
    if _is_remote(path):
        return _load(path, Path(path), f"{field}={path}")
    found = resolve_path(path, field)
    return _read_files(_contents(found) if found.is_dir() else [found], f"{field}={path}")


def _in_folder(folder: str, split: str, field: str) -> list[Path]:
    """Files of one split in a local folder: `SPLIT.*`, `SPLIT-*.parquet` as the hub's exports have it, or `SPLIT/`."""
    if leaves(split):
        raise UserError(f"{field}.file={split}: leads out of {folder}; give a name in that folder, or another folder")
    place = Path(folder).expanduser()
    if not place.is_dir():
        # A file system may tell capitals apart: ARC-Easy is the folder of the test arc-easy.
        beside = place.parent.iterdir() if place.parent.is_dir() else ()
        place = next((other for other in beside if other.name.casefold() == place.name.casefold()), place)
    if not place.is_dir():
        where = f"{field.rpartition('.')[0]}.folder={folder}"
        raise UserError(
            f"{where}: no such folder; check the path (relative paths start at {Path.cwd()}), or leave it out"
        )
    if (place / split).is_dir():
        return _contents(place / split)
    named = [path for path in sorted(place.iterdir()) if path.is_file() and _reader(path)]
    files = [
        path for path in named if path.name.split(".")[0] == split or re.match(rf"{re.escape(split)}-\d", path.name)
    ]
    if not files:
        raise UserError(
            f"{field}.file={split}: {place} holds no {split}.jsonl, .json, .csv or .parquet (.gz, .bz2, .xz too) and "
            f"no folder {split}; it holds {', '.join(sorted(p.name for p in place.iterdir())[:8]) or 'nothing'}"
        )
    return files


def _contents(folder: Path) -> list[Path]:
    """Return the data files of a folder, or the folder itself when it holds a folder of pictures per class."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _reader(path)]
    return files or [folder]


def _read_files(files: list[Path], field: str) -> Dataset:
    if files[0].is_dir():
        classes = [place for place in files[0].iterdir() if place.is_dir()]
        if not any(path.suffix.lower() in PICTURES for place in classes for path in place.iterdir()):
            raise UserError(f"{field}: {files[0]} holds neither data files nor a folder of pictures per class")
        return load_dataset("imagefolder", data_dir=str(files[0]), split="train", drop_labels=False)
    return _joined([_load(str(path), path, field) for path in files], field)


def _joined(parts: list[Dataset], field: str) -> Dataset:
    """Put files one after the other; the library would fill columns that some of them lack with nothing."""
    for part in parts[1:]:
        if set(part.column_names) != set(parts[0].column_names):
            raise UserError(
                f"{field}: the files' columns differ ({', '.join(sorted(parts[0].column_names))} against "
                f"{', '.join(sorted(part.column_names))}); give files alike"
            )
    try:
        return concatenate_datasets(parts)
    except ValueError as error:
        raise UserError(f"{field}: the files' columns differ ({first_line(error)}); give files alike") from error


def _load(place: str, name: Path, field: str) -> Dataset:
    reader = _reader(name)
    if reader is None:
        raise UserError(f"{field}: not a known kind of file; use {', '.join(READERS)}")
    remote = _is_remote(place)
    try:
        if reader == "csv" and not remote:
            _check_header(place, field)
        # The library takes a name for a pattern: `a[1].csv` would read `a1.csv`.
        rows = load_dataset(reader, data_files=place if remote else glob.escape(place), split="train")
        _check_table(rows, reader, field)
        return rows
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
            raise UserError(f"{field}: holds no rows, a header at most; check the file") from error
        raise UserError(f"{field}: cannot be read as {reader} ({first_line(cause)}); check the file") from error


def _check_header(place: str, field: str) -> None:
    """Raise `UserError` for a column that is named twice: the library would give the second one another name."""
    named = pd.read_csv(place, header=None, nrows=1, dtype=str, encoding="utf-8-sig").iloc[0].dropna().tolist()
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"{field}: column {name} is there {named.count(name)} times; rename or remove all but one")


def _check_table(rows: Dataset, reader: str, field: str) -> None:
    """Raise `UserError` for cells that would be read wrongly, or break later on: shifted ones, and texts that are not UTF-8."""
    if reader == "csv" and "__index_level_0__" in rows.column_names:
        raise UserError(f"{field}: its rows have more cells than its header has names; give each column a name")
    for name, column in zip(rows.column_names, rows.data.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                raise UserError(
                    f"{field}: column {name} holds text that is not UTF-8; save the file as UTF-8"
                ) from None


def _reader(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    return READERS.get(suffixes[-1]) if suffixes else None
