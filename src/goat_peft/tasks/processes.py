"""Work shared between the processes of one launch (`accelerate launch`, `torchrun`); one process alone does all of it."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

Item = TypeVar("Item")


def _state() -> PartialState:
    # Without an accelerator it has to be told so, or it sees no launch.
    return PartialState(cpu=not torch.accelerator.is_available())


def count() -> int:
    """How many processes there are."""
    return _state().num_processes


def rank() -> int:
    """This process' number, from 0."""
    return _state().process_index


def is_main() -> bool:
    """Whether this process writes what all of them found."""
    return _state().is_main_process


def wait() -> None:
    """Return once every process has come here."""
    _state().wait_for_everyone()


def share(items: list[Item]) -> list[Item]:
    """Return this process' part of `items`: every n-th, so that parts are of like size and like mix."""
    return items[rank() :: count()]


def gather(rows: list[Item]) -> list[Item]:
    """Return the rows of all processes, one process after the other, on each of them; all must call it."""
    return gather_object(rows) if count() > 1 else rows


def broadcast(item: Item) -> Item:
    """Return the main process' `item` on every process; all must call it."""
    return broadcast_object_list([item])[0] if count() > 1 else item


def close() -> None:
    """End the talk between the processes of a launch, before this one exits."""
    if count() > 1:
        _state().destroy_process_group()
