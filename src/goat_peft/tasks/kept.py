"""Rows of an evaluation kept as they are found, so that one that was killed continues where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from . import processes


class Kept:
    """Finished rows of one evaluation, each with its `index` in the data; in memory, or also in a file of JSON lines.

    The file's first line holds `key`, a digest of everything that the rows depend on. A file with another key is not
    used: it is replaced. Every process of a launch writes a file of its own (PATH, PATH.1, ...) and starts from the rows
    of all of them; all must make their `Kept` at the same time.

    Args:
        path: the file; None keeps rows in memory alone.
        key: digest of what the rows depend on.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self.path, self.key = path, key
        self._own: list[dict[str, Any]] = []
        self._earlier: list[dict[str, Any]] = []
        if path is not None:
            self._earlier = processes.broadcast(self._read_all() if processes.is_main() else [])
            self._begin_file()
            processes.wait()

    def missing(self, total: int) -> list[int]:
        """Indices below `total` that no earlier run has finished, the same on every process."""
        done = {row["index"] for row in self._earlier} | {row["index"] for row in self._own}
        return [index for index in range(total) if index not in done]

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep finished rows; once this returns, a kill loses none of them."""
        self._own += rows
        if self.path is not None:
            self._append(rows)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of all processes in the order of their index; every process must call it."""
        found = self._earlier + processes.gather(self._own)
        return sorted(found, key=lambda row: row["index"])

    def __len__(self) -> int:
        return len(self._earlier) + len(self._own)

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Tell whether an evaluation, whichever it was, keeps its rows in `folder`."""
        for path in folder.glob("*.jsonl*"):
            with path.open("rb") as file:
                if file.read(8) == b'{"key": ':
                    return True
        return False

    @property
    def _own_file(self) -> Path:
        assert self.path is not None
        number = processes.rank()
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def _files(self) -> list[Path]:
        assert self.path is not None
        others = self.path.parent.glob(f"{self.path.name}.*")
        return [self.path, *sorted(path for path in others if path.suffix[1:].isdigit())]

    def _read_all(self) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for file in self._files():
            for row in self._read(file):
                found.setdefault(row["index"], row)
        return list(found.values())

    def _read(self, file: Path) -> list[dict[str, Any]]:
        """Rows of one file; none when its key differs. A last line without its end was cut by a kill and is dropped."""
        if not file.is_file():
            return []
        lines = file.read_bytes().split(b"\n")[:-1]
        if not lines or lines[0] != self._header():
            return []
        return [json.loads(line) for line in lines[1:]]

    def _header(self) -> bytes:
        return json.dumps({"key": self.key}).encode()

    def _begin_file(self) -> None:
        """Make this process' file ready for appending: it ends with a whole line, and holds this key's rows alone."""
        file = self._own_file
        whole = 0
        if file.is_file():
            text = file.read_bytes()
            if text.startswith(self._header() + b"\n"):
                whole = text.rfind(b"\n") + 1
        file.parent.mkdir(parents=True, exist_ok=True)
        # Cut, never written anew: a kill at this place must not cost the rows that are there.
        with file.open("r+b" if file.is_file() else "wb") as out:
            out.truncate(whole)
            if whole == 0:
                out.write(self._header() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def _append(self, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._own_file.open("ab") as out:
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
