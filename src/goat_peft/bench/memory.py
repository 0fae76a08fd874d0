"""How much memory does a training step need at its peak, and how does it grow with tokens and rank? `goat bench memory --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import train_step
from .measure import append_rows, environment, ratio
from .workloads import METHODS, SHAPES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="goat bench memory", description=__doc__)
    parser.add_argument("--shape", default="llama-2-7b", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--sizes", default="1x1024,4x1024,8x1024", help="batch x length, comma separated")
    parser.add_argument("--ranks", default="8,32,64", help="total ranks, comma separated")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/memory.json"))
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("peak memory is counted on CUDA devices alone, and there is none here")
    about = environment("cuda")
    step = train_step.parser().parse_args(
        ["--shape", args.shape, "--layers", str(args.layers), "--warmup", "2", "--repeats", "1"]
    )
    for size in args.sizes.split(","):
        batch, length = map(int, size.split("x"))
        for r in map(int, args.ranks.split(",")):
            rows = [train_step.measure(step, method, r, 8, batch, length) for method in args.methods.split(",")]
            lora = next((row["peak_gib"] for row in rows if row["method"] == "lora"), None)
            for row in rows:
                del row["step_ms"]
                row["over_lora"] = row["peak_gib"] / lora if lora else None
                print(
                    f"{args.shape} {size:>9} r={r:<3} {row['method']:6} {row['peak_gib']:7.2f} GiB  {ratio(row['over_lora'])} x lora",
                    flush=True,
                )
            append_rows(args.results, [row | about for row in rows])


if __name__ == "__main__":
    main()
