"""A sandboxed program's folder and threads, seen from outside."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .limits import Limits


def usage(folder: str, limits: Limits) -> tuple[int, int]:
    """Bytes on disk and entries beneath `folder`, links not followed; counting stops once a limit is passed."""
    size = entries = 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    if size > limits.folder_size or entries > limits.folder_entries:
                        return size, entries
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return size, limits.folder_entries + 1  # nested too deep to be named, or closed to readers: a hiding place
    return size, entries


def thread_count(process: int) -> int:
    """Threads of a process; 0 where the system does not tell."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The name, in brackets, may hold spaces; the 18th field behind it is the number of threads.
    return int(stat.rpartition(")")[2].split()[17])


def remove(folder: str) -> None:
    """Remove the folder and all in it, however deep it goes and whatever the program closed to readers.

    What lies in a folder inside is moved up to `folder` until no folder is left, so that no path grows long. A program that
    was not contained may have removed its folder, or put a link in its place: the link goes, not what it leads to.
    """
    if os.path.islink(folder):
        os.unlink(folder)
    while os.path.isdir(folder):
        inner = []
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.path)
                else:
                    os.unlink(entry.path)
        if not inner:
            os.rmdir(folder)
        for path in inner:
            os.chmod(path, 0o700)
            for name in os.listdir(path):
                os.rename(os.path.join(path, name), os.path.join(folder, secrets.token_hex(16)))
            os.rmdir(path)
