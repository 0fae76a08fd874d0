"""The figures that a comparison quotes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from goat_peft.compare.statistics import Floats, Resampled, average, paired_difference, ranks, resample, spread


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


def closed_form(gaps: Floats) -> float:
    """Variance of w' gaps v, exact, without a draw: w and v are shares of multinomial redraws of rows and columns, w's covariance made unbiased."""
    moments = []
    for count, unbiased in zip(gaps.shape, (gaps.shape[0] / (gaps.shape[0] - 1), 1), strict=True):
        covariance = unbiased * (np.eye(count) - 1 / count) / count**2
        moments.append(covariance + 1 / count**2)
    return float(np.trace(moments[0] @ gaps @ moments[1] @ gaps.T) - gaps.mean() ** 2)


def scores(generator: np.random.Generator, seeds: int, examples: int) -> Floats:
    """Right answers of four methods, of which seeds are lucky and examples hard together: (4, seeds, examples)."""
    skill = np.array([0.6, 0.62, 0.68, 0.7])[:, None, None] + generator.normal(0, 0.05, (4, seeds, 1))
    return (generator.random((4, seeds, examples)) * 0.5 + generator.random(examples) * 0.5 < skill).astype(float)


def test_every_pair_of_an_average_has_the_spread_of_the_closed_form_and_the_interval_of_its_normal() -> None:
    generator = np.random.default_rng(2)
    labels = ["a", "b", "c", "d"]
    tests = [scores(generator, 5, 120), scores(generator, 5, 40)]  # one task of two test sets, the same seeds
    blocks = [[scores(generator, 5, 200)], [generator.normal(0.7, 0.03, (4, 6, 1))], tests]
    draw = np.random.default_rng(3)
    tasks = [resample(labels, block, draw) for block in blocks]
    suite = average(tasks)
    for one, other in ((1, 0), (3, 2), (0, 3)):
        gaps = [[values[one] - values[other] for values in block] for block in blocks]
        mean = np.mean([np.mean([gap.mean() for gap in task]) for task in gaps])
        # Of the two test sets side by side, each redrawn on its own: by simulation, one draw at a time.
        last = []
        for _ in range(4000):
            seeds = generator.integers(0, 5, 5)
            rows = [generator.integers(0, gap.shape[1], gap.shape[1]) for gap in gaps[2]]
            drawn, still = (
                np.mean([gap[np.ix_(chosen, own)].mean() for gap, own in zip(gaps[2], rows, strict=True)])
                for chosen in (seeds, np.arange(5))
            )
            last.append(still + (5 / 4) ** 0.5 * (drawn - still))
        variances = [closed_form(gaps[0][0]), closed_form(gaps[1][0]), float(np.var(last))]
        sd = sum(variances) ** 0.5 / 3
        found = suite.difference(labels[one], labels[other])
        assert found.mean == pytest.approx(mean)
        draws = suite.draws.mean(0)
        assert (draws[:, one] - draws[:, other]).std() == pytest.approx(sd, rel=0.05)
        assert suite.freedom == (4, 5, 4)
        freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, suite.freedom, strict=True))
        half = student.ppf(0.975, freedom) * sd
        assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.2 * sd)


def test_a_pair_among_many_has_the_interval_of_the_two_alone() -> None:
    values = scores(np.random.default_rng(4), 4, 150)
    found = resample(["a", "b", "c", "d"], [values], np.random.default_rng(5)).difference("d", "a")
    alone = paired_difference(values[3], values[0])
    assert found.mean == pytest.approx(alone.mean)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.1 * (alone.high - alone.low))


def test_a_method_missing_on_a_task_is_in_no_average() -> None:
    draw = np.random.default_rng(0)
    values = scores(draw, 2, 10)
    tasks = [resample(["a", "b", "c", "d"], [values], draw), resample(["d", "a"], [values[[3, 0]]], draw)]
    suite = average(tasks)
    assert suite.labels == ["a", "d"]
    assert suite.means == pytest.approx(values.mean((1, 2))[[0, 3]])
    assert average([tasks[0], resample([], [values[:0]], draw)]).labels == []


def test_the_tasks_of_an_average_are_redrawn_on_their_own() -> None:
    gaps = np.array([0.0, 0.1, 0.4, 0.2])
    values = np.stack([gaps, np.zeros(4)])[:, :, None]
    draw = np.random.default_rng(0)
    suite = average([resample(["a", "b"], [values], draw) for _ in range(4)])
    # The mean of 4 seeds has a variance of var / 4, that of 4 such tasks a fourth of it again: seeds drawn alike for all would leave it whole.
    assert suite.draws.mean(0)[:, 0].std() == pytest.approx((gaps.var(ddof=1) / 4 / 4) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("seeds", "spreads"),
    [((5,), (1,)), ((3,), (1,)), ((5, 5, 5, 5), (1, 1, 1, 1)), ((3, 5, 5, 5), (18, 2, 1, 2))],
)
def test_intervals_over_few_seeds_cover_as_often_as_they_say(
    seeds: tuple[int, ...], spreads: tuple[float, ...]
) -> None:
    generator = np.random.default_rng(6)
    labels = [*map(str, range(500)), "zero"]  # 500 trials at once, each a method of no true difference to `zero`
    hits = []
    for _ in range(6):
        blocks = [np.zeros((501, count, 1)) for count in seeds]
        for block, sd in zip(blocks, spreads, strict=True):
            block[:-1] = generator.normal(0, sd, (500, block.shape[1], 1))
        suite = average([resample(labels, [block], generator, draws=400) for block in blocks])
        found = [suite.difference(label, "zero") for label in labels[:-1]]
        hits += [gap.low <= 0 <= gap.high for gap in found]
    assert 0.92 <= np.mean(hits) <= 0.98


def stretched(suite: Resampled) -> float:
    """How much wider the interval of `a` less `b` is than the quantiles of its draws."""
    found, draws = suite.difference("a", "b"), suite.draws.mean(0)
    low, high = np.quantile(draws[:, 0] - draws[:, 1], [0.025, 0.975])
    return (found.high - found.low) / (high - low)


@pytest.mark.parametrize(
    ("seeds", "spreads", "t"),
    [
        ((5, 5, 5, 5), (1, 1, 1, 1), 2.120),  # equal spreads: the sum, 16 degrees of freedom
        ((5, 5, 5, 5), (50, 1, 1, 1), 2.776),  # one task has nearly all of the spread: its own 4
        ((3, 5, 5, 5), (1, 50, 1, 1), 2.776),
        ((3, 5, 5, 5), (50, 1, 1, 1), 4.303),  # 2
        ((5, 5), (2, 1), 2.459),  # (4 + 1)^2 / (16 / 4 + 1 / 4) = 5.88
    ],
)
def test_an_average_has_the_freedom_of_the_tasks_that_spread(
    seeds: tuple[int, ...], spreads: tuple[float, ...], t: float
) -> None:
    draw = np.random.default_rng(8)
    tasks = []
    for count, sd in zip(seeds, spreads, strict=True):
        gaps = np.linspace(-1, 1, count)
        gaps *= sd * (5 / count) ** -0.5 / gaps.std(ddof=1)  # so that the means of 3 and 5 seeds spread alike
        tasks.append(resample(["a", "b"], [np.stack([gaps, np.zeros(count)])[:, :, None]], draw))
    assert stretched(average(tasks)) == pytest.approx(t / 1.960, rel=0.01)


def test_a_task_of_one_seed_adds_spread_and_takes_no_freedom() -> None:
    draw = np.random.default_rng(9)
    rows = np.stack([np.tile([1.0, -1.0], 50), np.zeros(100)])[:, None]  # the mean of 100 has a variance of 1 / 100
    gaps = np.array([-1.0, -1.0, 0.0, 1.0, 1.0]) / 20**0.5  # that of 5 as well
    lone, several = (resample(["a", "b"], [block], draw) for block in (rows, np.stack([gaps, np.zeros(5)])[:, :, None]))
    assert stretched(lone) == stretched(average([lone, lone])) == pytest.approx(1)
    assert stretched(average([lone, several])) == pytest.approx(2.120 / 1.960, rel=0.01)  # 2^2 / (1 / 4) = 16
    same = average([resample(["a", "b"], [np.ones((2, 3, 1))], draw)] * 2).difference("a", "b")
    assert (same.low, same.high) == pytest.approx((0, 0))


def test_an_average_with_a_task_that_cannot_be_redrawn_has_no_interval() -> None:
    draw = np.random.default_rng(0)
    labels = ["a", "b", "c", "d"]
    known, lone = (resample(labels, [draw.normal(0, 1, (4, seeds, 1))], draw) for seeds in (5, 1))
    assert known.difference("a", "b").low is not None
    assert average([known, lone]).difference("a", "b").low is None


def test_one_seed_has_the_interval_of_its_examples_unstretched() -> None:
    values = scores(np.random.default_rng(7), 1, 200)
    found, gaps = paired_difference(values[3], values[0]), (values[3] - values[0])[0]
    assert found.high - found.low == pytest.approx(2 * 1.96 * gaps.std() / 200**0.5, rel=0.05)
