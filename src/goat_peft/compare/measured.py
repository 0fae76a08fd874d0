"""From the runs of one task to what its methods scored, redrawn: by seed, and by example where the figure is a mean over them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..errors import UserError
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
    """One (methods, seeds, examples) of zeros and ones for each test set, or None where these are not what `values` (methods, seeds) is made of.

    Raises `UserError` for runs that were scored on different rows: a row of one has no partner in the other.
    """
    answers = [[trial.answers for trial in row] for row in runs]
    if any(found is None for row in answers for found in row):
        return None
    check_rows(runs)
    blocks = [
        np.array([[found[place].right for found in row if found is not None] for row in answers], dtype=np.float64)
        for place in range(len(answers[0][0] or []))
    ]
    return blocks if np.allclose(np.mean([block.mean(2) for block in blocks], axis=0), values, atol=1e-6) else None


def check_rows(runs: list[list[Trial]]) -> None:
    """Raise `UserError` where two of a task's runs were scored on different rows; those that do not say their answers are passed over."""
    first: Trial | None = None
    for trial in chain(*runs):
        rows = _rows(trial)
        if rows is None:
            continue
        if first is None:
            first, expected = trial, rows
        elif rows != expected:
            raise UserError(
                f"recipes={trial.task}: {trial} ({_place(trial)}) was scored on other rows than {first} ({_place(first)}); the data, or what cuts it, differs: "
                "remove the one that is out of date, a run by its folder, one known from a file by leaving that out and removing the comparison.json of this folder, which remembers it"
            )


def _rows(trial: Trial) -> list[tuple[str, int]] | None:
    return None if trial.answers is None else [(block.rows, len(block.right)) for block in trial.answers]


def _place(trial: Trial) -> str:
    return f"known from {trial.known.file}" if trial.known is not None else f"in {trial.path}"


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
    if meta is None:
        return []
    system = {name: meta["system_info"][name] for name in ("accelerator", "processor")}
    return [system | meta["package_info"]]
