"""Many programs at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .limits import DEFAULT_LIMITS, STRICT, Isolation, Limits, Verdict
from .run import run_program


@dataclass(frozen=True)
class Case:
    """A program and the tests that judge it; the fields are those of `run_program`."""

    program: str
    tests: str
    names: tuple[str, ...] = ()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_programs(
    cases: Sequence[Case],
    *,
    limits: Limits = DEFAULT_LIMITS,
    isolation: Isolation = STRICT,
    workers: int | None = None,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Verdict]:
    """Run each case in a process of its own, `workers` (one per core when not given) at a time; verdicts in order."""
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(workers or cores()) as pool:
        running = [
            pool.submit(run_program, case.program, case.tests, names=case.names, limits=limits, isolation=isolation)
            for case in cases
        ]
        try:
            for future in running:
                verdicts.append(future.result())
                done(len(verdicts), len(cases))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return verdicts
