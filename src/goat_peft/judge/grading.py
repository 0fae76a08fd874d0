"""Grading: every answer judged as often as wanted, several at once, continued where an earlier run stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from . import prompts
from .endpoint import Endpoint, Failed
from .inputs import Item
from .log import Log

# A judge that fails this often before its first success will not succeed at all.
HOPELESS = 5


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        done: judgements there are, those of earlier runs included.
        total: judgements wanted.
        earlier: judgements that earlier runs left.
        failed: judgements given up in this run.
        malformed: replies without a rating, of all runs.
        retries: tries repeated in this run after errors of the endpoint.
        trouble: the last such error.
        prompt_tokens: tokens sent for these answers by all runs, as the endpoint counted them.
        completion_tokens: tokens received, likewise.
    """

    done: int = 0
    total: int = 0
    earlier: int = 0
    failed: int = 0
    malformed: int = 0
    retries: int = 0
    trouble: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


Watch = Callable[[Tally], None]


@dataclass(frozen=True)
class Graded:
    """What the judge said.

    Attributes:
        judgements: per item, its rated replies in the order of their sample.
        failures: why judgements are missing: rows of question_id, turn, sample, error.
        tally: counts.
    """

    judgements: list[list[dict[str, Any]]]
    failures: list[dict[str, Any]]
    tally: Tally = field(default_factory=Tally)


def grade(
    items: list[Item],
    endpoint: Endpoint,
    log: Log,
    samples: int = 1,
    concurrency: int = 4,
    asks: int = 3,
    watch: Watch = lambda tally: None,
) -> Graded:
    """Ask the judge for every missing judgement and return all of them.

    Args:
        items: the answers.
        endpoint: the judge; closed on return.
        log: replies of earlier runs; new ones are added as they come.
        samples: judgements per answer.
        concurrency: requests under way at once.
        asks: replies asked for one judgement until one holds a rating.
        watch: called after every change of the counts.

    Raises:
        UserError: the endpoint refuses every request, or none of the first ones succeeded.
        KeyboardInterrupt: Ctrl-C; replies that came in are in the log.
    """
    session = _Session(items, endpoint, log, samples, asks, watch)
    asyncio.run(session.run(concurrency))
    return session.graded()


class _Session:
    """State that the workers of one run share; they run in one thread."""

    def __init__(self, items: list[Item], endpoint: Endpoint, log: Log, samples: int, asks: int, watch: Watch) -> None:
        self.items, self.endpoint, self.log, self.samples, self.asks = items, endpoint, log, samples, asks
        self.watch = watch
        self.failures: list[dict[str, Any]] = []
        self.rated: dict[tuple[str, int], dict[str, Any]] = {}
        self.tally = Tally(total=len(items) * samples)
        keys = {item.key for item in items}
        for row in log.rows:
            if row["key"] in keys:
                self._count(row)
        self.tally.earlier = self.tally.done
        self.succeeded = self.tally.done > 0

    async def run(self, concurrency: int) -> None:
        """Work through what is missing."""
        self.watch(self.tally)
        jobs = iter([(item, i) for i in range(self.samples) for item in self.items if (item.key, i) not in self.rated])
        refused: UserError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work(jobs))
        except* UserError as errors:
            refused = next(error for error in errors.exceptions if isinstance(error, UserError))
        finally:
            await self.endpoint.close()
        if refused is not None:
            raise refused

    async def _work(self, jobs: Iterator[tuple[Item, int]]) -> None:
        for item, sample in jobs:
            try:
                await self._judge(item, sample)
                self.succeeded = True
            except Failed as error:
                self.failures.append(
                    {"question_id": item.question_id, "turn": item.turn, "sample": sample, "error": str(error)}
                )
                self.tally.failed += 1
                if not self.succeeded and self.tally.failed >= HOPELESS:
                    raise UserError(
                        f"--endpoint={self.endpoint.url}: the first {HOPELESS} requests all failed, the last one with: {error}"
                    ) from None
            self.watch(self.tally)

    async def _judge(self, item: Item, sample: int) -> None:
        """Ask until a reply holds a rating; every reply goes to the log."""
        for _ in range(self.asks):
            reply = await self.endpoint.ask(item.messages, self._retried)
            row = {
                "key": item.key,
                "question_id": item.question_id,
                "turn": item.turn,
                "sample": sample,
                "rating": prompts.rating(reply.text),
                "reply": reply.text,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
                "time": time.time(),
            }
            self.log.add(row)
            self._count(row)
            if row["rating"] is not None:
                return
        raise Failed(f"no rating from 1 to 10 in {self.asks} replies")

    def _retried(self, trouble: str) -> None:
        self.tally.retries += 1
        self.tally.trouble = trouble
        self.watch(self.tally)

    def _count(self, row: dict[str, Any]) -> None:
        place = (row["key"], row["sample"])
        self.tally.malformed += row["rating"] is None
        if row["rating"] is not None and row["sample"] < self.samples and place not in self.rated:
            self.rated[place] = row
            self.tally.done += 1
        self.tally.prompt_tokens += row["prompt_tokens"]
        self.tally.completion_tokens += row["completion_tokens"]

    def graded(self) -> Graded:
        """Collect the judgements in the items' order."""
        found = [
            [self.rated[item.key, sample] for sample in range(self.samples) if (item.key, sample) in self.rated]
            for item in self.items
        ]
        return Graded(found, self.failures, self.tally)
