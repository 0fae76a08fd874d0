"""How many bytes of tensors live while code runs, and the most that ever did."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUND = 512  # bytes: CUDA's caching allocator hands out multiples of this


class LiveMemory(TorchDispatchMode):
    """Inside this context, counts the storages that operators make from when they are made to when the last tensor on them goes.

    Works on real tensors, and on fake ones, whose shapes stand for values; sizes are rounded up as CUDA's allocator does. What an operator allocates
    and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return output

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on, if it is not counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // ROUND) * ROUND
        self._known.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def leave_out(self, tensors: list[Tensor]) -> None:
        """Never count these tensors' storages: weights, which are there before."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage()._cdata)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.current

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size


def storage_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the distinct storages of tensors, rounded as the allocator does."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(-(-size // ROUND) * ROUND for size in sizes.values())


def bytes_of(dtype: torch.dtype) -> int:
    """Bytes of one value."""
    return torch.empty((), dtype=dtype).element_size()
