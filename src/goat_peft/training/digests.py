"""Digests of what a figure depends on: they decide whether rows that an earlier evaluation scored may be used again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers.utils.hub import cached_file, extract_commit_hash

from ..recipes import ModelSettings, TaskOptions
from .loading import locate

BLOCK = 1 << 22


def of_value(value: Any) -> str:
    """Digest of plain data."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def of_rows(rows: Dataset) -> str:
    """Digest of the rows' values and columns, wherever they came from; of files that rows name, also sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for table in rows.with_format("arrow").iter(batch_size=1000):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
        for column in table.columns:
            for file in _files(column):
                digest.update(f"{file.st_size} {file.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _files(column: pa.ChunkedArray) -> list[os.stat_result]:
    """The files that stand for a column's pictures or sounds where it holds no bytes of them."""
    kind = column.type
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        return []
    named = pc.struct_field(column, "path").filter(pc.struct_field(column, "bytes").is_null()).to_pylist()
    # What is no local file (the library reads addresses too) is told apart by its path alone.
    return [os.stat(path) for path in named if path is not None and os.path.isfile(path)]


def of_task(options: TaskOptions) -> str:
    """Digest of a task's options without its data's whereabouts, which the digest of the rows stands for."""
    return of_value({"options": options.model_dump(mode="json", exclude={"about", "data", "name"})})


def of_base(settings: ModelSettings) -> dict[str, Any]:
    """What tells a base model from another: name, settings and commit; of a local one its files' names, sizes and times."""
    place = Path(locate(settings))
    files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else []
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    commit = None if place.is_dir() else _commit(settings)
    return {"settings": settings.model_dump(mode="json"), "files": stats, "commit": commit}


def _commit(settings: ModelSettings) -> str | None:
    """The commit that a hub model's name and revision stand for now; None where that cannot be found out."""
    try:
        return extract_commit_hash(cached_file(settings.name, "config.json", revision=settings.revision), None)
    except (OSError, ValueError):  # loading the model says what is wrong
        return None


def of_adapter(folder: Path) -> str:
    """Digest of a saved adapter's settings and weights."""
    digest = hashlib.blake2b(digest_size=16)
    for path in [folder / "adapter_config.json", *_weights(folder)]:
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    """Files alone: reading a pipe of such a name would wait for ever."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def of_saved(run: Path) -> Any:
    """What tells a run's saved weights from others: an adapter's digest, or a whole model's files' sizes and times."""
    if (run / "model").is_dir():
        stats = [(path.name, path.stat()) for path in sorted((run / "model").glob("*.safetensors"))]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return of_adapter(run / "adapter")
