"""One trial in a process of its own: reads a recipe from standard input, runs it, writes its folder.

Ends when the process that started it is gone, so that a killed comparison leaves no run behind that writes into its folders.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import yaml

from ..recipes import check
from ..training import Interrupted
from .trials import execute


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Run the recipe given on standard input."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    try:
        execute(check(yaml.safe_load(sys.stdin.read())))
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()
