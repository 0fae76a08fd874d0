"""The one exception a user of the command sees as a single line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot work; `str(error)` is one or more lines, each naming field, value and remedy."""


def closest(name: str, valid: Iterable[str]) -> str:
    """Say which valid names come nearest to `name`: `did you mean "r"?` or, when none is near, the whole list."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.55)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an exception's text, or its class name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
