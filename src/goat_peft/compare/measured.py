"""From the runs of one task to what its methods scored, redrawn: by seed, and by example where the figure is a mean over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .statistics import Floats, Resampled, nothing, resample
from .trials import Trial


@dataclass(frozen=True)
class Measured:
    """The methods of a task whose every run ended well, and what their values were redrawn over (None where nothing can be)."""

    scores: Resampled
    over: str | None


def measure(trials: dict[str, list[Trial]], generator: np.random.Generator) -> Measured:
    """Resample one task's methods, given by label with the same seeds in the same places; a method with a failed run is left out.

    Examples are redrawn where every run says which of them were right and the mean over test sets of the share of right ones is its value: so for
    accuracy, exact match and their average over several tests, and not for Matthews correlation.
    """
    values = {label: [trial.outcome().value for trial in runs] for label, runs in trials.items()}
    whole = [label for label, found in values.items() if found and None not in found]
    by_seed = np.array([values[label] for label in whole], dtype=np.float64)
    if not whole:
        return Measured(nothing(), None)
    blocks = _examples([trials[label] for label in whole], by_seed)
    over = [*(["seeds"] if by_seed.shape[1] > 1 else []), *(["examples"] if blocks else [])]
    return Measured(resample(whole, blocks or [by_seed[:, :, None]], generator), " and ".join(over) or None)


def _examples(runs: list[list[Trial]], values: Floats) -> list[Floats] | None:
    """One (methods, seeds, examples) of zeros and ones for each test set, or None where these are not what `values` (methods, seeds) is made of."""
    correct = [[trial.correct() for trial in row] for row in runs]
    if any(found is None for row in correct for found in row):
        return None
    shapes = {tuple(len(block) for block in found) for row in correct for found in row if found is not None}
    if len(shapes) != 1:
        return None
    blocks = [
        np.array([[found[place] for found in row if found is not None] for row in correct], dtype=np.float64)
        for place in range(len(next(iter(shapes))))
    ]
    return blocks if np.allclose(np.mean([block.mean(2) for block in blocks], axis=0), values, atol=1e-6) else None


def ran_on(trials: list[Trial]) -> list[dict[str, str | None]]:
    """Accelerator and package versions of the runs, each set once: a comparison may be summed up on another machine than it ran on."""
    found: list[dict[str, str | None]] = []
    for trial in trials:
        found += [place for place in _places(trial) if place not in found]
    return found


def _places(trial: Trial) -> list[dict[str, str | None]]:
    if trial.known is not None:
        return trial.known.places
    meta = trial.outcome().result.get("meta_info")
    return [] if meta is None else [{"accelerator": meta["system_info"]["accelerator"], **meta["package_info"]}]
