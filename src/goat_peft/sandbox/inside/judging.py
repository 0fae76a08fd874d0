"""Running a program and its tests in one interpreter, so that an honest mistake of the program cannot pass for success.

The tests see the built-in functions as they were before the program ran, and of the program's names only those that do
not hide one of them. Success is not a value that the program could hold: after the last test the parent is asked for a
token, which then goes back to it. Python has no walls inside one process, though: a program written against this very
file can still reach its variables and forge a pass. It cannot reach anything outside the process.
"""

from __future__ import annotations

import builtins
import errno
import os
import sys
from types import ModuleType

PROGRAM, TESTS = "<program>", "<tests>"
NOT_ALLOWED = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EFBIG, errno.EMFILE}


def judge(program: str, tests: str, names: frozenset[str], incoming: int, outgoing: int) -> None:
    """Run both, report on `outgoing` and end the process: it never returns.

    Args:
        program: source to be judged.
        tests: source that raises when the program is wrong.
        names: names that the tests take from the program even though a built-in function has the same.
        incoming, outgoing: descriptors to and from the parent.
    """
    # All that decides is fetched before the program can put something else in its place.
    run, read, write, leave = exec, os.read, os.write, os._exit
    pristine = dict(vars(builtins))
    done = message("done", "")
    checks = compile(tests, TESTS, "exec")
    reserve = bytearray(1 << 22)  # to tell of a failure when the program has taken all memory
    try:
        space = _run(program)
        seen = {name: value for name, value in space.items() if name in names or name not in pristine}
        run(checks, {**seen, "__builtins__": pristine})
    except BaseException as error:  # noqa: BLE001 - whatever it raises, also to end the process, is its failure
        reserve.clear()
        write(outgoing, message(*describe(error, tests)))
        leave(0)
    write(outgoing, done)
    write(outgoing, read(incoming, 64))
    leave(0)


def message(state: str, text: str) -> bytes:
    """One line to the parent."""
    return " ".join([state, *text.split()]).encode("utf-8", "replace") + b"\n"


def _run(program: str) -> dict[str, object]:
    """Run the program as a module of its own and return its names."""
    module = ModuleType("program")
    # Classes and dataclasses look their module up here; and the checker's own modules are not in plain sight.
    sys.modules["program"] = sys.modules["__main__"] = module
    for name in ("calls", "child", "judging", "landlock", "privileges", "seccomp"):
        sys.modules.pop(name, None)
    exec(compile(program, PROGRAM, "exec"), module.__dict__)  # noqa: S102 - what this process is for
    return module.__dict__


def describe(error: BaseException, tests: str) -> tuple[str, str]:
    """Say how a program failed: its outcome, and a text of at most 300 characters."""
    kind = type(error).__name__
    text = f"{kind}: {error}" if str(error) else kind
    if isinstance(error, AssertionError) and not str(error):
        line, place = 0, error.__traceback__
        while place is not None:
            line = place.tb_lineno if place.tb_frame.f_code.co_filename == TESTS else line
            place = place.tb_next
        text = f"{kind}: {tests.splitlines()[line - 1].strip()}" if line else kind
    text = text[:300]
    if isinstance(error, AssertionError):
        return "failed", text
    if isinstance(error, MemoryError):
        return "memory", text
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
        return "forbidden", text
    if isinstance(error, SystemExit):
        return "crash", "ended itself before its tests had passed"
    return "error", text
