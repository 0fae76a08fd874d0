"""Trials in a process of their own: reads recipes from standard input, a JSON object a line; runs each, and answers with `ENDED` or `CROWDED` when it has.

Ends when the process that started it is gone, so that a killed comparison leaves no run behind that writes into its folders.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time

import torch

from ..recipes import check
from ..training import Interrupted
from .pool import CROWDED, ENDED
from .trials import execute


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run(line: str) -> bytes:
    """Run the recipe and answer how it ended."""
    return CROWDED if execute(check(json.loads(line))) else ENDED


def main() -> None:
    """Run recipes until there are no more."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    # What runs print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    try:
        for line in sys.stdin:
            answer = run(line)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # other processes share the device
            answers.write(answer)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()
