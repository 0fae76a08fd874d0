"""A disk that takes no more: one line that says what was kept and how to go on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from ..errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Safetensors puts the system's number into its text; torch's own writer only says that writing failed.
TEXTS = (
    *(f"os error {number}" for number in NO_ROOM),
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
)


@contextmanager
def full_disk_explained(field: str, way_on: Callable[[], str]) -> Iterator[None]:
    """Turn a failure to write for want of room into a `UserError`.

    Args:
        field: what was written to, `output_dir=PATH`.
        way_on: called then; tidies up if need be and says what to do once there is room.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _has_no_room(error):
            raise
        raise UserError(f"{field}: the disk is full, or a limit on the size of files is reached; {way_on()}") from error


def _has_no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that nothing more could be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        if any(text in str(error) for text in TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False
