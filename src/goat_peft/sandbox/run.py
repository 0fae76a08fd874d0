"""Running one program in the sandbox, from outside: start, watch, end, clean up."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from .interpreter import Interpreter
from .limits import DEFAULT_LIMITS, OUTCOMES, STRICT, Isolation, Limits, SandboxError, Verdict
from .watching import remove, thread_count, usage

LOOK_EVERY = 0.05  # seconds between looks at the folder and the threads
START_SECONDS = 60.0  # for the interpreter alone; a loaded machine is no fault of the program
LONGEST_MESSAGE = 1 << 14


def run_program(
    program: str,
    tests: str,
    *,
    names: Iterable[str] = (),
    limits: Limits = DEFAULT_LIMITS,
    isolation: Isolation = STRICT,
    interpreter: Interpreter | None = None,
) -> Verdict:
    """Run `program` and then `tests` on its names in a process of their own; nothing of it is left afterwards.

    Args:
        program: Python source that nobody vouches for.
        tests: Python source that raises (mostly by `assert`) when the program is wrong.
        names: names that the tests take from the program even though a built-in function has the same.
        interpreter: the Python to run it; the running one when not given.

    Raises:
        SandboxError: it could not be run, or not contained as `isolation` asks.
    """
    if sys.platform != "linux":
        raise SandboxError(f"programs are run on Linux alone, not on {sys.platform}; a Linux container will do")
    interpreter = interpreter or Interpreter.current()
    folder = tempfile.mkdtemp(prefix="goat-program-")
    try:
        user = interpreter.other_user(folder) if "user" in isolation.layers else None
        if user is not None:
            os.chown(folder, user, user)
        job = {
            "program": program,
            "tests": tests,
            "names": sorted(names),
            "limits": asdict(limits),
            "layers": list(isolation.layers),
            "strict": isolation.strict,
            "folder": folder,
            "user": user,
            "readable": interpreter.readable,
            "packages": list(interpreter.packages),
        }
        process = _start(interpreter, folder)
        try:
            return _Watch(process, folder, limits).verdict(job)
        finally:
            _end(process)
    finally:
        remove(folder)


def _start(interpreter: Interpreter, folder: str) -> subprocess.Popen[bytes]:
    """Start the interpreter in a session of its own, with no environment and no descriptor of this process."""
    environment = {
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        # A pool of threads per core, which libraries start when imported, can alone break the limits.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    try:
        return subprocess.Popen(
            interpreter.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"{interpreter.executable} cannot be started ({error})") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process and its group, and reap it."""
    try:
        # Not yet reaped, so its number cannot belong to another group.
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class _Watch:
    """Talks with one sandboxed process and decides how it ended; the caller ends it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: str, limits: Limits) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self.folder, self.limits = process, folder, limits
        self.to, self.back = process.stdin.fileno(), process.stdout.fileno()
        self.layers: tuple[str, ...] = ()
        self.begun: float | None = None
        self.received = b""

    def verdict(self, job: dict[str, Any]) -> Verdict:
        """Hand over the job and follow it to its end."""
        self._send(repr(job).encode() + b"\n")
        first = self._line(time.monotonic() + START_SECONDS, lambda: None)
        state, text = ("", first.error) if isinstance(first, Verdict) else _parse(first)
        if state != "ready":
            raise SandboxError(f"no program can be contained here ({text})")
        self.layers = tuple(text.split())
        self.begun = time.monotonic()
        deadline = self.begun + self.limits.wall_seconds
        answer = self._line(deadline, self._overuse)
        if isinstance(answer, Verdict):
            return answer
        state, text = _parse(answer)
        if state == "done":
            return self._confirmed(deadline)
        if state in OUTCOMES and state != "passed":
            return self._say(state, text[:300])
        return self._say("crash", "wrote to the checker's descriptors")

    def _confirmed(self, deadline: float) -> Verdict:
        """The tests have passed, says the process: only what gets this far can answer with a token sent now."""
        token = secrets.token_hex(16).encode() + b"\n"
        self._send(token)
        answer = self._line(deadline, self._overuse)
        if isinstance(answer, Verdict):
            return answer
        if not secrets.compare_digest(answer + b"\n", token):
            return self._say("crash", "wrote to the checker's descriptors")
        return self._say("passed", "")

    def _send(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self.to, text) :]
        except BrokenPipeError:
            pass  # Its end shows as the end of its answers.

    def _line(self, deadline: float, check: Callable[[], Verdict | None]) -> bytes | Verdict:
        """Return the next line, or the verdict when time is up, `check` finds one, or the process ends."""
        waiting = select.poll()
        waiting.register(self.back, select.POLLIN)
        while b"\n" not in self.received:
            found = check()
            if found is not None:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                return self._say("timeout", f"more than {self.limits.wall_seconds:g} s")
            if not waiting.poll(1000 * min(left, LOOK_EVERY)):
                continue
            part = os.read(self.back, 1 << 12)
            if not part:
                return self._without_answer(deadline, check)
            self.received += part
            if len(self.received) > LONGEST_MESSAGE:
                return self._say("crash", "wrote to the checker's descriptors")
        line, _, self.received = self.received.partition(b"\n")
        return line

    def _without_answer(self, deadline: float, check: Callable[[], Verdict | None]) -> Verdict:
        """The process closed its side: it ended, or goes on unheard until its time is up."""
        while (status := self._exit_status()) is None:
            found = check()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                return self._say("timeout", f"more than {self.limits.wall_seconds:g} s")
            time.sleep(LOOK_EVERY / 5)
        cpu_is_up = status == -signal.SIGKILL and self._seconds() >= self.limits.cpu_seconds
        if status == -signal.SIGXCPU or cpu_is_up:
            return self._say("timeout", f"more than {self.limits.cpu_seconds:g} s of processor time")
        return self._say("crash", f"{_ended(status)} before its tests had passed")

    def _exit_status(self) -> int | None:
        """How the process ended (minus the signal, if one did it), None while it runs; it is left for `_end` to reap."""
        found = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _overuse(self) -> Verdict | None:
        """What the kernel does not count: files in the folder, and threads."""
        size, entries = usage(self.folder, self.limits)
        if size > self.limits.folder_size:
            return self._say("forbidden", f"more than {self.limits.folder_size} bytes of files")
        if entries > self.limits.folder_entries:
            return self._say("forbidden", f"more than {self.limits.folder_entries} files and folders")
        if thread_count(self.process.pid) > self.limits.threads:
            return self._say("forbidden", f"more than {self.limits.threads} threads")
        return None

    def _seconds(self) -> float:
        return 0.0 if self.begun is None else time.monotonic() - self.begun

    def _say(self, outcome: Any, error: str) -> Verdict:
        return Verdict(outcome, error, round(self._seconds(), 3), self.layers)


def _parse(line: bytes) -> tuple[str, str]:
    """State and text of a message."""
    state, _, text = line.decode("utf-8", "replace").partition(" ")
    return state, text


def _ended(status: int) -> str:
    return f"ended by signal {-status}" if status < 0 else f"ended with code {status}"
