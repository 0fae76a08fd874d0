"""Giving up what the process may do: limits, privileges, another user."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITIES_VERSION_3 = 0x20080522


def set_limits(limits: dict[str, float], must: bool) -> None:
    """Set the limits of the kernel for one process; `limits` has the fields of `goat_peft.sandbox.Limits`.

    With `must`, a limit that the system does not know is an `OSError`; without, it is left out.
    """
    cpu = math.ceil(limits["cpu_seconds"])
    wanted = {
        "RLIMIT_CORE": (0, 0),
        # The first signal can be caught, the second cannot.
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": (int(limits["memory"]),) * 2,
        "RLIMIT_FSIZE": (int(limits["file_size"]),) * 2,
        "RLIMIT_NOFILE": (int(limits["open_files"]),) * 2,
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
    }
    for name, values in wanted.items():
        try:
            resource.setrlimit(getattr(resource, name), values)
        except (AttributeError, ValueError, OSError) as error:
            if must and name != "RLIMIT_MSGQUEUE":
                raise OSError(f"{name}={values[0]}: {error}") from None


def become(user: int) -> None:
    """Change from root to an ordinary user without groups."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def give_up() -> None:
    """Die with the parent; never gain privileges again; hold no capability, root or not."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION_3, 0)
    empty = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, empty) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")
