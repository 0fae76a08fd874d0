"""The program that tries to break out. Run inside the sandbox by `checking`, never imported."""

import os
import socket
from collections.abc import Callable


def try_all(outside: str, secret: str) -> list[str]:
    """Names of the guarantees that do not hold; `outside` is another's folder with a file `secret` of this content."""
    attempts = {"reading": reading, "network": network, "processes": processes, "signals": signals, "writing": writing}
    return [name for name, attempt in attempts.items() if attempt(outside, secret)]


def network(outside: str, secret: str) -> bool:
    """Any socket at all."""
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError:
            continue
        return True
    return False


def writing(outside: str, secret: str) -> bool:
    """A new file, a change of a file, of its mode or its name, outside the program's folder."""
    path = os.path.join(outside, "secret")
    attempts = (
        lambda: open(os.path.join(outside, "new"), "w").close(),
        lambda: open(path, "a").close(),
        lambda: os.truncate(path, 0),
        lambda: os.chmod(path, 0o644),
        lambda: os.rename(path, path + "2"),
        lambda: os.mkdir(os.path.join(outside, "folder")),
        lambda: os.unlink(path),
    )
    return any(map(_works, attempts))


def processes(outside: str, secret: str) -> bool:
    """A process of its own that could stay behind."""
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def signals(outside: str, secret: str) -> bool:
    """A signal to the process that runs this one; signal 0 tells whether one would arrive."""
    return _works(lambda: os.kill(os.getppid(), 0)) or _works(lambda: os.kill(-1, 0))


def reading(outside: str, secret: str) -> bool:
    """A file that the user alone may read."""
    try:
        with open(os.path.join(outside, "secret")) as file:
            return file.read() == secret
    except OSError:
        return False


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
