"""Timing, and the rows that measurements leave behind."""

from __future__ import annotations

import gc
import itertools
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from goat_peft import __version__, records

PACKAGES = ("torch", "transformers", "peft", "triton", "bitsandbytes", "torchao")


def median_ms(step: Callable[[], Any], device: str, warmup: int, repeats: int) -> float:
    """Median milliseconds of `step`, each repeat timed on its own and to its end on the device."""
    for _ in range(warmup):
        step()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def steady_ms(step: Callable[[], Any], device: str, repeats: int) -> float:
    """Median milliseconds from the end of one `step` to the end of the next on the device, none waited for: as steps follow each other in training."""
    if device != "cuda":
        return median_ms(step, device, 0, repeats)
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    ends[0].record()
    for end in ends[1:]:
        step()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(ends))


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph. Raises `RuntimeError` if anything in it waits for the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def reset_memory(device: str) -> None:
    """Free what the last model left, and start counting the peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    """Peak memory of the device since `reset_memory`, in GiB; None where the device does not count it."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


def ratio(value: float | None) -> str:
    """A ratio in six columns; a dash where what it is measured against was not."""
    return f"{value:6.3f}" if value is not None else "     -"


def environment(device: str) -> dict[str, Any]:
    """Device, versions, date and command of this run."""
    return {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"goat-peft": __version__}
        | {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
    }


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a JSON list, atomically: a reader sees the old file or the new one."""
    known = records.read_rows(path) if path.exists() else []
    records.write_text(path, json.dumps(known + rows, indent=1) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _program() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
