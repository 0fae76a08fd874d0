"""The filter of system calls: a list of what is allowed, everything else refused by the kernel.

A filter binds root as well, survives until the process ends and cannot be taken off. It needs no privilege, so it works in
containers. Format: classic BPF over `struct seccomp_data` (linux/seccomp.h): the call's number at offset 0, the
architecture at 4, six 64-bit arguments from 16 on, little endian.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import calls

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # place in `calls`, AUDIT_ARCH_*

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
PR_SET_SECCOMP, MODE_FILTER = 22, 2

CLONE_THREAD = 0x00010000
OPEN_TO_CHANGE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PLAIN_FCNTL = (*range(8), 36, 37, 38, 1030, 1032)  # duplicates, flags, locks; no F_SETOWN, which sends signals
PLAIN_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, its size, flags of a descriptor
PLAIN_PRCTL = (15, 16, 0x53564D41)  # names of threads and of memory


Lines = list[bytes]


def rules(may_write: bool) -> dict[str, Lines]:
    """Allowed calls, each with the lines that answer it; most allow it whatever its arguments are.

    Args:
        may_write: whether files may be opened for writing, created and removed at all (something else bounds where).
    """
    own = os.getpid()
    found = {name: [_line(RETURN, ALLOW)] for name in calls.ALLOWED}
    if may_write:
        found |= {name: [_line(RETURN, ALLOW)] for name in ("open", "openat", *calls.CHANGING_FILES)}
    else:
        found |= {"open": _bits(1, OPEN_TO_CHANGE, False), "openat": _bits(2, OPEN_TO_CHANGE, False)}
    return found | {
        "ioctl": _one_of(1, PLAIN_IOCTL),
        "fcntl": _one_of(1, PLAIN_FCNTL),
        "prctl": _one_of(0, PLAIN_PRCTL),
        "clone": _bits(0, CLONE_THREAD, True),
        "kill": _one_of(0, (own,)),
        "tgkill": _one_of(0, (own,)),
        "prlimit64": _null(2),
    }


def install(may_write: bool) -> None:
    """Put the calling thread, the only one of its process, under the filter; raise `OSError` when the kernel has none.

    `no_new_privs` must be set before.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(
            errno.ENOSYS, f"no table of system calls for {machine}; there are tables for {', '.join(MACHINES)}"
        )
    place, architecture = MACHINES[machine]
    program = build(rules(may_write), place, architecture)
    code = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    # struct sock_fprog: a 16-bit length, padding, a pointer.
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, header, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp filter: {os.strerror(number)}")


def build(allowed: dict[str, Lines], place: int, architecture: int) -> bytes:
    """Assemble the filter: allowed calls, calls refused by name (EPERM), the rest (ENOSYS), of `architecture` alone."""
    numbers = {name: both[place] for name, both in (calls.ALLOWED | calls.CHANGING_FILES | calls.CONDITIONAL).items()}
    lines = [_line(LOAD, 4), _line(EQUAL, architecture, 1, 0), _line(RETURN, KILL_PROCESS), _line(LOAD, 0)]
    for name, answer in allowed.items():
        number = numbers[name]
        if number is not None:
            lines += [_line(EQUAL, number, 0, len(answer)), *answer]
    refused = [numbers[name] for name in numbers] + [both[place] for both in calls.REFUSED.values()]
    for number in refused:
        if number is not None:
            lines += [_line(EQUAL, number, 0, 1), _line(RETURN, ERRNO | errno.EPERM)]
    return b"".join([*lines, _line(RETURN, ERRNO | errno.ENOSYS)])


def _one_of(argument: int, values: tuple[int, ...]) -> Lines:
    """Allow when the argument, which the kernel reads as a 32-bit integer, is one of the values."""
    tests = [_line(EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
    return [_line(LOAD, _low(argument)), *tests, _line(RETURN, ERRNO | errno.EPERM), _line(RETURN, ALLOW)]


def _bits(argument: int, bits: int, wanted: bool) -> Lines:
    """Allow when some of the bits are set in the argument's lower half (`wanted`), or when none is."""
    test = _line(ANY_BIT, bits, *((0, 1) if wanted else (1, 0)))
    return [_line(LOAD, _low(argument)), test, _line(RETURN, ALLOW), _line(RETURN, ERRNO | errno.EPERM)]


def _null(argument: int) -> Lines:
    """Allow when the argument is a null pointer."""
    low = _low(argument)
    tests = [_line(LOAD, low), _line(EQUAL, 0, 0, 3), _line(LOAD, low + 4), _line(EQUAL, 0, 0, 1)]
    return [*tests, _line(RETURN, ALLOW), _line(RETURN, ERRNO | errno.EPERM)]


def _low(argument: int) -> int:
    """Where the lower half of an argument lies."""
    return 16 + 8 * argument


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter: code, lines to skip when true and when false, value."""
    return struct.pack("HBBI", code, if_true, if_false, value & 0xFFFFFFFF)
