"""What the options of the measurements take, checked before anything is measured.

Converters for argparse: each raises `ArgumentTypeError` with the value given and what would work; argparse names the option and exits with 2.
The `check_...` functions do the same for options that depend on each other.
"""

from __future__ import annotations

import os
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from .. import records
from ..errors import closest, first_line
from .workloads import METHODS, SHAPES

T = TypeVar("T")


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least `least`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise ArgumentTypeError(f"{text!r}: must be a whole number of at least {least}")
        return number

    return convert


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """One of the known names."""
    known = tuple(names)

    def convert(text: str) -> str:
        if text not in known:
            raise ArgumentTypeError(f"{text!r} is not known; {closest(text, known)}")
        return text

    return convert


def several(convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Values that `convert` takes, comma separated."""
    return lambda text: tuple(convert(part.strip()) for part in text.split(","))


methods = several(one_of(METHODS))


def parser(name: str, description: str | None) -> ArgumentParser:
    """The parser of `goat bench NAME`, whose help shows what is taken when nothing is given."""
    return ArgumentParser(
        prog=f"goat bench {name}", description=description, formatter_class=ArgumentDefaultsHelpFormatter
    )


def add_methods(parser: ArgumentParser, default: str) -> None:
    """The option --methods."""
    known = f"comma separated, of floor (the frozen model) and {', '.join(METHODS[1:])}"
    parser.add_argument("--methods", type=methods, default=default, help=known)


def add_device(parser: ArgumentParser) -> None:
    """The option --device."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, default=default, help="cuda or cpu")


def add_results(parser: ArgumentParser, default: str) -> None:
    """The option --results."""
    parser.add_argument("--results", type=results, default=default, help="JSON list that the rows are added to")


def size(text: str) -> tuple[int, int]:
    """Batch and length of a step, such as 4x1024."""
    try:
        batch, length = map(whole(1), text.split("x"))
    except (ValueError, ArgumentTypeError):
        raise ArgumentTypeError(f"{text!r}: must be batch x length in tokens, such as 4x1024") from None
    return batch, length


def dropout(text: str) -> float:
    """A probability below 1."""
    try:
        p = float(text)
    except ValueError:
        p = -1.0
    if not 0 <= p < 1:
        raise ArgumentTypeError(f"{text!r}: must be a probability from 0 to below 1, such as 0.05")
    return p


def device(text: str) -> str:
    """`cuda` where there is one, or `cpu`."""
    one_of(("cuda", "cpu"))(text)
    if text == "cuda" and not torch.cuda.is_available():
        raise ArgumentTypeError("'cuda': there is no CUDA device here; choose cpu")
    return text


def results(text: str) -> Path:
    """A file that rows can be added to, so that none is lost once it is measured: a JSON list of rows, or nothing yet."""
    path = Path(text)
    try:
        if path.exists():
            records.read_rows(path)
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(
            f"{text!r} takes no rows ({first_line(error)}); give a JSON list of rows, or a name that is free"
        ) from None
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ArgumentTypeError(f"{text!r}: {folder} is no folder that can be written to; give another")
    return path


def check_experts(
    parser: ArgumentParser, chosen: Sequence[str], option: str, ranks: Iterable[int], experts: int, top_k: int
) -> None:
    """Stop where a chosen method has experts which share no rank, given by `option`, evenly, or too few of them for top-k routing."""
    if not {"loop", "goat", "goat-soft"} & set(chosen):
        return
    for r in ranks:
        if r % experts:
            near = max(1, round(r / experts)) * experts
            parser.error(f"argument {option}: {r}: must be a multiple of the {experts} experts, for example {near}")
    if top_k > experts:
        parser.error(f"argument --top-k: {top_k}: must be at most the {experts} experts")


def check_lengths(parser: ArgumentParser, shape: str, sizes: Iterable[tuple[int, int]]) -> None:
    """Stop where a sequence is longer than the positions that a model has weights for."""
    config = SHAPES[shape]
    for batch, length in sizes:
        if config.model_type == "bert" and length > config.max_position_embeddings:
            parser.error(
                f"argument --sizes: {batch}x{length}: {shape} takes at most {config.max_position_embeddings} tokens"
            )


def check_dropout(parser: ArgumentParser, chosen: Sequence[str], p: float) -> None:
    """Stop where a row would say a dropout that its method does not have."""
    if p and "loop" in chosen:
        parser.error(f"argument --dropout: {p}: the loop over experts has no dropout; leave loop out of --methods")
