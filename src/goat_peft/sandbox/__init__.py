"""Programs that nobody vouches for, run one by one in a process that the kernel contains. Linux alone can."""

from .checking import Containment, require
from .limits import LAYERS, OUTCOMES, Isolation, Limits, SandboxError, Verdict
from .pool import Case, cores, run_programs
from .run import run_program

__all__ = [
    "LAYERS",
    "OUTCOMES",
    "Case",
    "Containment",
    "Isolation",
    "Limits",
    "SandboxError",
    "Verdict",
    "cores",
    "require",
    "run_program",
    "run_programs",
]
