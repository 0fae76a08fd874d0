"""The Python that programs run in: where it is, what it reads, and whether another user can run it."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
TIME_ZONES = ("/usr/share/zoneinfo", "/etc/localtime")
NOBODY = 65534


@dataclass(frozen=True)
class Interpreter:
    """A Python.

    Attributes:
        executable: its path.
        library: folders of its standard library.
        packages: folders of installed packages that programs may import.
    """

    executable: str
    library: tuple[str, ...]
    packages: tuple[str, ...] = ()

    @staticmethod
    @cache
    def current() -> Interpreter:
        """The Python that runs this, with its packages."""
        paths = sysconfig.get_paths()
        library = {paths["stdlib"], paths["platstdlib"], str(Path(sys.base_prefix) / "lib")}
        return Interpreter(
            sys.executable,
            tuple(sorted(path for path in library if os.path.isdir(path))),
            tuple(dict.fromkeys((paths["purelib"], paths["platlib"]))),
        )

    @property
    def readable(self) -> list[str]:
        """What a program must be able to read: libraries, packages, time zones; nothing of the user's."""
        return [*self.library, *self.packages, *SHARED_LIBRARIES, *TIME_ZONES]

    def command(self) -> list[str]:
        """Start the sandboxed side, without the user's packages and start-up files."""
        return [self.executable, "-s", "-S", "-c", f"import sys; sys.path[0] = {str(INSIDE)!r}; import child"]

    def other_user(self, folder: str) -> int | None:
        """The user to change to when this process is root and that user can read all that it needs; None otherwise."""
        if os.geteuid() != 0:
            return None
        needed = (self.executable, *self.library, *self.packages, str(Path(folder).parent))
        return NOBODY if all(open_to_all(path) for path in needed) else None


@cache
def open_to_all(path: str) -> bool:
    """Whether any user can read `path`: each folder above it lets everybody pass."""
    real = Path(path).resolve()
    try:
        if not real.is_dir() and not real.stat().st_mode & 0o004:
            return False
        folders = [*real.parents, *([real] if real.is_dir() else [])]
        return all(folder.stat().st_mode & 0o001 for folder in folders)
    except OSError:
        return False
