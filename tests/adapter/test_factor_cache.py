"""Initial factors on disk: the same values, found again by the weight's bits and the settings alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from goat_peft import GoatConfig
from goat_peft.adapter import factor_cache, initialization
from goat_peft.adapter.factor_cache import cached_factors, use_factor_cache, weight_hash
from goat_peft.adapter.initialization import segment_factors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(factor_cache, "SMALLEST", 16)
    with use_factor_cache(tmp_path):
        yield tmp_path


@pytest.fixture
def svd_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = initialization.singular_triplets

    def counted(*args):
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(initialization, "singular_triplets", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_second_start_gives_the_same_bits_without_a_decomposition(dtype: torch.dtype, svd_calls: list[int]) -> None:
    weight, config = torch.randn(24, 40).bfloat16(), GoatConfig(r=8)
    first = cached_factors(weight, config, dtype)
    plain = segment_factors(weight, config)
    del svd_calls[:]
    second = cached_factors(weight.clone(), config, dtype)
    assert not svd_calls
    for name, value in vars(second).items():
        assert torch.equal(value, vars(first)[name])
        assert torch.equal(value, vars(plain)[name].to(dtype))


@pytest.mark.parametrize(
    "change", [{"eta": 0.1}, {"rho": 5.0}, {"r": 16}, {"init_weights": "minor"}, {"expert_scaling": "singular"}, {"num_experts": 4}]
)  # fmt: skip
def test_other_settings_give_what_they_would_give_without_a_cache(change: dict[str, object]) -> None:
    weight = torch.randn(24, 40)
    cached_factors(weight, GoatConfig(r=8), torch.float32)
    config = GoatConfig(**({"r": 8} | change))
    found, plain = cached_factors(weight, config, torch.float32), segment_factors(weight, config)
    assert torch.equal(found.B, plain.B.float()) and torch.equal(found.A, plain.A.float())


def test_random_segments_are_drawn_anew(folder: Path) -> None:
    config = GoatConfig(r=8, init_weights="random")
    cached_factors(torch.randn(40, 40), config, torch.float32)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("columns", [40, 33])
def test_the_hash_sees_every_bit_and_every_place(dtype: torch.dtype, columns: int) -> None:
    weight = torch.randn(17, columns).to(dtype)
    known = {weight_hash(weight)}
    assert weight_hash(weight.clone()) in known
    assert weight_hash(weight.T.contiguous().T) in known  # the layout in memory is not the weight

    def new(changed: torch.Tensor) -> None:
        found = weight_hash(changed)
        assert found not in known
        known.add(found)

    new(weight.T.contiguous())
    new(-weight)
    new(weight.flip(0))
    new(weight.flip(1))
    for row, column in ((0, 0), (3, 5), (16, columns - 1)):
        changed = weight.clone()
        changed[row, column] = torch.nextafter(changed[row, column], torch.tensor(9.0, dtype=dtype))
        new(changed)
    two_signs = weight.clone()
    two_signs[2, 3] *= -1
    two_signs[2, 7] *= -1
    new(two_signs)


@pytest.mark.parametrize("damage", ["empty", "text", "shape", "nan", "flip"])
def test_a_broken_file_is_computed_again(damage: str, folder: Path) -> None:
    weight, config = torch.randn(24, 40), GoatConfig(r=8)
    whole = cached_factors(weight, config, torch.float32)
    (path,) = folder.iterdir()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not tensors")
    elif damage in ("shape", "nan"):
        wrong = whole.A[:, :3] if damage == "shape" else whole.A * float("nan")
        factor_cache._write(path, initialization.Factors(wrong, whole.B, whole.scale))
    else:
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
    again = cached_factors(weight, config, torch.float32)
    assert torch.equal(again.A, whole.A)
    assert torch.equal(factor_cache._read(path, weight, config, torch.float32).A, whole.A)


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(folder: Path) -> None:
    (folder / "file").write_text("")
    with use_factor_cache(folder / "file" / "below"), pytest.warns(UserWarning, match="HF_HOME"):
        assert cached_factors(torch.randn(24, 40), GoatConfig(r=8), torch.float32).A.isfinite().all()


def test_the_folder_stays_bounded_and_the_oldest_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(24, 40) for _ in range(3)]
    for age, weight in enumerate(weights):
        cached_factors(weight, GoatConfig(r=8), torch.float32)
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, (age, age))
    size = newest.stat().st_size
    monkeypatch.setattr(factor_cache, "LARGEST_FOLDER", 2 * size)
    factor_cache.prune()
    assert len(list(folder.iterdir())) == 2 and newest.exists()


def test_a_file_that_may_only_be_read_is_used(svd_calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(24, 40)
    cached_factors(weight, GoatConfig(r=8), torch.float32)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(factor_cache.os, "utime", refuse)
    cached_factors(weight, GoatConfig(r=8), torch.float32)
    assert len(svd_calls) == 1


def test_what_killed_processes_left_goes_after_a_day(folder: Path) -> None:
    left = [folder / f".{name}{factor_cache._UNFINISHED}" for name in ("old", "new")]
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    factor_cache.prune()
    assert [path.exists() for path in left] == [False, True]
