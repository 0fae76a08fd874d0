"""Two processes that talk through gloo, forked so that nothing has to be imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_pair(work: Callable[..., Any], folder: Path, *args: Any, timeout: float = 100) -> list[Any]:
    """Run `work(rank, *args)` in two processes; return what each returned, as far as `torch.save` can hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    port, context = free_port(), multiprocessing.get_context("fork")
    both = [context.Process(target=_run, args=(work, rank, port, folder, args)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout)
    stuck = [one for one in both if one.is_alive()]
    for one in stuck:
        one.kill()
        one.join()
    told = "\n".join(file.read_text() for file in sorted(folder.glob("*.error")))
    assert not stuck and [one.exitcode for one in both] == [0, 0], told or "a process did not end"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _run(work: Callable[..., Any], rank: int, port: int, folder: Path, args: tuple) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo")
        torch.save(work(rank, *args), folder / f"{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise
