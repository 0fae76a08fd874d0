"""How long do the experts' first values take: an SVD of each weight, our route, and our route from the cache on disk?

`goat bench init --help`. Floor, LoRA and the loop need no decomposition; LoRA is measured as what wrapping the model costs in any case.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from goat_peft import GoatConfig
from goat_peft.adapter.factor_cache import use_factor_cache

from . import options
from .measure import append_rows, environment, reset_memory
from .workloads import SHAPES, build_base, linear_names


def _clock(device: str) -> float:
    """Seconds on a clock, once the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _wrap(args: argparse.Namespace, config: Any) -> float:
    """Seconds to put an adapter on a fresh model of the wanted shape, whose weights are the same each time."""
    reset_memory(args.device)
    torch.manual_seed(0)
    base = build_base(args.shape, args.layers, torch.bfloat16 if args.device == "cuda" else torch.float32, args.device)
    start = _clock(args.device)
    get_peft_model(base, config)
    return _clock(args.device) - start


def naive_seconds(args: argparse.Namespace) -> tuple[float, int]:
    """Seconds for `torch.linalg.svd` of every projection, from one timed weight of each shape; and the number of projections."""
    base = build_base(args.shape, args.layers, torch.bfloat16 if args.device == "cuda" else torch.float32, args.device)
    names = linear_names(base)
    linears = [m for name, m in base.named_modules() if isinstance(m, nn.Linear) and name.rpartition(".")[2] in names]
    total = 0.0
    for shape, count in Counter(linear.weight.shape for linear in linears).items():
        weight = next(linear.weight for linear in linears if linear.weight.shape == shape).float()
        start = _clock(args.device)
        torch.linalg.svd(weight, full_matrices=False)
        total += (_clock(args.device) - start) * count
    return total, len(linears)


def main(arguments: list[str] | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    parser = options.parser("init", __doc__)
    parser.add_argument(
        "--shape",
        default="llama-2-7b" if on_gpu else "smollm2-135m",
        choices=list(SHAPES),
        help="whose sizes the model has",
    )
    parser.add_argument("--layers", type=options.whole(1), default=32 if on_gpu else 30, help="of the model")
    parser.add_argument("--rank", type=options.whole(1), default=32, help="total rank of the adapters")
    parser.add_argument("--experts", type=options.whole(2), default=8, help="into which GOAT divides it")
    options.add_device(parser)
    options.add_results(parser, "benchmarks/results/init.json")
    args = parser.parse_args(arguments)
    options.check_experts(parser, ["goat"], "--rank", [args.rank], args.experts, 2)
    targets = list(linear_names(build_base(args.shape, 1, torch.float32, "meta")))
    # Unmeasured: the first decomposition of a process loads the solver's library.
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64, device=args.device))
    torch.linalg.svd(torch.eye(64, device=args.device))
    naive, projections = naive_seconds(args)
    goat = GoatConfig(r=args.rank, num_experts=args.experts, target_modules=targets)
    rows = [
        {"method": "lora", "seconds": _wrap(args, LoraConfig(r=args.rank, target_modules=targets))},
        {"method": "svd", "seconds": naive, "estimated": True},
    ]
    with tempfile.TemporaryDirectory() as folder:
        with use_factor_cache(None):
            rows.append({"method": "goat", "seconds": _wrap(args, goat)})
        with use_factor_cache(Path(folder)):
            rows.append({"method": "goat, filling the cache", "seconds": _wrap(args, goat)})
            rows.append({"method": "goat, from the cache", "seconds": _wrap(args, goat)})
    workload = {
        "shape": args.shape,
        "layers": args.layers,
        "projections": projections,
        "r": args.rank,
        "num_experts": args.experts,
    }
    for row in rows:
        print(
            f"{args.shape} {projections} projections r={args.rank} {row['method']:24} {row['seconds']:8.2f} s{'  (estimated from one weight of each shape)' if 'estimated' in row else ''}",
            flush=True,
        )
    append_rows(args.results, [row | workload | environment(args.device) for row in rows])


if __name__ == "__main__":
    main()
