"""What lies outside a program's folder, and a look at what a program left behind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

SENTINEL = "sentinel-7f3a"


@dataclass(frozen=True)
class Outside:
    """A user's folder beside the programs' folders.

    Attributes:
        folder: holds `sentinel`, a private file, and nothing else.
        programs: programs' folders are made in it.
    """

    folder: Path
    programs: Path

    @property
    def sentinel(self) -> Path:
        """A file that no program may read or change."""
        return self.folder / "sentinel"

    def assert_untouched(self) -> None:
        """Nothing was written or removed, and no folder or process of a program is left."""
        assert [path.name for path in self.folder.iterdir()] == ["sentinel"]
        assert self.sentinel.read_text() == SENTINEL
        assert self.sentinel.stat().st_mode & 0o777 == 0o600
        assert list(self.programs.iterdir()) == []
        for _ in range(100):  # one that was killed takes a moment to be gone
            if not self.processes():
                break
            time.sleep(0.02)
        assert self.processes() == []

    def processes(self) -> list[int]:
        """Processes that were started with a program's folder as home, wherever they hang now."""
        mark, found = str(self.programs).encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found
