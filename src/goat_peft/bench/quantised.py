"""How long does a training step on a quantised base take, and how much memory, against PEFT's LoRA of the same rank (QLoRA)?

`goat bench quantised --help`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from . import options
from .measure import append_rows, environment, median_ms, peak_gib, ratio, reset_memory, steady_ms
from .train_step import training_step
from .workloads import SHAPES, apply_method, build_base, linear_names

KINDS = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}  # and the library of each


def quantise(base: nn.Module, kind: str) -> nn.Module:
    """Quantise the adapted linears of a base in place: nf4 with doubly quantised scales, as QLoRA has it; int8 as transformers loads it; torchao's int8."""
    names = linear_names(base)
    for parent in list(base.modules()):
        for name, linear in list(parent.named_children()):
            if name in names and isinstance(linear, nn.Linear):
                setattr(parent, name, quantised_linear(linear, kind))
    base.is_loaded_in_4bit = kind == "nf4"  # type: ignore[assignment]  # as transformers says it; PEFT's LoRA asks
    base.is_loaded_in_8bit = kind == "int8"  # type: ignore[assignment]
    return base.requires_grad_(False)


def quantised_linear(linear: nn.Linear, kind: str) -> nn.Module:
    """A linear with the quantised weight of another, on its device; `linear` itself where the library works in place."""
    if kind == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(linear, Int8WeightOnlyConfig())
        return linear
    import bitsandbytes as bnb

    weight, n, m, bias = linear.weight.data, linear.in_features, linear.out_features, linear.bias is not None
    with torch.device("meta"):
        if kind == "nf4":
            new: Any = bnb.nn.Linear4bit(n, m, bias, weight.dtype, quant_type="nf4")
        else:
            new = bnb.nn.Linear8bitLt(n, m, bias, has_fp16_weights=False, threshold=6.0)
    # Both quantise where they are moved.
    if kind == "nf4":
        new.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", module=new).to(  # type: ignore[misc]
            weight.device
        )
    else:
        new.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(weight.device)  # type: ignore[misc]
    if bias:
        new.bias = linear.bias
    return new


def measure(args: argparse.Namespace, kind: str, method: str, batch: int, length: int) -> dict[str, Any]:
    """One row: milliseconds of one method on one quantised base, and peak memory."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    base = quantise(build_base(args.shape, args.layers, dtype, args.device), kind)
    model = apply_method(method, base, args.rank, args.experts, args.top_k, args.dropout).train()
    reset_memory(args.device)  # the step's peak, not that of the weights in 16 bits
    step = training_step(model, batch, length, args.device, autocast=args.device == "cuda")
    waited = median_ms(step, args.device, args.warmup, args.repeats)
    steady = steady_ms(step, args.device, args.repeats)
    return {
        "method": method, "base": kind, "shape": args.shape, "layers": args.layers, "batch": batch, "length": length, "r": args.rank,
        "num_experts": args.experts, "top_k": args.top_k, "dropout": args.dropout, "step_ms": steady, "waited_ms": waited, "peak_gib": peak_gib(args.device),
    }  # fmt: skip


def _kind(text: str) -> str:
    """A kind of quantisation whose library is installed."""
    kind = options.one_of(KINDS)(text)
    if find_spec(KINDS[kind]) is None:
        raise argparse.ArgumentTypeError(f"{kind!r} needs {KINDS[kind]}; pip install 'goat-peft[quantized]'")
    return kind


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """The options, once it is certain that every row can be measured."""
    parser = options.parser("quantised", __doc__)
    llamas = [name for name, config in SHAPES.items() if config.model_type == "llama"]
    parser.add_argument("--shape", default="llama-2-7b", choices=llamas, help="whose sizes the model has")
    parser.add_argument("--layers", type=options.whole(1), default=16, help="of the model")
    parser.add_argument(
        "--sizes", type=options.several(options.size), default="4x1024", help="batch x length, comma separated"
    )
    parser.add_argument(
        "--kinds", type=options.several(_kind), default="nf4", help=f"comma separated, of {', '.join(KINDS)}"
    )
    parser.add_argument("--rank", type=options.whole(1), default=32, help="total rank of the adapters")
    parser.add_argument("--experts", type=options.whole(1), default=8, help="into which GOAT divides it")
    parser.add_argument("--top-k", type=options.whole(1), default=2, help="experts of a token")
    parser.add_argument("--dropout", type=options.dropout, default=0.0, help="of the adapters' input")
    options.add_methods(parser, "floor,lora,goat")
    options.add_device(parser)
    parser.add_argument("--warmup", type=options.whole(0), default=5, help="steps before those timed")
    parser.add_argument("--repeats", type=options.whole(1), default=20, help="steps timed")
    options.add_results(parser, "benchmarks/results/quantised.json")
    args = parser.parse_args(arguments)
    options.check_experts(parser, args.methods, "--rank", [args.rank], args.experts, args.top_k)
    options.check_dropout(parser, args.methods, args.dropout)
    return args


def main(arguments: list[str] | None = None) -> None:
    args = _options(arguments)
    about = environment(args.device)
    for kind in args.kinds:
        for batch, length in args.sizes:
            rows = [measure(args, kind, method, batch, length) for method in args.methods]
            lora = next((row for row in rows if row["method"] == "lora"), None)
            for row in rows:
                for key, name in (
                    ("step_ms", "over_lora"),
                    ("waited_ms", "waited_over_lora"),
                    ("peak_gib", "memory_over_lora"),
                ):
                    row[name] = row[key] / lora[key] if lora and row[key] else None
                memory = f"{row['peak_gib']:6.2f} GiB {ratio(row['memory_over_lora'])} x" if row["peak_gib"] else ""
                print(
                    f"{args.shape} {kind} {f'{batch}x{length}':>9} r={args.rank:<3} {row['method']:9} {row['step_ms']:9.2f} ms {ratio(row['over_lora'])} x lora"
                    f"  (waited for {row['waited_ms']:.2f}, {ratio(row['waited_over_lora'])})  {memory}",
                    flush=True,
                )
            append_rows(args.results, [row | about for row in rows])


if __name__ == "__main__":
    main()
