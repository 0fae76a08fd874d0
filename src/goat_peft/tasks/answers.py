"""Answers in texts: found by regular expressions, compared as text or as numbers; what is not found is None, never 0."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..recipes.schema import Strict

# 12, -3.50, .5, 1,234,567 or 1,234.5; a comma elsewhere parts two numbers and makes none.
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?", re.ASCII)


def compiles(pattern: str) -> str:
    """Return the pattern, or raise ValueError when it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]


class Extraction(Strict):
    """One way to find an answer."""

    pattern: Pattern = Field(description="regular expression; its first group (or the whole match) is the answer")
    which: Literal["first", "last"] = Field("first", description="which match counts")


def _blocks(value: Any) -> Any:
    """Let a bare pattern stand for a list of one, and a pattern in a list for a block."""
    listed = value if isinstance(value, list) else [value]
    return [{"pattern": item} if isinstance(item, str) else item for item in listed]


Extractions = Annotated[list[Extraction], BeforeValidator(_blocks)]


def find(text: str, ways: list[Extraction], ignore_case: bool = False) -> str | None:
    """Return the answer that the first of the ways to match finds, without spaces around it; None when none matches."""
    for way in ways:
        found = list(re.finditer(way.pattern, text, re.IGNORECASE if ignore_case else 0))
        if found:
            match = found[0 if way.which == "first" else -1]
            return ((match.group(1) or "") if match.re.groups else match.group(0)).strip() or None
    return None


def as_number(text: str) -> Decimal | None:
    """Read a number as people write it, `$1,234.50` or `-3`, with a full stop or a per cent sign behind; None for anything else."""
    bare = text.strip().removesuffix(".").removesuffix("%").replace("$", "").replace("\N{MINUS SIGN}", "-").strip()
    if not any(c in "0123456789" for c in bare) or not NUMBER.fullmatch(bare):
        return None
    return Decimal(bare.replace(",", ""))


def same_number(first: Decimal, second: Decimal, tolerance: float) -> bool:
    """Whether two numbers differ by no more than `tolerance`."""
    return abs(first - second) <= Decimal(str(tolerance))
