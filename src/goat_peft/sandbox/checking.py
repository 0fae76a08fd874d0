"""Whether programs are contained on this machine: found out by trying to break out, not by asking the system."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .limits import STRICT, Isolation, Limits, SandboxError
from .run import run_program

ESCAPES = Path(__file__).with_name("escapes.py")
SECRET = "goat-peft-secret"


@dataclass(frozen=True)
class Containment:
    """What holds here.

    Attributes:
        layers: layers in force.
        reading: whether programs are kept from reading the user's files.
        escapes: guarantees that do not hold; never any when `isolation` is strict.
    """

    layers: tuple[str, ...]
    reading: bool
    escapes: tuple[str, ...] = ()


@cache
def require(isolation: Isolation = STRICT) -> Containment:
    """Try to break out of the sandbox and tell what holds; once per process.

    Raises:
        SandboxError: nothing can be run; or `isolation` is strict and one of these does not hold: no network, no write
            outside the program's folder, no process left behind, no signal to others.
    """
    with tempfile.TemporaryDirectory(prefix="goat-outside-") as outside:
        secret = Path(outside) / "secret"
        secret.write_text(SECRET, encoding="utf-8")
        secret.chmod(0o600)
        tests = f"assert False, ' '.join(['found:', *try_all({outside!r}, {SECRET!r})])"
        program = ESCAPES.read_text(encoding="utf-8")
        verdict = run_program(program, tests, limits=Limits(cpu_seconds=20, wall_seconds=60), isolation=isolation)
    if verdict.outcome != "failed":
        raise SandboxError(f"the check of the sandbox ended early ({verdict.outcome}: {verdict.error})")
    found = verdict.error.removeprefix("AssertionError: found:").split()
    escapes = tuple(name for name in found if name != "reading")
    if isolation.strict and escapes:
        raise SandboxError(f"programs are not contained here: {', '.join(escapes)}")
    return Containment(verdict.layers, "reading" not in found, escapes)
