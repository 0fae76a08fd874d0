"""Initial values in a launch: one SVD for each layer, the same bits in every process and as in one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pair import in_pair
from peft import get_peft_model
from tiny import adapter_tensors, assert_same, seeded, settings, tiny_llama

from goat_peft.adapter import factor_cache, initialization, initialize_together, together

LAYERS = 14  # of the tiny Llama: seven projections in two blocks


def start(seed: int = 1, base_seed: int = 0, **overrides: Any) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of a fresh adapter, and how many SVDs this process took."""
    counted, triplets = [], initialization.singular_triplets
    initialization.singular_triplets = lambda *args: counted.append(1) or triplets(*args)
    try:
        model = seeded(tiny_llama, base_seed)
        torch.manual_seed(seed)
        with factor_cache.use_factor_cache(None):
            return adapter_tensors(get_peft_model(model, settings(**overrides))), len(counted)
    finally:
        initialization.singular_triplets = triplets


def start_in_launch(rank: int, other_seed: bool, other_base: bool, overrides: dict[str, Any]) -> Any:
    with initialize_together():
        return start(seed=1 + rank * other_seed, base_seed=rank * other_base, **overrides)


@pytest.mark.parametrize("overrides", [{}, {"init_weights": "random"}, {"init_weights": "lora"}])
def test_every_process_starts_as_one_process_would(tmp_path: Path, overrides: dict) -> None:
    """Also where the others are seeded differently."""
    expected, svds = start(**overrides)
    (first, first_svds), (second, second_svds) = in_pair(start_in_launch, tmp_path, True, False, overrides)
    assert_same(first, expected)
    assert_same(second, expected)
    assert svds == first_svds + second_svds == (0 if overrides.get("init_weights") == "lora" else LAYERS)
    if not overrides:
        assert first_svds == second_svds  # shared out


def test_a_process_whose_weights_were_not_read_takes_the_first_ones_factors(tmp_path: Path) -> None:
    (first, first_svds), (second, second_svds) = in_pair(start_in_launch, tmp_path, False, True, {})
    assert_same(second, first)
    assert_same(first, start()[0])
    assert (first_svds, second_svds) == (LAYERS, 0)


def of_other_settings(rank: int, each: list[dict[str, Any]]) -> Any:
    with initialize_together():
        return start(**each[rank])


@pytest.mark.parametrize("each", [[{"r": 8}, {"r": 16}], [{"eta": 1.0}, {"eta": 0.1}]], ids=["rank", "eta"])
def test_processes_with_other_settings_work_for_themselves(tmp_path: Path, each: list[dict[str, Any]]) -> None:
    for (found, _), settings_of_it in zip(in_pair(of_other_settings, tmp_path, each), each, strict=True):
        assert_same(found, start(**settings_of_it)[0])


def unasked(rank: int) -> Any:
    """The first process adds one adapter more than the second, as when it alone exports."""
    return [start() for _ in range(2 - rank)][-1]


def test_no_process_waits_for_another_unless_asked(tmp_path: Path) -> None:
    expected, svds = start()
    for found, own_svds in in_pair(unasked, tmp_path, timeout=30):
        assert_same(found, expected)
        assert own_svds == svds == LAYERS


def failing_in_one(rank: int, each_for_itself: bool) -> str:
    calls, triplets = [], initialization.singular_triplets

    def fails(*args: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise ValueError("no convergence")
        return triplets(*args)

    initialization.singular_triplets = fails
    with factor_cache.use_factor_cache(None), initialize_together(), pytest.raises((ValueError, RuntimeError)) as told:
        get_peft_model(seeded(tiny_llama), settings(eta=1.0 - 0.5 * rank * each_for_itself))
    return f"{type(told.value).__name__}: {told.value}"


@pytest.mark.parametrize("each_for_itself", [False, True])
def test_what_fails_in_one_process_fails_in_all(tmp_path: Path, each_for_itself: bool) -> None:
    other, own = in_pair(failing_in_one, tmp_path, each_for_itself, timeout=30)
    assert re.fullmatch(r"ValueError: model\.layers\.0\.self_attn\.\w_proj: no convergence", own)
    assert other == f"RuntimeError: Adding the adapter failed in process 1: {own}"


class Parted:
    """Stands for ZeRO-3's gathering, in which every process has to come along."""

    entered: ClassVar[list[int]] = []

    def __init__(self, layers: Any) -> None:
        self.count = len(list(layers))

    def __enter__(self) -> None:
        self.entered.append(self.count)

    def __exit__(self, *_: object) -> None:
        pass


def parted_with_other_settings(rank: int) -> list[int]:
    together.whole_weights, Parted.entered = Parted, []
    with initialize_together():
        start(eta=1.0 - 0.5 * rank)
    return Parted.entered


def test_weights_are_gathered_also_where_each_works_for_itself(tmp_path: Path) -> None:
    assert in_pair(parted_with_other_settings, tmp_path) == [[1] * LAYERS] * 2
