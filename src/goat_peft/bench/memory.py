"""How much memory does a training step need at its peak, and how does it grow with tokens and rank? `goat bench memory --help`."""

from __future__ import annotations

import argparse

import torch

from . import options, train_step
from .measure import append_rows, environment, ratio
from .workloads import METHODS, SHAPES


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser("memory", __doc__)
    parser.add_argument("--shape", default="llama-2-7b", choices=list(SHAPES), help="whose sizes the model has")
    parser.add_argument("--layers", type=options.whole(1), default=16, help="of the model")
    parser.add_argument(
        "--sizes",
        type=options.several(options.size),
        default="1x1024,4x1024,8x1024",
        help="batch x length, comma separated",
    )
    parser.add_argument(
        "--ranks", type=options.several(options.whole(1)), default="8,32,64", help="total ranks, comma separated"
    )
    options.add_methods(parser, ",".join(METHODS))
    options.add_results(parser, "benchmarks/results/memory.json")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error(
            "peak memory is counted on CUDA devices alone, and there is none here; goat plan predicts it anywhere"
        )
    options.check_lengths(parser, args.shape, args.sizes)
    options.check_experts(parser, args.methods, "--ranks", args.ranks, 8, 2)
    about = environment("cuda")
    step = argparse.Namespace(
        shape=args.shape, layers=args.layers, device="cuda", top_k=2, dropout=0.0, compile=False, graph=False, warmup=2, repeats=1
    )  # fmt: skip
    for batch, length in args.sizes:
        for r in args.ranks:
            rows = [train_step.measure(step, method, r, 8, batch, length) for method in args.methods]
            lora = next((row["peak_gib"] for row in rows if row["method"] == "lora"), None)
            for row in rows:
                del row["step_ms"]
                row["over_lora"] = row["peak_gib"] / lora if lora else None
                print(
                    f"{args.shape} {f'{batch}x{length}':>9} r={r:<3} {row['method']:9} {row['peak_gib']:7.2f} GiB  {ratio(row['over_lora'])} x lora",
                    flush=True,
                )
            append_rows(args.results, [row | about for row in rows])


if __name__ == "__main__":
    main()
