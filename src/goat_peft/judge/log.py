"""Replies as they come in: a file of JSON lines, only ever appended to, so that nothing paid for is lost."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError


class Log:
    """Replies of earlier runs, and the file that takes new ones."""

    def __init__(self, path: Path, descriptor: int, rows: list[dict[str, Any]]) -> None:
        self.path, self._descriptor, self.rows = path, descriptor, rows

    def add(self, row: dict[str, Any]) -> None:
        """Append a reply; once this returns, a kill or a power cut does not lose it."""
        left = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then continue with the same command"
            ) from None
        self.rows.append(row)


@contextmanager
def open_log(path: Path) -> Iterator[Log]:
    """Open a log for reading and appending, for one process at a time.

    A last line without its end was cut off by a kill: it is dropped from the file.

    Raises:
        UserError: the file cannot be opened, another process has it open, or a whole line is not a reply.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UserError(f"--output={path.parent}: cannot be written ({error.strerror}); give another folder") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path}: another `goat judge` is writing it; wait for it, or give another --output"
            ) from None
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        rows = [_row(line, path, place) for place, line in enumerate(whole.split(b"\n")[:-1], start=1)]
        if len(whole) < len(text):
            os.ftruncate(descriptor, len(whole))
        yield Log(path, descriptor, rows)
    finally:
        os.close(descriptor)


def _row(line: bytes, path: Path, place: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if not {"key", "sample", "rating", "reply", "prompt_tokens", "completion_tokens"} <= row.keys():
            raise ValueError
    except (ValueError, AttributeError):
        raise UserError(f"{path}: line {place} is not a judge's reply; remove it, or give another --output") from None
    return row
