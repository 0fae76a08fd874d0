"""What a handful of runs can say: means, spreads, and paired-bootstrap intervals of differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
_DRAWS = 10_000
_CHUNK = 500  # draws at a time; bounds memory to chunk x examples


@dataclass(frozen=True)
class Difference:
    """A method's metric less the baseline's: the mean, and the 95 % percentile interval of the paired bootstrap (None without one)."""

    mean: float
    low: float | None
    high: float | None


def paired_difference(
    method: Floats, baseline: Floats, confidence: float = 0.95, draws: int = _DRAWS, seed: int = 0
) -> Difference:
    """Bootstrap the mean of `method - baseline`, both (seeds,) or (seeds, examples), the same seed and example in the same place.

    Seeds and examples are drawn with replacement, each draw for both methods at once, so that what makes a seed lucky or an example hard cancels.
    A single value gives no interval. Two or three seeds give a rough one: it cannot show spread that so few runs do not have.

    Raises `ValueError` for arrays of different shapes.
    """
    return mean_difference([(method, baseline)], confidence, draws, seed)


def mean_difference(
    pairs: list[tuple[Floats, Floats]], confidence: float = 0.95, draws: int = _DRAWS, seed: int = 0
) -> Difference:
    """Bootstrap the mean over tasks of each task's mean of `method - baseline`; a task is a pair as `paired_difference` takes.

    Each draw redraws the seeds and examples of every task on its own; the tasks themselves stay, so that the interval speaks of these tasks alone.
    """
    generator = np.random.default_rng(seed)
    gaps = [_gaps(method, baseline) for method, baseline in pairs]
    mean = float(np.mean([gap.mean() for gap in gaps]))
    if all(gap.size == 1 for gap in gaps):
        return Difference(mean, None, None)
    found = np.mean([_draws(gap, draws, generator) for gap in gaps], axis=0)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(mean, float(low), float(high))


def _gaps(method: Floats, baseline: Floats) -> Floats:
    """`method - baseline` as (seeds, examples)."""
    if method.shape != baseline.shape:
        raise ValueError(
            f"method has shape {method.shape}, baseline {baseline.shape}: pair them by seed and example first."
        )
    return (method - baseline).reshape(len(method), -1).astype(np.float64)


def _draws(gaps: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Means of `gaps` (seeds, examples) over `draws` resamples of its rows and columns."""
    seeds, examples = gaps.shape
    found = []
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size) / seeds
        by_example = generator.multinomial(examples, np.full(examples, 1 / examples), size) / examples
        found.append(((by_seed @ gaps) * by_example).sum(1))
    return np.concatenate(found)


def spread(values: list[float]) -> float | None:
    """Standard deviation over seeds (n - 1 in the denominator); None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def ranks(values: list[float | None]) -> list[float | None]:
    """Rank of each value, 1 for the largest; ties share the mean rank, None stays None."""
    known = [value for value in values if value is not None]
    found = iter(rankdata([-value for value in known], method="average").tolist())
    return [None if value is None else next(found) for value in values]
