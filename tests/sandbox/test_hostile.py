"""Programs that try to do harm: each is contained, counted as a failure, and leaves no process and no file behind.

They run with all layers; those that Landlock or the filter of system calls stops also with the filter alone, as on a kernel
without Landlock.
"""

from __future__ import annotations

import sys
import textwrap

import pytest
from outside import SENTINEL, Outside

from goat_peft.sandbox import Isolation, Limits, Verdict, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are contained on Linux alone")

FILTER_ALONE = Isolation(layers=("seccomp",))
LIMITS = Limits(cpu_seconds=2, wall_seconds=20, memory=256 << 20)
# What the program should have done, if it were honest.
TESTS = "assert solve(2) == 4"


def run(source: str, outside: Outside, isolation: Isolation, limits: Limits = LIMITS) -> Verdict:
    """Run a hostile program; OUTSIDE and SENTINEL in it are the user's folder and file."""
    names = f"OUTSIDE, SENTINEL = {str(outside.folder)!r}, {str(outside.sentinel)!r}\n"
    verdict = run_program(names + textwrap.dedent(source), TESTS, limits=limits, isolation=isolation)
    assert not verdict.passed
    assert "seccomp" in verdict.layers
    return verdict


REACHING_OUT = {
    "forks on and on": """
        import os
        for _ in range(200):
            if os.fork() == 0:
                while True:
                    pass
        """,
    "forks behind an except": """
        import os, time
        for _ in range(200):
            try:
                if os.fork() == 0:
                    time.sleep(600)
            except OSError:
                pass
        """,
    "starts a shell": "import subprocess; subprocess.Popen(['/bin/sh', '-c', 'sleep 600'])",
    "becomes another program": "import os; os.execv('/bin/sleep', ['sleep', '600'])",
    "daemonises": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()
        """,
    "forks by number": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        numbers = {'x86_64': (57, 58, 56, 435), 'aarch64': (220, 435)}[os.uname().machine]
        for number in numbers:
            if libc.syscall(number, 17, 0, 0, 0, 0) >= 0:
                libc.sleep(600)
        """,
    "forks through the other table of x86": """
        import ctypes
        if ctypes.CDLL(None).syscall(0x40000000 + 57) >= 0:
            ctypes.CDLL(None).sleep(600)
        """,
    "kills its parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "kills everything": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "kills its parent's group": "import os, signal; os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)",
    "signals by owning a pipe": """
        import fcntl, os, signal
        ends = os.pipe()
        fcntl.fcntl(ends[0], 10, signal.SIGKILL)  # F_SETSIG
        fcntl.fcntl(ends[0], fcntl.F_SETOWN, os.getppid())
        fcntl.fcntl(ends[0], fcntl.F_SETFL, os.O_ASYNC)
        os.write(ends[1], b'x')
        """,
    "traces its parent": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ptrace(16, os.getppid(), 0, 0) == 0
        """,
    "writes its parent's memory": "import os; open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "limits its parent": """
        import os, resource
        resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
        """,
    "raises its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "becomes root": "import os; os.setuid(0)",
    "mounts": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10020000) == 0 or libc.mount(b'none', OUTSIDE.encode(), b'tmpfs', 0, None) == 0
        """,
    "writes outside": "open(OUTSIDE + '/new', 'w').write('x')",
    "writes outside by way of ..": "import os; open(os.path.relpath(OUTSIDE) + '/new', 'w').write('x')",
    "changes a file outside": "open(SENTINEL, 'a').write('x')",
    "empties a file outside": """
        import os
        try:
            os.close(os.open(SENTINEL, os.O_RDONLY | os.O_TRUNC))
        except OSError:
            os.truncate(SENTINEL, 0)
        """,
    "deletes outside": "import os; os.unlink(SENTINEL)",
    "deletes the folder outside": "import shutil; shutil.rmtree(OUTSIDE)",
    "renames outside": "import os; os.rename(SENTINEL, SENTINEL + '2')",
    "moves a file in": "import os; os.rename(SENTINEL, 'mine')",
    "makes a file outside public": "import os; os.chmod(SENTINEL, 0o644)",
    "links to a file outside": "import os; os.link(SENTINEL, 'mine'); open('mine', 'w').write('x')",
    "writes through a symbolic link": "import os; os.symlink(SENTINEL, 'mine'); open('mine', 'w').write('x')",
    "removes its own folder": "import os; os.rmdir(os.getcwd())",
    "opens an internet socket": "import socket; socket.socket(socket.AF_INET)",
    "opens a datagram socket": "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
    "opens a UNIX socket": "import socket; socket.socket(socket.AF_UNIX)",
    "opens a raw netlink socket": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "makes files in memory": "import os; os.memfd_create('x')",
    "leaves shared memory": "from multiprocessing import shared_memory; shared_memory.SharedMemory('left', True, 100)",
    "leaves a message queue": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.shmget(4711, 4096, 0o1666) >= 0 or libc.msgget(4711, 0o1666) >= 0
        """,
}
GREEDY = {
    "asks for 10 GB": "block = bytearray(10 * 1024**3)",
    "asks for 10 GB in parts": "parts = []\nwhile True: parts.append(bytearray(1 << 20))",
    "swallows all memory and goes on": """
        parts = []
        try:
            while True: parts.append('x' * 10_000)
        except MemoryError:
            pass
        more = [0] * (1 << 24)
        """,
    "starts threads on and on": """
        import threading, time
        threading.stack_size(32768)
        while True: threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        """,
    "recurses": "def solve(x): return solve(x)",
    "crashes the interpreter": "import ctypes; ctypes.string_at(0)",
    "closes its output": "import os; os.close(1); os.close(2)",
    "closes everything": "import os; os.closerange(0, 256)",
    "ends at once, sys.exit": "import sys; sys.exit(0)",
    "ends at once, os._exit": "import os; os._exit(0)",
    "ends in the tests": "import os\ndef solve(x): os._exit(0)",
    "raises the end in the tests": "def solve(x): raise SystemExit(0)",
    "aborts": "import os; os.abort()",
}


OUTCOMES = {
    "forks on and on": "forbidden",
    "kills its parent": "forbidden",
    "writes outside": "forbidden",
    "deletes outside": "forbidden",
    "opens an internet socket": "forbidden",
    "opens a UNIX socket": "forbidden",
    "asks for 10 GB": "memory",
    "asks for 10 GB in parts": "memory",
    "starts threads on and on": "forbidden",
    "ends at once, sys.exit": "crash",
    "ends at once, os._exit": "crash",
    "ends in the tests": "crash",
    "crashes the interpreter": "crash",
}


@pytest.mark.parametrize("name", REACHING_OUT | GREEDY)
def test_a_hostile_program_is_contained(name: str, outside: Outside) -> None:
    verdict = run((REACHING_OUT | GREEDY)[name], outside, Isolation())
    assert verdict.outcome == OUTCOMES.get(name, verdict.outcome)


@pytest.mark.parametrize("name", REACHING_OUT)
def test_the_filter_alone_contains_what_reaches_out(name: str, outside: Outside) -> None:
    verdict = run(REACHING_OUT[name], outside, FILTER_ALONE)
    assert verdict.outcome == OUTCOMES.get(name, verdict.outcome)


ENDLESS = {
    "loops": "while True: pass",
    "ignores every signal": """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass
        """,
    "floods its output": "while True: print('x' * 1_000_000, flush=True)",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_program_is_ended_by_its_processor_time(name: str, outside: Outside) -> None:
    verdict = run(ENDLESS[name], outside, Isolation(), Limits(cpu_seconds=1, wall_seconds=20))
    assert verdict.outcome == "timeout"
    assert "processor time" in verdict.error


WAITING = [
    "import time; time.sleep(600)",
    "import os; os.read(os.pipe()[0], 1)",
    "import os, time; os.closerange(0, 256); time.sleep(600)",
    "def solve(x):\n    while True: pass",
]


@pytest.mark.parametrize("source", WAITING)
def test_a_waiting_program_is_ended_by_the_clock(source: str, outside: Outside) -> None:
    verdict = run(source, outside, Isolation(), Limits(cpu_seconds=5, wall_seconds=0.3))
    assert verdict.outcome == "timeout"
    assert verdict.seconds < 5


FILLING = {
    "one huge file": "out = open('big', 'wb')\nwhile True: out.write(bytes(1 << 20))",
    "many files": "for i in range(10**6): open(str(i), 'wb').write(bytes(1 << 20))",
    "many empty files": "for i in range(10**6): open(str(i), 'w').close()",
    "folders in folders": "import os\nfor i in range(10**6): os.mkdir('x' * 200); os.chdir('x' * 200)",
    "a folder closed to readers": """
        import os, time
        os.mkdir('hidden', 0o300)
        for i in range(10**6): open(f'hidden/{i}', 'wb').write(bytes(1 << 20))
        """,
}


@pytest.mark.parametrize("name", FILLING)
def test_a_program_that_fills_the_disk_is_stopped_and_cleaned_up(name: str, outside: Outside) -> None:
    limits = Limits(file_size=4 << 20, folder_size=8 << 20, folder_entries=100)
    assert run(FILLING[name], outside, Isolation(), limits).outcome == "forbidden"


def test_programs_read_neither_files_nor_environment_of_the_user(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", SENTINEL)
    source = f"""
        import os
        found = [value for value in os.environ.values() if {SENTINEL!r} in value]
        for path in (SENTINEL, f'/proc/{{os.getppid()}}/environ', '/proc/self/environ', '/etc/shadow'):
            try:
                found.append(open(path, 'rb').read())
            except OSError:
                pass
        for number in range(3, 64):
            try:
                found.append(os.fstat(number))
            except OSError:
                pass
        assert len(found) == 2, found  # the two pipes of the checker
        raise LookupError('found nothing')
        """
    verdict = run(source, outside, Isolation())
    assert "landlock" in verdict.layers or pytest.skip("this kernel has no Landlock")
    assert verdict.error == "LookupError: found nothing"
