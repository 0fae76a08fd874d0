"""The judge's prompts: FastChat's single-answer grading, and how a rating is read out of a reply.

The texts lie in `prompts.json`, with their source and licence: the protocol is its wording.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

# Categories graded against a reference answer.
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
LOWEST, HIGHEST = 1.0, 10.0
# Tried one after the other; the first match of the first pattern that matches counts.
PATTERNS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """One grading prompt.

    Attributes:
        name: FastChat's name for it.
        system: system message.
        user: template of the user message.
    """

    name: str
    system: str
    user: str

    def messages(self, questions: list[str], answers: list[str], references: list[str]) -> list[Message]:
        """Fill the prompt with a conversation's turns up to the graded one."""
        names = {"question": questions[0], "answer": answers[0]}
        for kind, texts in (("question", questions), ("answer", answers), ("ref_answer", references)):
            names |= {f"{kind}_{number}": text for number, text in enumerate(texts, start=1)}
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user.format(**names)}]


def choose(category: str, turn: int) -> Prompt:
    """Return the prompt that grades turn 1 or 2 of a question of this category."""
    name = "single-math-v1" if category in WITH_REFERENCE else "single-v1"
    if turn == 2:
        name += "-multi-turn"
    return Prompt(name, **_texts()[name])


def rating(reply: str) -> float | None:
    """Return the rating in a judge's reply, or None when there is none from 1 to 10."""
    for pattern in PATTERNS:
        found = pattern.search(reply)
        if found:
            value = float(found.group(1))
            return value if LOWEST <= value <= HIGHEST else None
    return None


@cache
def _texts() -> dict[str, dict[str, str]]:
    text = (resources.files(__package__) / "prompts.json").read_text(encoding="utf-8")
    return json.loads(text)["prompts"]
