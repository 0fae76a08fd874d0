"""What a handful of runs can say: means, spreads, and paired-bootstrap intervals of differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from scipy.stats import t as student

Floats = NDArray[np.float64]
_DRAWS = 10_000
_CHUNK = 250  # draws at a time; bounds memory to a few times chunk x examples


@dataclass(frozen=True)
class Difference:
    """A method's metric less another's: the mean, and the 95 % interval of the paired bootstrap (None without one)."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Resampled:
    """What several methods scored, on one task or on the average of several, and what they would score on redrawn seeds and examples.

    A row of `draws` is the same redraw for every method, so that a difference of two columns is a paired one.
    """

    labels: list[str]
    means: Floats  # (methods,)
    draws: Floats  # (tasks, draws, methods)
    varies: bool  # False where a value, or one of those averaged, stands alone: nothing of it can be redrawn
    freedom: tuple[int, ...]  # by task, seeds - 1: of one seed the spread is not known

    def difference(self, method: str, other: str, confidence: float = 0.95) -> Difference:
        """`method` less `other`, with its interval; raise `ValueError` for a label that is not there.

        The interval is the draws' quantiles, their distances from the mean times `t / z`: the quantile of Student's t over that of the normal,
        because a few seeds know their own spread badly. With one seed on every task nothing is stretched: the interval is that of the examples
        alone.
        """
        here, there = self.labels.index(method), self.labels.index(other)
        mean = float(self.means[here] - self.means[there])
        if not self.varies:
            return Difference(mean, None, None)
        gaps = self.draws[:, :, here] - self.draws[:, :, there]
        level = (1 + confidence) / 2
        low, high = np.quantile(gaps.mean(0), [1 - level, level])
        stretch = self._stretch(gaps.var(1), level)
        return Difference(mean, mean + stretch * float(low - mean), mean + stretch * float(high - mean))

    def _stretch(self, variances: Floats, level: float) -> float:
        """`t / z` with Welch and Satterthwaite's degrees of freedom, (sum v)^2 / sum(v^2 / f) over tasks of variance v and `freedom` f.

        A task of one seed adds to the first sum alone. The examples' share of v counts as if it were the seeds': fewer degrees, a wider interval.
        """
        doubt = sum(v**2 / f for v, f in zip(variances, self.freedom, strict=True) if f)
        return float(student.ppf(level, variances.sum() ** 2 / doubt) / norm.ppf(level)) if doubt else 1.0


def resample(labels: list[str], blocks: list[Floats], generator: np.random.Generator, draws: int = _DRAWS) -> Resampled:
    """Bootstrap the task values of all methods at once.

    Args:
        blocks: (methods, seeds, examples) each, the same seed and example in the same place for all methods. A method's value is the mean over
            blocks of the mean over seeds and examples: a task of several test sets has a block for each, one without examples a block of width 1.
        generator: drawn from; the same one for all tasks of an average, or their redraws would not be independent.

    Seeds and examples are drawn with replacement, seeds for all blocks at once, so that what makes a seed lucky or an example hard cancels in a
    difference. The variance of a plain bootstrap over n seeds is short by (n - 1) / n, so the deviations of the seeds' weights from 1 / n are
    scaled by sqrt(n / (n - 1)): a draw may weigh a seed below 0, and lie outside the values.
    """
    methods, seeds = blocks[0].shape[:2]
    found = []
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        by_seed = _unbiased(_weights(seeds, size, generator))
        total = np.zeros((size, methods, seeds))
        for block in blocks:
            examples = block.shape[2]
            by_example = _weights(examples, size, generator)
            total += (by_example @ block.reshape(-1, examples).T).reshape(size, methods, seeds)
        found.append(np.einsum("dms,ds->dm", total, by_seed) / len(blocks))
    means = np.mean([block.mean((1, 2)) for block in blocks], axis=0)
    varies = all(block.shape[1:] != (1, 1) for block in blocks)
    return Resampled(labels, means, np.concatenate(found)[None], varies, (seeds - 1,))


def average(tasks: list[Resampled]) -> Resampled:
    """The mean over tasks, for the methods that every task has; each task is redrawn on its own.

    The tasks themselves stay, so that an interval speaks of these tasks alone. A task that cannot be redrawn leaves no interval: one of the others
    would hide its spread.
    """
    labels = [label for label in tasks[0].labels if all(label in task.labels for task in tasks)]
    if not labels:
        return nothing()
    places = [[task.labels.index(label) for label in labels] for task in tasks]
    return Resampled(
        labels,
        np.mean([task.means[place] for task, place in zip(tasks, places, strict=True)], axis=0),
        np.concatenate([task.draws[:, :, place] for task, place in zip(tasks, places, strict=True)]),
        all(task.varies for task in tasks),
        sum((task.freedom for task in tasks), ()),
    )


def nothing() -> Resampled:
    """What is known of no methods at all."""
    return Resampled([], np.zeros(0), np.zeros((1, 0, 0)), False, (0,))


def paired_difference(
    method: Floats, baseline: Floats, confidence: float = 0.95, draws: int = _DRAWS, seed: int = 0
) -> Difference:
    """Bootstrap the mean of `method - baseline`, both (seeds,) or (seeds, examples), the same seed and example in the same place.

    Raises `ValueError` for arrays of different shapes.
    """
    if method.shape != baseline.shape:
        raise ValueError(
            f"method has shape {method.shape}, baseline {baseline.shape}: pair them by seed and example first."
        )
    block = np.stack([method, baseline]).astype(np.float64).reshape(2, len(method), -1)
    both = resample(["method", "baseline"], [block], np.random.default_rng(seed), draws)
    return both.difference("method", "baseline", confidence)


def _weights(count: int, draws: int, generator: np.random.Generator) -> Floats:
    """How often each of `count` things is in each of `draws` resamples of as many, as shares: (draws, count)."""
    # Counting drawn places is several times faster than NumPy's multinomial, and the same distribution.
    places = generator.integers(0, count, (draws, count)) + np.arange(draws)[:, None] * count
    return np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count) / count


def _unbiased(weights: Floats) -> Floats:
    """Shares (draws, count) with their deviations from an even share scaled, so that a weighted mean varies by s^2 / count; one thing stays as it is."""
    count = weights.shape[1]
    return 1 / count + (weights - 1 / count) * (count / (count - 1)) ** 0.5 if count > 1 else weights


def spread(values: list[float]) -> float | None:
    """Standard deviation over seeds (n - 1 in the denominator); None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def ranks(values: list[float | None]) -> list[float | None]:
    """Rank of each value, 1 for the largest; ties share the mean rank, None stays None."""
    known = [value for value in values if value is not None]
    found = iter(rankdata([-value for value in known], method="average").tolist())
    return [None if value is None else next(found) for value in values]
