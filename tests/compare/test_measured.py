"""What a task's figures are redrawn over, from what its runs say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from goat_peft.compare.answers import Answers
from goat_peft.compare.measured import Measured, measure
from goat_peft.errors import UserError


@dataclass
class Run:
    """A trial as far as it is looked at."""

    value: float | None
    right: list[list[bool]] | None = None
    rows: str = "these"
    task = "reviews"
    known = None
    path = "runs/here"

    def outcome(self) -> Any:
        return self

    @property
    def answers(self) -> list[Answers] | None:
        return None if self.right is None else [Answers(self.rows, block) for block in self.right]


def measured(runs: dict[str, list[Run]]) -> Measured:
    return measure(runs, np.random.default_rng(0))  # type: ignore[arg-type]


def test_a_share_of_right_rows_is_redrawn_by_row_and_another_figure_by_seed() -> None:
    rows = [[[True, False, True, True]], [[True, True, True, True]]]
    shares = {"a": [Run(0.75, rows[0]), Run(1.0, rows[1])], "b": [Run(1.0, rows[1]), Run(0.75, rows[0])]}
    assert measured(shares).over == "seeds and examples"
    correlations = {"a": [Run(0.6, rows[0]), Run(1.0, rows[1])], "b": [Run(1.0, rows[1]), Run(0.6, rows[0])]}
    found = measured(correlations)
    assert found.over == "seeds" and found.scores.means == pytest.approx([0.8, 0.8])
    # Two seeds' draws lie sqrt(2) as far from the mean as the seeds: a plain bootstrap has half the variance it should have.
    assert sorted({*found.scores.draws[0, :, 0].round(6)}) == pytest.approx(
        [0.8 - 0.2 * 2**0.5, 0.8, 0.8 + 0.2 * 2**0.5]
    )
    assert measured({**shares, "c": [Run(0.5), Run(0.5)]}).over == "seeds"  # one that does not say


@pytest.mark.parametrize("other", [Run(0.5, [[True, False]], "others"), Run(1.0, [[True]]), Run(1.0, [[True] * 2] * 2)])
def test_runs_on_other_rows_are_not_paired(other: Run) -> None:
    with pytest.raises(
        UserError, match="^recipes=reviews: .*in runs/here.* was scored on other rows than .*the data, or"
    ):
        measured({"a": [Run(0.5, [[True, False]])], "b": [other]})


def test_an_average_of_tests_weighs_each_test_alike() -> None:
    right = [[True, False], [True] * 8]
    found = measured({"a": [Run(0.75, right)], "b": [Run(0.5, [[False, False], [True] * 8])]})
    assert found.scores.means == pytest.approx([0.75, 0.5])
    assert found.over == "examples" and {*found.scores.draws[0, :, 0].round(6)} == {0.5, 0.75, 1.0}


def test_a_method_with_a_failed_run_is_left_out() -> None:
    found = measured({"a": [Run(0.5), Run(0.6)], "b": [Run(0.5), Run(None)], "c": []})
    assert found.scores.labels == ["a"]
    assert measured({"b": [Run(None)]}).scores.labels == []


def test_one_seed_is_redrawn_by_row_or_not_at_all() -> None:
    assert measured({"a": [Run(0.5, [[True, False]])], "b": [Run(1.0, [[True, True]])]}).over == "examples"
    found = measured({"a": [Run(0.6)], "b": [Run(0.4)]})
    assert found.over is None and found.scores.difference("a", "b").low is None
