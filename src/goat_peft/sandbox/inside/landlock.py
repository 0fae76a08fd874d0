"""Landlock: which files the process may read and where it may write (Linux 5.13 and newer, no privilege needed)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
ALL_OF_FIRST, REFER, TRUNCATE, DEVICE_IOCTL = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
TCP, ABSTRACT_SOCKETS_AND_SIGNALS = 0b11, 0b11

# Before the third version a file outside could still be emptied.
BOUNDS_WRITES = 3


def version() -> int:
    """Version of the kernel's Landlock, 0 when it has none or it is switched off."""
    found = ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(found, 0)


def restrict(readable: Iterable[str], folder: str) -> None:
    """Bound the process for good: it reads beneath `readable`, and reads and changes files beneath `folder` alone.

    `no_new_privs` must be set before. Raises `OSError` when the kernel refuses; paths that are not there are skipped.
    """
    kernel = version()
    handled = ALL_OF_FIRST
    for since, right in ((2, REFER), (3, TRUNCATE), (5, DEVICE_IOCTL)):
        handled |= right if kernel >= since else 0
    words = [handled]
    words += [TCP] if kernel >= 4 else []
    words += [ABSTRACT_SOCKETS_AND_SIGNALS] if kernel >= 6 else []
    attributes = struct.pack(f"{len(words)}Q", *words)
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in readable:
            _allow(ruleset, path, READ_FILE | READ_DIR)
        _allow(ruleset, "/dev/null", READ_FILE | WRITE_FILE)
        for device in ("/dev/zero", "/dev/random", "/dev/urandom"):
            _allow(ruleset, device, READ_FILE)
        _allow(ruleset, folder, handled & ~(EXECUTE | MAKE_CHAR | MAKE_SOCK | MAKE_BLOCK | DEVICE_IOCTL))
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= EXECUTE | WRITE_FILE | READ_FILE
        # struct landlock_path_beneath_attr is packed: no padding behind the descriptor.
        _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: object) -> int:
    answer = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return int(answer)
