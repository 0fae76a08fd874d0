"""The sandboxed side: read one job, give up everything it does not need, run it, tell how it ended.

Imported by `python -s -S -c` with an environment of its own. It imports little, not even json, since every program pays
for it: the job comes as one line of Python on standard input, where later the answer to `done` comes too. Lines of
standard output are a state and a text: `ready`, then `done` or a failure.
"""

from __future__ import annotations

import os
import sys

import judging
import landlock
import privileges
import seccomp


def main() -> None:
    """Take the job from the parent and never return."""
    incoming, outgoing = os.dup(0), os.dup(1)
    with open(os.devnull, "r+b", buffering=0) as nowhere:
        for number in (0, 1, 2):
            os.dup2(nowhere.fileno(), number)
    job = eval(_line(incoming))  # the words of the parent, none of a program
    try:
        in_force = confine(job)
    except OSError as error:
        os.write(outgoing, judging.message("unconfined", str(error)))
        os._exit(1)
    os.write(outgoing, judging.message("ready", " ".join(in_force)))
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)] + job["packages"]
    sys.dont_write_bytecode = True
    judging.judge(job["program"], job["tests"], frozenset(job["names"]), incoming, outgoing)


def confine(job: dict) -> list[str]:
    """Put every layer of isolation that the job asks for in force, and return which are; order matters.

    Raises `OSError` when the job is strict and a layer that it cannot do without is missing.
    """
    strict, asked, in_force = job["strict"], job["layers"], []
    os.umask(0o077)
    os.chdir(job["folder"])
    privileges.set_limits(job["limits"], must=strict)
    if job["user"] is not None:
        privileges.become(job["user"])
        in_force.append("user")
    try:
        privileges.give_up()
        may_write = "landlock" in asked and landlock.version() >= landlock.BOUNDS_WRITES
        if "landlock" in asked and landlock.version() > 0:
            landlock.restrict(job["readable"], job["folder"])
            in_force.append("landlock")
        if "seccomp" in asked:
            seccomp.install(may_write)
            in_force.append("seccomp")
        elif strict:
            raise OSError("the filter of system calls is not asked for")
    except (OSError, AttributeError) as error:
        if strict:
            raise OSError(str(error)) from None
    return in_force


def _line(number: int) -> bytes:
    """Read from a descriptor up to the end of a line, not further."""
    found = b""
    while not found.endswith(b"\n"):
        part = os.read(number, 1 << 16)
        if not part:
            os._exit(1)
        found += part
    return found


main()
