"""A stand-in for CUDA graphs on the CPU: what a step computes is recorded operator by operator, and replayed on the same memory without any Python of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose answer the host needs: a value, or a number of rows.
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Tape(TorchDispatchMode):
    """Records operators, and what tensors from outside held before one of them wrote there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = _tensors((args, kwargs))
        if func._schema.is_mutable:
            for tensor in given:
                if tensor.untyped_storage()._cdata not in self._own:
                    self._before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        output = func(*args, **kwargs)
        found = _tensors(output)
        known = {tensor.untyped_storage()._cdata for tensor in given}
        self._own |= {tensor.untyped_storage()._cdata for tensor in found} - known
        if func._schema.is_mutable or not all(t.untyped_storage()._cdata in known for t in found):  # else a view
            self.calls.append((func, args, kwargs, found))
        return output

    def undo(self) -> None:
        """Capturing runs nothing: give tensors from outside their values back."""
        for tensor, value in self._before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        """Run every operator again into the memory that it wrote."""
        for func, args, kwargs, found in self.calls:
            for tensor, new in zip(found, _tensors(func(*args, **kwargs)), strict=True):
                if new.data_ptr() != tensor.data_ptr():
                    tensor.copy_(new)


class Tapes:
    """As `goat_peft.tasks.captured.CudaGraphs`; counts its captures and replays."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tape = _Tape()
        try:
            with torch.random.fork_rng(devices=[]), tape:
                outcome = step()
        finally:
            with torch.no_grad():
                tape.undo()
        self.captures += 1

        def replay() -> Tensor:
            self.replays += 1
            tape.replay()
            return outcome.clone()

        return replay
