"""The figures that a comparison quotes."""

from __future__ import annotations

import numpy as np
import pytest

from goat_peft.compare.statistics import paired_difference, ranks, spread


def test_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        hard = generator.random(150)  # shared by both methods: a hard example is hard for both
        baseline = (hard < 0.6).astype(float)[None]
        method = np.where(generator.random(150) < 0.2, 1.0, baseline)  # true gain: 0.2 * 0.4
        found = paired_difference(method, baseline, draws=500, seed=trial)
        hits += found.low <= 0.08 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_cancels_what_is_shared() -> None:
    generator = np.random.default_rng(1)
    lucky = generator.normal(0, 1, 8)
    found = paired_difference(lucky + 0.5 + generator.normal(0, 0.01, 8), lucky)
    assert 0.48 < found.low <= found.mean <= found.high < 0.52


def test_spread_over_seeds_widens_the_interval() -> None:
    examples = np.zeros((4, 100))
    same, varied = examples.copy(), examples.copy()
    same[:, :20] = 1
    for seed, number in enumerate((0, 10, 30, 40)):
        varied[seed, :number] = 1
    narrow, wide = paired_difference(same, examples), paired_difference(varied, examples)
    assert narrow.mean == pytest.approx(wide.mean) == pytest.approx(0.2)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_one_value_has_no_interval_and_shapes_must_agree() -> None:
    assert paired_difference(np.array([0.7]), np.array([0.5])).low is None
    assert spread([0.5]) is None and spread([0.0, 1.0]) == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="pair them"):
        paired_difference(np.zeros(2), np.zeros(3))


def test_ranks_share_ties_and_skip_what_failed() -> None:
    assert ranks([0.5, None, 0.9, 0.5]) == [2.5, None, 1.0, 2.5]
