"""Figures of a grading: means over questions with their standard errors, and the judge's own spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from .grading import Graded
from .inputs import Item

Figures = dict[str, Any]


def summarise(items: list[Item], graded: Graded, samples: int) -> Figures:
    """Turn judgements into the figures of a result file.

    An answer's score is the mean of its judgements, a question's the mean of its answers, and every other figure a mean
    over questions. Judgements that failed are in no mean: they are counted.

    Returns:
        `score`, `standard_error`, `questions` overall, in `turns` and in `categories` (None where nothing was graded);
        `judge_sd`, the standard deviation between judgements of one answer, pooled over answers (None with one judgement
        each); `answers`, one row per item; `failures`; `counts`.
    """
    answers = [_answer(item, rows) for item, rows in zip(items, graded.judgements, strict=True)]
    variances = [row["sd"] ** 2 for row in answers if row["sd"] is not None]
    tally = graded.tally
    return {
        **_figures(answers),
        "judge_sd": statistics.fmean(variances) ** 0.5 if variances else None,
        "turns": {str(turn): _figures(_where(answers, "turn", turn)) for turn in _values(answers, "turn")},
        "categories": {name: _figures(_where(answers, "category", name)) for name in _values(answers, "category")},
        "counts": {
            "answers": len(items),
            "samples": samples,
            "judgements": tally.done,
            "failed": tally.total - tally.done,
            "malformed_replies": tally.malformed,
            "retries": tally.retries,
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
        },
        "answers": answers,
        "failures": graded.failures,
    }


def fastchat_rows(items: list[Item], graded: Graded, model: str, judge: str) -> list[dict[str, Any]]:
    """Judgements as FastChat writes them, one row each; its `show_result` averages over the rows of a turn."""
    return [
        {
            "question_id": item.question_id,
            "model": model,
            "judge": [judge, item.prompt],
            "user_prompt": item.messages[-1]["content"],
            "judgment": row["reply"],
            "score": row["rating"],
            "turn": item.turn,
            "tstamp": row["time"],
        }
        for item, rows in zip(items, graded.judgements, strict=True)
        for row in rows
    ]


def _answer(item: Item, rows: list[dict[str, Any]]) -> Figures:
    ratings = [row["rating"] for row in rows]
    return {
        "question_id": item.question_id,
        "category": item.category,
        "turn": item.turn,
        "prompt": item.prompt,
        "ratings": ratings,
        "score": statistics.fmean(ratings) if ratings else None,
        "sd": statistics.stdev(ratings) if len(ratings) > 1 else None,
    }


def _figures(answers: Iterable[Figures]) -> Figures:
    """Mean over questions and its standard error, sd / sqrt(n)."""
    by_question: dict[int, list[float]] = {}
    for row in answers:
        if row["score"] is not None:
            by_question.setdefault(row["question_id"], []).append(row["score"])
    scores = [statistics.fmean(values) for values in by_question.values()]
    return {
        "score": statistics.fmean(scores) if scores else None,
        "standard_error": statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
        "questions": len(scores),
    }


def _where(answers: list[Figures], field: str, value: Any) -> list[Figures]:
    return [row for row in answers if row[field] == value]


def _values(answers: list[Figures], field: str) -> list[Any]:
    return list(dict.fromkeys(row[field] for row in answers))
