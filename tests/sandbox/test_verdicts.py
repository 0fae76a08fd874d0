"""What counts as passed, and what only pretends to."""

from __future__ import annotations

import sys
import textwrap

import pytest
from outside import Outside

from goat_peft.sandbox import Case, Limits, run_program, run_programs

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="programs are contained on Linux alone"),
    pytest.mark.usefixtures("outside"),
]

TESTS = """
import math
def check(candidate):
    assert abs(candidate(2) - 4) < 1e-6
    assert all(candidate(x) == x * x for x in range(5)), 'squares'
    assert isinstance(candidate(2), int) and math.isclose(candidate(3), 9)
check(solve)
"""
RIGHT = "def solve(x):\n    return x * x\n"


def outcome(program: str, tests: str = TESTS, **settings: object) -> str:
    """How a program ends."""
    return run_program(textwrap.dedent(program), tests, **settings).outcome


def test_a_right_program_passes_and_a_wrong_one_fails() -> None:
    assert outcome(RIGHT) == "passed"
    wrong = run_program("def solve(x):\n    return x + 2\n", TESTS)
    assert (wrong.outcome, wrong.error) == ("failed", "AssertionError: squares")


def test_an_assertion_without_a_text_is_told_by_its_line() -> None:
    verdict = run_program("def solve(x):\n    return 5\n", TESTS)
    assert verdict.error == "AssertionError: assert abs(candidate(2) - 4) < 1e-6"


def test_other_exceptions_are_errors() -> None:
    assert outcome("def solve(x): return y") == "error"
    assert outcome("def solve(x) return x") == "error"
    assert run_program("", TESTS).error == "NameError: name 'solve' is not defined"


def test_what_honest_programs_do_is_allowed() -> None:
    program = """
        import dataclasses, functools, json, os, random, re, sys, tempfile, threading, typing, zoneinfo
        from concurrent.futures import ThreadPoolExecutor

        @dataclasses.dataclass
        class Pair:
            left: int
            right: int

        def solve(x):
            os.makedirs('a/b')
            with open('a/one', 'w') as file:
                file.write(json.dumps([x, x]))
            os.rename('a/one', 'a/b/two')
            pair = Pair(*json.load(open('a/b/two')))
            os.unlink('a/b/two')
            os.removedirs('a/b')
            with tempfile.TemporaryFile() as file:
                file.write(b'x')
            zoneinfo.ZoneInfo('Europe/Berlin')
            print('working', file=sys.stderr)
            with ThreadPoolExecutor(4) as pool:
                return sum(pool.map(lambda _: pair.left, range(pair.right)))
        """
    assert outcome(program) == "passed"


def test_installed_packages_can_be_imported() -> None:
    assert outcome("import numpy\ndef solve(x): return int(numpy.square(x))") == "passed"


def test_results_do_not_depend_on_a_random_hash_seed() -> None:
    tests = "assert solve() == ''.join({'a', 'b', 'c', 'd', 'e', 'f'})"
    program = "def solve(): return ''.join({'a', 'b', 'c', 'd', 'e', 'f'})"
    orders = {run_program(program, f"assert False, {solve}").error for solve in ["''.join({*'abcdefgh'})"] * 3}
    assert len(orders) == 1
    assert outcome(program, tests) == "passed"


@pytest.mark.parametrize(
    "trick",
    [
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.all = lambda x: True\nbuiltins.isinstance = lambda *a: True",
        "abs = lambda x: 0\nall = lambda x: True\nisinstance = lambda *a: True",
        "import builtins\nbuiltins.AssertionError = type('Nothing', (Exception,), {})",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "def check(candidate): pass",
        "import sys\nsys.modules['__main__'].judge = lambda *a: None",
        "import os\nfor n in range(64):\n    try: os.write(n, b'passed\\n')\n    except OSError: pass",
        "import os\nfor n in range(64):\n    try: os.write(n, b'done\\n' + b'0' * 32 + b'\\n')\n    except OSError: pass",
        "import atexit, os\natexit.register(print, 'passed')\nprint('All tests passed')",
        "import sys\nsys.excepthook = lambda *a: None",
        "import threading, os, time\nthreading.Timer(0.01, os._exit, (0,)).start()\ntime.sleep(5)",
    ],
)
def test_pretending_is_not_passing(trick: str) -> None:
    assert outcome(f"{trick}\ndef solve(x): return 'wrong'") in {"failed", "error", "crash"}


def test_tests_take_a_name_of_the_built_in_functions_only_when_it_is_asked_for() -> None:
    program = "def sum(a, b): return a * 10 + b"
    tests = "assert sum(1, 2) == 12"
    assert outcome(program, tests) == "error"
    assert outcome(program, tests, names=["sum"]) == "passed"


def test_many_programs_keep_their_order() -> None:
    cases = [Case(f"def solve(x): return {i}", "assert solve(0) % 2 == 0") for i in range(6)]
    seen: list[tuple[int, int]] = []
    verdicts = run_programs(cases, workers=3, done=lambda done, total: seen.append((done, total)))
    assert [verdict.passed for verdict in verdicts] == [True, False] * 3
    assert seen[-1] == (6, 6)


def test_a_verdict_says_how_long_it_took() -> None:
    verdict = run_program("import time\ndef solve(x): time.sleep(0.2); return x * x", "assert solve(2) == 4")
    assert 0.2 <= verdict.seconds < 10


def test_the_memory_limit_is_the_one_given(outside: Outside) -> None:
    program = "block = bytearray(200 << 20)\n" + RIGHT
    assert outcome(program, limits=Limits(memory=512 << 20)) == "passed"
    assert outcome(program, limits=Limits(memory=128 << 20)) == "memory"
