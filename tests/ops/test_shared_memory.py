"""What the largest kernels need of a multiprocessor's shared memory, from compiling them for devices that are not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RTX_30 = 101_376  # bytes a program may have, the least of the GPUs that compute in bfloat16

SCRIPT = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from goat_peft.ops import fused, kernels

def shared(kernel, types, constants, **options):
    names = kernel.arg_names
    signature = {name: types[i] if i < len(types) else "constexpr" for i, name in enumerate(names)}
    known = {(i,): value for i, value in zip(range(len(types), len(names)), constants)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind != "fp32"}
    return compile(ASTSource(kernel, signature, known, aligned), target=GPUTarget("cuda", 86, 32), options=options).metadata.shared

count, half, whole = 3 * 128, "*fp16", "i32"
columns = fused._column_block(count)
print(shared(kernels.dropped_project_kernel, [half, half, "*fp32", "*i64", *[whole] * 5, "fp32"], (count, columns, "tf32", 64, 64), num_stages=3))
print(shared(kernels.dropped_token_sum_kernel, [half, half, "*fp32", "*i64", *[whole] * 6, "fp32"], (count, columns, "tf32", 64, 128), num_warps=8, num_stages=3))
print(shared(kernels.dropped_input_kernel, [half, half, half, "*i64", *[whole] * 4, "fp32"], (count, columns, "tf32", 64, 128)))
experts, rank = 8, fused._SLOTS // 8
print(shared(kernels.few_tokens_kernel, ["*fp32"] * 4 + [half] * 2 + [whole] * 4, (1, experts, rank, experts, rank, 2, True, True, 16, 64)))
"""


@pytest.mark.slow  # its fast siblings run the same sizes in the interpreter: test_fused.py, WIDE and the slots
def test_a_group_of_rank_128_fits_a_consumer_gpu() -> None:
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    needed = [int(line) for line in done.stdout.split()]
    assert len(needed) == 4 and max(needed) <= RTX_30
