"""The layers of isolation one by one, and what happens where they are missing."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
from outside import Outside

from goat_peft.sandbox import Containment, Isolation, SandboxError, require, run_program
from goat_peft.sandbox.interpreter import INSIDE, NOBODY, Interpreter, open_to_all
from goat_peft.sandbox.limits import DEFAULT_LIMITS
from goat_peft.sandbox.watching import remove, usage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are contained on Linux alone")

HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),
}
DEBIAN = Interpreter("/usr/bin/python3", tuple(map(str, Path("/usr/lib").glob("python3*"))))


def test_this_machine_contains_programs() -> None:
    found = require()
    assert "seccomp" in found.layers
    assert found.escapes == ()


def test_the_filter_alone_contains_but_does_not_keep_secrets() -> None:
    assert require(Isolation(layers=("seccomp",))) == Containment(("seccomp",), False, ())


def test_the_check_finds_what_is_missing() -> None:
    found = require(Isolation(layers=(), strict=False))
    assert found == Containment((), False, ("network", "processes", "signals", "writing"))


@pytest.mark.parametrize("layers", [(), ("landlock",)])
def test_without_the_filter_nothing_is_run(layers: tuple[str, ...], outside: Outside) -> None:
    with pytest.raises(SandboxError, match="filter of system calls"):
        run_program("raise SystemExit", "", isolation=Isolation(layers=layers))


def test_weak_isolation_still_ends_what_a_program_started(outside: Outside) -> None:
    program = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n"
    verdict = run_program(program, "", isolation=Isolation(layers=(), strict=False))
    assert verdict.passed
    assert verdict.layers == ()


@pytest.mark.parametrize("place", ["", "os.symlink(OUTSIDE, folder)"])
def test_a_program_that_takes_its_folder_away_takes_nothing_else(place: str, outside: Outside) -> None:
    program = f"import os\nOUTSIDE = {str(outside.folder)!r}\nfolder = os.getcwd()\nos.rmdir(folder)\n{place}"
    assert run_program(program, "", isolation=Isolation(layers=(), strict=False)).passed


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="on Linux alone, not on darwin"):
        run_program("", "", isolation=Isolation(strict=False))


def test_with_the_filter_alone_a_program_writes_nowhere(outside: Outside) -> None:
    program = "def solve():\n    open('here', 'w').write('x')\n    return True"
    assert run_program(program, "assert solve()").passed
    assert run_program(program, "assert solve()", isolation=Isolation(layers=("seccomp",))).outcome == "forbidden"


def test_an_interpreter_that_cannot_start_is_no_fault_of_the_program(outside: Outside) -> None:
    with pytest.raises(SandboxError, match="cannot be started"):
        run_program("", "", interpreter=Interpreter("/nowhere/python", ()))
    with pytest.raises(SandboxError, match="ended with code 1"):
        run_program("", "", interpreter=Interpreter("/bin/false", ()))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not DEBIAN.library or not open_to_all(str(INSIDE)),
    reason="needs root and an interpreter that others can run",
)
def test_root_runs_programs_as_another_user_when_that_user_can_run_python(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        secret = Path(folder, "secret")
        secret.write_text("x")
        secret.chmod(0o600)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        program = f"import os\nuser = os.getuid(), os.getgroups()\nopen({str(secret)!r})"
        verdict = run_program(program, "", isolation=Isolation(layers=("user", "seccomp")), interpreter=DEBIAN)
        assert verdict.layers == ("user", "seccomp")
        assert verdict.outcome == "forbidden"
        tests = f"import os\nassert (os.getuid(), os.getgroups()) == ({NOBODY}, [])"
        assert run_program("", tests, interpreter=DEBIAN).passed
        os.chmod(folder, 0o700)
        open_to_all.cache_clear()
        assert "user" not in run_program("", "", interpreter=DEBIAN).layers
        open_to_all.cache_clear()


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_of_system_calls_are_those_of_the_kernel(machine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    monkeypatch.syspath_prepend(INSIDE)
    import calls

    text = HEADERS[machine].read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", text)}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    for table in (calls.ALLOWED, calls.CHANGING_FILES, calls.CONDITIONAL, calls.REFUSED):
        for name, numbers in table.items():
            assert numbers[machine] == known.get(name), name


def test_every_jump_of_the_filter_leads_to_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret the filter for 64-bit ARM, which this machine may not be, as the kernel would."""
    monkeypatch.syspath_prepend(INSIDE)
    import calls
    import seccomp

    def answer(name: str, *arguments: int, may_write: bool = True, architecture: int = 0xC00000B7) -> int:
        table = calls.ALLOWED | calls.CHANGING_FILES | calls.CONDITIONAL | calls.REFUSED | {"unknown": (9999, 9999)}
        data = b"".join(
            [
                table[name][1].to_bytes(4, "little"),
                architecture.to_bytes(4, "little"),
                bytes(8),
                *(argument.to_bytes(8, "little") for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]),
            ]
        )
        code = seccomp.build(seccomp.rules(may_write), 1, 0xC00000B7)
        lines = [
            (code[i], code[i + 2], code[i + 3], int.from_bytes(code[i + 4 : i + 8], "little"))
            for i in range(0, len(code), 8)
        ]
        place, loaded = 0, 0
        while True:
            operation, if_true, if_false, value = lines[place]
            place += 1
            if operation == seccomp.RETURN:
                return value
            if operation == seccomp.LOAD:
                loaded = int.from_bytes(data[value : value + 4], "little")
            else:
                met = loaded == value if operation == seccomp.EQUAL else loaded & value
                place += if_true if met else if_false

    allow, refuse = seccomp.ALLOW, seccomp.ERRNO | errno.EPERM
    own = os.getpid()
    assert answer("read", architecture=0xC000003E) == seccomp.KILL_PROCESS
    assert answer("unknown") == seccomp.ERRNO | errno.ENOSYS
    assert {answer(name) for name in calls.ALLOWED if calls.ALLOWED[name][1] is not None} == {allow}
    assert {answer(name) for name in calls.REFUSED if calls.REFUSED[name][1] is not None} == {refuse}
    assert answer("unlinkat") == allow
    assert answer("unlinkat", may_write=False) == refuse
    assert answer("openat", 0, 0, os.O_RDWR) == allow
    assert answer("openat", 0, 0, os.O_RDWR, may_write=False) == refuse
    assert answer("openat", 0, 0, os.O_RDONLY | os.O_TRUNC, may_write=False) == refuse
    assert answer("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC, may_write=False) == allow
    assert (answer("kill", own, 9), answer("kill", own + 1, 9), answer("kill", 2**32 - 1, 9)) == (allow, refuse, refuse)
    assert (answer("clone", 0x3D0F00), answer("clone", 0x11)) == (allow, refuse)
    assert (answer("prlimit64", 0, 7, 0), answer("prlimit64", 0, 7, 4096)) == (allow, refuse)
    assert answer("prlimit64", 0, 7, 1 << 40) == refuse
    assert (answer("fcntl", 3, 4), answer("fcntl", 3, 8), answer("fcntl", 3, 10)) == (allow, refuse, refuse)
    assert (answer("ioctl", 1, 0x5401), answer("ioctl", 1, 0x5412)) == (allow, refuse)
    assert (answer("prctl", 15), answer("prctl", 4)) == (allow, refuse)


def test_a_deep_folder_is_counted_and_removed(tmp_path: Path) -> None:
    place, start = os.getcwd(), tmp_path / "deep"
    start.mkdir()
    try:
        os.chdir(start)
        for _ in range(60):
            os.mkdir("x" * 200)
            os.chdir("x" * 200)
            Path("file").write_text("x")
        os.chdir(start)
        assert usage(str(start), DEFAULT_LIMITS)[1] > DEFAULT_LIMITS.folder_entries
        os.chmod("x" * 200, 0)
    finally:
        os.chdir(place)
    remove(str(start))
    assert not start.exists()
