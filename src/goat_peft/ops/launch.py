"""Launch a Triton kernel with less work on the host than `kernel[grid](...)`.

A training step launches hundreds of small kernels, and Triton's own launch examines every argument each time. Here a kernel once compiled is kept
under what its machine code depends on, and launched directly, as Triton's tutorials do with a warmed-up kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

# Under kernel, constants, options and kinds of the arguments: a compiled kernel's launcher for each grid.
_launchers: dict[tuple, tuple[Any, dict[tuple[int, ...], Callable[..., None]]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple, constants: tuple, **options: int) -> None:
    """Run `kernel` on `grid` with its `arguments` (tensors, whole numbers, floats, None) and then its compile-time `constants`.

    `options` are Triton's, such as num_warps.
    """
    index = arguments[0].get_device()
    if index >= 0 and index != torch.cuda.current_device():  # a model spread over several devices
        with torch.cuda.device(index):
            return launch(kernel, grid, arguments, constants, **options)
    key = (id(kernel), index, constants, *options.values(), *kinds(arguments))
    found = _launchers.get(key)
    if found is None:
        compiled = kernel[grid](*arguments, *constants, **options)
        if isinstance(compiled, triton.compiler.CompiledKernel):  # the interpreter has none
            _launchers[key] = compiled, {}
        return
    compiled, by_grid = found
    launcher = by_grid.get(grid)
    if launcher is None:
        launcher = by_grid[grid] = compiled[grid + (1,) * (3 - len(grid))]
    launcher(*arguments, *constants)


def kinds(arguments: tuple) -> list[Any]:
    """What machine code depends on: a pointer's type, and whether it is a multiple of 16; whether a number is 1, a multiple of 16, or long."""
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument.dtype)
            if argument.data_ptr() & 15:
                found.append("unaligned")
        elif argument.__class__ is int:
            found.append(1 if argument == 1 else 2 if argument & 15 == 0 else 3)
            if argument > 0x7FFFFFFF:
                found.append("long")
        else:
            found.append(argument.__class__)
    return found
