"""What a program may use, how it is kept apart, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Layer = Literal["user", "landlock", "seccomp"]
LAYERS: tuple[Layer, ...] = get_args(Layer)

Outcome = Literal["passed", "failed", "error", "timeout", "memory", "forbidden", "crash"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class SandboxError(Exception):
    """Programs cannot be run here, or not contained; nothing is known about the program."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_seconds: processor time of all its threads, rounded up to whole seconds.
        wall_seconds: time on the clock from the program's start.
        memory: bytes of address space.
        file_size: bytes of one file.
        folder_size: bytes of all files in its folder, looked at twenty times a second.
        folder_entries: files and folders in its folder, likewise.
        threads: threads, likewise.
        open_files: descriptors.
    """

    cpu_seconds: float = 5.0
    wall_seconds: float = 30.0
    memory: int = 1 << 30
    file_size: int = 16 << 20
    folder_size: int = 64 << 20
    folder_entries: int = 1000
    threads: int = 64
    open_files: int = 64


@dataclass(frozen=True)
class Isolation:
    """How a program is kept apart from the machine.

    Attributes:
        layers: what is put in force where the system has it: another `user` (when root), `landlock` for files,
            `seccomp` for system calls.
        strict: without the filter of system calls, run nothing. Not strict: for programs that are trusted.
    """

    layers: tuple[Layer, ...] = LAYERS
    strict: bool = True


DEFAULT_LIMITS = Limits()
STRICT = Isolation()


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        outcome: passed; failed (an assertion); error (another exception); timeout (processor time or clock); memory;
            forbidden (something it may not do, or too many files or threads); crash (ended, or was ended, without an
            answer).
        error: one short text, empty for passed.
        seconds: on the clock, the interpreter's start not counted.
        layers: layers of isolation that were in force.
    """

    outcome: Outcome
    error: str
    seconds: float
    layers: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.outcome == "passed"
