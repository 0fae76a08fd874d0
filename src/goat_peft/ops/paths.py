"""Which path computes the operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Path = Literal["torch", "triton"]
_forced: Path | None = None

try:
    import triton  # noqa: F401

    HAS_TRITON = True
except ImportError:  # no build of Triton for this platform
    HAS_TRITON = False


@contextmanager
def use_path(path: Path | None) -> Iterator[None]:
    """Force the path inside the context; None chooses by device again. For tests and measurements.

    Raises `ValueError` for a path that does not exist or cannot run here.
    """
    global _forced
    if path not in ("torch", "triton", None):
        raise ValueError(f"path={path!r}: must be 'torch', 'triton' or None.")
    if path == "triton" and not HAS_TRITON:
        raise ValueError("path='triton': Triton is not installed; use path='torch'.")
    before, _forced = _forced, path
    try:
        yield
    finally:
        _forced = before


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where x lies; on the meta device, which knows none, it is not."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def path_for(x: Tensor) -> Path:
    """Triton for CUDA tensors of at most 32 bits, torch for everything else; needs no look at the data."""
    if _forced is not None:
        return _forced
    supported = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return "triton" if HAS_TRITON and x.is_cuda and supported else "torch"
