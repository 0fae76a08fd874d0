"""How long does a training step take on a CPU? `goat bench cpu-step --help`.

Methods take turns step by step, so that what else the machine does at a time meets all of them; ratios are medians over rounds of one round's ratio.
"""

from __future__ import annotations

import statistics
import time

import torch

from . import options
from .measure import append_rows, environment, ratio
from .train_step import training_step
from .workloads import METHODS, apply_method, build_base

WORKLOADS = {"minilm-l6": (6, 16, 64), "smollm2-135m": (30, 4, 128)}  # layers, batch, length


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser("cpu-step", __doc__)
    parser.add_argument(
        "--shapes", type=options.several(options.one_of(WORKLOADS)), default=",".join(WORKLOADS), help="comma separated"
    )
    parser.add_argument(
        "--ranks", type=options.several(options.whole(1)), default="8,32", help="total ranks, comma separated"
    )
    options.add_methods(parser, ",".join(METHODS))
    parser.add_argument("--rounds", type=options.whole(2), default=15, help="at least 2: there are quartiles")
    options.add_results(parser, "benchmarks/results/cpu_step.json")
    args = parser.parse_args(arguments)
    options.check_experts(parser, args.methods, "--ranks", args.ranks, 8, 2)
    for shape in args.shapes:
        layers, batch, length = WORKLOADS[shape]
        for r in args.ranks:
            steps = {}
            for method in args.methods:
                torch.manual_seed(0)
                model = apply_method(method, build_base(shape, layers, torch.float32, "cpu"), r, 8, 2, 0.0).train()
                steps[method] = training_step(model, batch, length, "cpu", autocast=False)
            times: dict[str, list[float]] = {method: [] for method in steps}
            for turn in range(args.rounds + 2):
                for method, step in steps.items():
                    start = time.perf_counter()
                    step()
                    if turn >= 2:  # the first two warm up
                        times[method].append((time.perf_counter() - start) * 1e3)
            rows = []
            for method, found in times.items():
                row = {
                    "method": method, "shape": shape, "layers": layers, "batch": batch, "length": length, "r": r, "num_experts": 8, "top_k": 2,
                    "rounds": args.rounds, "step_ms": statistics.median(found),
                }  # fmt: skip
                for name in ("floor", "lora"):
                    if name in times:
                        ratios = [own / other for own, other in zip(found, times[name], strict=True)]
                        row[f"over_{name}"] = statistics.median(ratios)
                        row[f"over_{name}_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
                print(
                    f"{shape} {batch}x{length} r={r:<3} {method:9} {row['step_ms']:8.1f} ms  {ratio(row.get('over_floor'))} x floor  {ratio(row.get('over_lora'))} x lora",
                    flush=True,
                )
                rows.append(row)
            append_rows(args.results, [row | environment("cpu") for row in rows])


if __name__ == "__main__":
    main()
