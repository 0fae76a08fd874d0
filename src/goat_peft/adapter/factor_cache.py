"""Initial factors on disk, so that a second start on the same weights needs no SVD.

A file is found by the weight itself (a hash over all its bits) and by every setting that the factors depend on; so a changed weight or setting finds
nothing, and nothing ever has to be thrown away by hand. Only safetensors are read, and a file that is broken, does not fit, or holds other bits than
were written is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import GoatConfig
from .initialization import Factors, expert_scale, segment_factors

SMALLEST = 512  # min(m, n) from which an SVD takes longer than a file
LARGEST_FOLDER = 8 * 2**30  # bytes; beyond, the files not used for longest go
_FORMAT = 2
_UNFINISHED = ".unfinished"  # ends the names of files that are being written
_ABANDONED = 24 * 3600  # seconds after which their writer is gone

_folder: Path | None = Path(constants.HF_HOME) / "goat-peft" / "factors"


@contextmanager
def use_factor_cache(folder: Path | None) -> Iterator[None]:
    """Keep initial factors in `folder` inside the context; None keeps none. Without it they are kept beside the Hub's own cache."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def cached_factors(weight: Tensor, config: GoatConfig, dtype: torch.dtype) -> Factors:
    """`segment_factors` rounded to `dtype`, from disk if they are there; the very same values either way.

    Random segments are drawn anew each time and never kept, nor are small weights.
    """
    if _folder is None or config.init_weights == "random" or min(weight.shape) < SMALLEST:
        return _rounded(segment_factors(weight, config), dtype)
    path = _folder / f"{_key(weight, config, dtype)}.safetensors"
    found = _read(path, weight, config, dtype)
    if found is None:
        found = _rounded(segment_factors(weight, config), dtype)
        _write(path, found)
    return found


def prune() -> None:
    """Remove what killed processes left, and the files that were not used for longest while the folder holds more than `LARGEST_FOLDER`."""
    if _folder is None or not _folder.is_dir():
        return
    for path in _folder.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
    files = []
    for path in _folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process may be doing the same
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in files) - LARGEST_FOLDER
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


def weight_hash(weight: Tensor) -> str:
    """128 bits over every bit of a weight (m, n) and their order, computed where it lies: two multilinear sums of mixed 64-bit words, modulo 2^64.

    Tells weights apart; not meant to withstand somebody who makes two collide.
    """
    row_bytes = weight.shape[1] * weight.element_size()
    data = weight.contiguous()
    words = data.view(torch.int64) if row_bytes % 8 == 0 else data.view(torch.uint8).to(torch.int64)
    words = _mixed(words)
    lanes = []
    for lane in (1, 2):
        columns = _odd(words.shape[1], lane, words.device)
        rows = _odd(words.shape[0], lane + 2, words.device)
        lanes.append((_mixed((words * columns).sum(1)) * rows).sum())
    return "".join(f"{value & (2**64 - 1):016x}" for value in torch.stack(lanes).tolist())


def _mixed(words: Tensor) -> Tensor:
    """Words in which each bit has reached many: else two changes of a highest bit would cancel in a sum."""
    words = words * -0x61C8864680B583EB
    return words ^ (words >> 32)


def _odd(count: int, lane: int, device: torch.device) -> Tensor:
    """`count` odd multipliers (int64), the same on every machine."""
    index = torch.arange(1, count + 1, device=device) * 4 + lane
    return _mixed(_mixed(index)) | 1


def _key(weight: Tensor, config: GoatConfig, dtype: torch.dtype) -> str:
    m, n = weight.shape
    settings = {
        "format": _FORMAT, "weight": weight_hash(weight), "shape": [m, n], "weight_dtype": str(weight.dtype), "dtype": str(dtype),
        "init_weights": config.init_weights, "num_experts": config.num_experts, "rank": config.expert_rank, "rho": config.rho,
        "scale": expert_scale(config, n), "expert_scaling": config.expert_scaling,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _rounded(factors: Factors, dtype: torch.dtype) -> Factors:
    return Factors(factors.A.to(dtype), factors.B.to(dtype), factors.scale.to(dtype))


def _read(path: Path, weight: Tensor, config: GoatConfig, dtype: torch.dtype) -> Factors | None:
    """The factors in a file, on the weight's device; None if it is not there or not what it should be."""
    (m, n), r = weight.shape, config.r
    try:
        with safe_open(path, "pt", device=str(weight.device)) as file:
            found = Factors(file.get_tensor("A"), file.get_tensor("B"), file.get_tensor("scale"))
            written = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError, RuntimeError):
        return None
    with contextlib.suppress(OSError):  # a file of somebody else's may be read and not touched
        os.utime(path)
    fits = found.A.shape == (r, n) and found.B.shape == (m, r) and found.scale.shape == (config.num_experts,)
    if not fits or any(tensor.dtype != dtype for tensor in (found.A, found.B, found.scale)):
        return None
    finite = torch.stack([tensor.isfinite().all() for tensor in (found.A, found.B, found.scale)])
    return found if finite.all() and written == _digest(found) else None


def _digest(factors: Factors) -> str:
    """A hash over every bit of the factors."""
    return "".join(weight_hash(tensor) for tensor in (factors.A, factors.B, factors.scale[None]))


def _write(path: Path, factors: Factors) -> None:
    """Write in one step; a folder that cannot be written to only means that the next start computes again, which a warning says."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{_UNFINISHED}")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in vars(factors).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, {"digest": _digest(factors)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"The experts' initial values cannot be kept in {path.parent} ({error}); each start computes them anew. Set HF_HOME to a folder that can "
            "be written to, or use `with use_factor_cache(None):`.",
            stacklevel=2,
        )
