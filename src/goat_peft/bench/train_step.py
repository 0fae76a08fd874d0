"""How long does a training step take, and how much memory? `goat bench train-step --help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import options
from .measure import append_rows, captured, environment, median_ms, peak_gib, ratio, reset_memory, steady_ms
from .workloads import METHODS, SHAPES, apply_method, build_base


def training_step(model: nn.Module, batch: int, length: int, device: str, autocast: bool) -> Callable[[], None]:
    """Forward, backward and AdamW on one batch of random tokens; for the floor forward and backward to the embeddings."""
    config: Any = model.config
    vocabulary = config.vocab_size
    ids = torch.randint(0, vocabulary, (batch, length), device=device)
    labels = ids if config.model_type == "llama" else ids[:, 0] % 2
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, capturable=device == "cuda") if trained else None

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def measure(args: argparse.Namespace, method: str, r: int, num_experts: int, batch: int, length: int) -> dict[str, Any]:
    """One row: milliseconds of one method on one workload, steps following each other and each waited for; and peak memory."""
    torch.manual_seed(0)
    reset_memory(args.device)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = apply_method(
        method, build_base(args.shape, args.layers, dtype, args.device), r, num_experts, args.top_k, args.dropout
    )
    model.train()
    runner = model
    if args.compile:
        model(
            input_ids=torch.zeros(1, 8, dtype=torch.long, device=args.device)
        )  # layers learn what they share, see `adapter.grouping`
        torch.compiler.reset()
        runner = torch.compile(model, fullgraph=method != "loop", dynamic=None)  # type: ignore[assignment]
    step = training_step(runner, batch, length, args.device, autocast=args.device == "cuda")
    if args.graph:
        step = captured(step)
    repeats = 3 if method == "loop" else args.repeats
    waited = median_ms(step, args.device, args.warmup, repeats)
    steady = steady_ms(step, args.device, repeats)
    return {
        "method": method, "shape": args.shape, "layers": args.layers, "batch": batch, "length": length, "r": r, "num_experts": num_experts,
        "top_k": args.top_k, "dropout": args.dropout, "compiled": args.compile, "cuda_graph": args.graph, "step_ms": steady, "waited_ms": waited, "peak_gib": peak_gib(args.device),
    }  # fmt: skip


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """The options, once it is certain that every row can be measured."""
    parser = options.parser("train-step", __doc__)
    parser.add_argument("--shape", default="llama-2-7b", choices=list(SHAPES), help="whose sizes the model has")
    parser.add_argument("--layers", type=options.whole(1), default=16, help="of the model")
    parser.add_argument(
        "--sizes", type=options.several(options.size), default="4x1024", help="batch x length, comma separated"
    )
    parser.add_argument(
        "--ranks", type=options.several(options.whole(1)), default="32", help="total ranks, comma separated"
    )
    parser.add_argument(
        "--experts", type=options.several(options.whole(1)), default="8", help="numbers of experts, comma separated"
    )
    parser.add_argument("--top-k", type=options.whole(1), default=2, help="experts of a token")
    parser.add_argument("--dropout", type=options.dropout, default=0.0, help="of the adapters' input")
    parser.add_argument(
        "--methods", type=options.methods, help="comma separated; when not given, all that the other options allow"
    )
    options.add_device(parser)
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument(
        "--graph",
        action="store_true",
        help="capture the step as a CUDA graph: what the device needs, whatever the host's speed",
    )
    parser.add_argument("--warmup", type=options.whole(0), default=5, help="steps before those timed")
    parser.add_argument("--repeats", type=options.whole(1), default=20, help="steps timed")
    options.add_results(parser, "benchmarks/results/train_step.json")
    args = parser.parse_args(arguments)
    if args.methods is None:  # the loop has no dropout and cannot be captured
        args.methods = tuple(name for name in METHODS if name != "loop" or not (args.graph or args.dropout))
    options.check_lengths(parser, args.shape, args.sizes)
    for experts in args.experts:
        options.check_experts(parser, args.methods, "--ranks", args.ranks, experts, args.top_k)
    options.check_dropout(parser, args.methods, args.dropout)
    if args.graph and args.device != "cuda":
        parser.error("argument --graph: a CUDA graph needs --device cuda; leave --graph out")
    if args.graph and "loop" in args.methods:
        parser.error("argument --graph: a loop over experts cannot be captured; leave loop out of --methods")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = _options(arguments)
    about = environment(args.device)
    for batch, length in args.sizes:
        for r in args.ranks:
            for num_experts in args.experts:
                rows = [measure(args, method, r, num_experts, batch, length) for method in args.methods]
                by_name = {row["method"]: row for row in rows}
                for row in rows:
                    for name in ("floor", "lora"):
                        other = by_name.get(name)
                        row[f"over_{name}"] = row["step_ms"] / other["step_ms"] if other else None
                        row[f"waited_over_{name}"] = row["waited_ms"] / other["waited_ms"] if other else None
                    memory = f"{row['peak_gib']:6.2f} GiB" if row["peak_gib"] is not None else ""
                    print(
                        f"{args.shape} {f'{batch}x{length}':>9} r={r:<3} E={num_experts:<3} p={args.dropout} {'compiled ' if args.compile else ''}{'graph ' if args.graph else ''}{row['method']:9}"
                        f" {row['step_ms']:9.2f} ms  {ratio(row['over_floor'])} x floor  {ratio(row['over_lora'])} x lora"
                        f"  (waited for {row['waited_ms']:.2f}, {ratio(row['waited_over_floor'])}, {ratio(row['waited_over_lora'])})  {memory}",
                        flush=True,
                    )
                append_rows(args.results, [row | about for row in rows])


if __name__ == "__main__":
    main()
