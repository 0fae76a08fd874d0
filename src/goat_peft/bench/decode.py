"""How long does one decoded token take? `goat bench decode --help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from . import options
from .measure import append_rows, captured, environment, median_ms, peak_gib, ratio, reset_memory
from .workloads import METHODS, SHAPES, apply_method, build_base

_PROMPT, _ROOM = 128, 256


def decoding_step(model: nn.Module, batch: int, device: str) -> Callable[[], None]:
    """One forward of one token for each sequence, on a static cache that holds a prompt."""
    config: Any = model.config
    vocabulary = config.vocab_size
    cache = StaticCache(config=config, max_cache_len=_PROMPT + _ROOM)
    prompt = torch.randint(0, vocabulary, (batch, _PROMPT), device=device)
    token = torch.randint(0, vocabulary, (batch, 1), device=device)
    position = torch.full((batch, 1), _PROMPT, device=device)
    model(input_ids=prompt, past_key_values=cache, use_cache=True)

    def step() -> None:
        model(input_ids=token, past_key_values=cache, position_ids=position, use_cache=True)

    return step


@torch.no_grad()
def measure(args: argparse.Namespace, method: str, batch: int, graph: bool) -> dict[str, Any]:
    """One row: milliseconds a token of one method at one batch size."""
    torch.manual_seed(0)
    reset_memory(args.device)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = apply_method(
        method, build_base(args.shape, args.layers, dtype, args.device), args.rank, args.experts, args.top_k, 0.0
    ).eval()
    with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.autocast):
        step = decoding_step(model, batch, args.device)
        milliseconds = median_ms(captured(step) if graph else step, args.device, 5, 20 if method == "loop" else 50)
    return {
        "method": method, "shape": args.shape, "layers": args.layers, "batch": batch, "r": args.rank, "num_experts": args.experts,
        "top_k": args.top_k, "cuda_graph": graph, "autocast": args.autocast, "token_ms": milliseconds, "peak_gib": peak_gib(args.device),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser("decode", __doc__)
    parser.add_argument(
        "--shape",
        default="llama-2-7b",
        choices=[name for name, config in SHAPES.items() if config.model_type == "llama"],
        help="whose sizes the model has",
    )
    parser.add_argument("--layers", type=options.whole(1), default=16, help="of the model")
    parser.add_argument("--batches", type=options.several(options.whole(1)), default="1,8", help="comma separated")
    parser.add_argument("--rank", type=options.whole(1), default=32, help="total rank of the adapters")
    parser.add_argument("--experts", type=options.whole(1), default=8, help="into which GOAT divides it")
    parser.add_argument("--top-k", type=options.whole(1), default=2, help="experts of a token")
    options.add_methods(parser, ",".join(METHODS))
    options.add_device(parser)
    parser.add_argument("--autocast", action="store_true", help="base in float32, computed in bfloat16")
    options.add_results(parser, "benchmarks/results/decode.json")
    args = parser.parse_args(arguments)
    options.check_experts(parser, args.methods, "--rank", [args.rank], args.experts, args.top_k)
    about = environment(args.device)
    for graph in (False, True) if args.device == "cuda" else (False,):
        for batch in args.batches:
            methods = [
                name for name in args.methods if not (graph and name == "loop")
            ]  # a loop over experts cannot be captured
            rows = [measure(args, method, batch, graph) for method in methods]
            lora = next((row["token_ms"] for row in rows if row["method"] == "lora"), None)
            for row in rows:
                row["over_lora"] = row["token_ms"] / lora if lora else None
                kind = "graph" if graph else "eager"
                print(
                    f"{args.shape} batch {batch:<2} {kind} {row['method']:9} {row['token_ms']:8.3f} ms a token  {ratio(row['over_lora'])} x lora",
                    flush=True,
                )
            append_rows(args.results, [row | about for row in rows])


if __name__ == "__main__":
    main()
