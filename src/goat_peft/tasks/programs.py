"""Programming problems, and the program in what a model wrote about one."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A fence may open indented and may never close (the model ran out of tokens).
BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = {"", "python", "py", "python3", "py3"}


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        name: its name in the benchmark.
        header: start of the program that the model completes; empty when it writes all of it.
        entry: name of the function that it completes; empty likewise.
        tests: source that raises when a program is wrong.
        names: names that the tests take from the program even though a built-in function has the same.
        reference: the benchmark's own solution, as it would follow the header.
    """

    name: str
    header: str
    entry: str
    tests: str
    names: tuple[str, ...]
    reference: str


def humaneval(row: Mapping[str, Any]) -> Problem:
    """A record of HumanEval: a signature with its docstring, and a function `check` that takes the function."""
    return Problem(
        name=row["task_id"],
        header=row["prompt"],
        entry=row["entry_point"],
        tests=f"{row['test']}\ncheck({row['entry_point']})\n",
        names=(row["entry_point"],),
        reference=row["canonical_solution"],
    )


def mbpp(row: Mapping[str, Any]) -> Problem:
    """A record of MBPP: a sentence, and assertions that call the function by name."""
    tests = "\n".join([row["test_setup_code"], *row["test_list"]]) + "\n"
    defined = {
        node.name
        for node in ast.walk(_tree(row["code"]) or ast.Module([], []))
        if isinstance(node, ast.FunctionDef) and hasattr(builtins, node.name)
    }
    return Problem(f"MBPP/{row['task_id']}", "", "", tests, tuple(sorted(defined)), row["code"])


READERS: dict[str, Callable[[Mapping[str, Any]], Problem]] = {"humaneval": humaneval, "mbpp": mbpp}
COLUMNS = {
    "humaneval": ["task_id", "prompt", "entry_point", "test", "canonical_solution"],
    "mbpp": ["task_id", "code", "test_list", "test_setup_code"],
}


def completed(problem: Problem, text: str) -> str:
    """The program when the model continues the header, word for word."""
    return problem.header + text


def extracted(problem: Problem, text: str) -> str | None:
    """The program in an answer: its first fenced block of Python, or all of it when it has no fence and is Python.

    What the code lacks of the problem's header (imports, helper functions, the signature) is put in front of it. None
    when there is no code.
    """
    blocks = [(language.lower(), code) for language, code in BLOCK.findall(text)]
    if not blocks:
        bare = [program for program in _programs(problem, text) if _parses(program)] if text.strip() else []
        return bare[0] if bare else None
    for language, code in blocks:
        if language in PYTHON and code.strip():
            programs = list(_programs(problem, code))
            # None may be valid Python; the interpreter's complaint about the first is then the verdict.
            return next(filter(_parses, programs), programs[0])
    return None


def _programs(problem: Problem, code: str) -> Iterable[str]:
    """Ways to make a whole program of `code`, the likeliest first."""
    # Not `strip`: the first line's indentation tells how deep the code is.
    code = textwrap.dedent(code.strip("\n").rstrip()) + "\n"
    if not problem.header:
        yield code
        return
    if re.search(rf"^(async[ ]+)?def[ ]+{re.escape(problem.entry)}\b", code, re.MULTILINE):
        yield _before_entry(problem) + code
        return
    header = problem.header.rstrip("\n") + "\n"
    yield header + textwrap.indent(code, "    ")
    yield header + "    " + code  # the prompt's last spaces were the first line's indentation


def _before_entry(problem: Problem) -> str:
    """The header's imports and helper functions."""
    tree = _tree(problem.header)
    for node in [] if tree is None else tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == problem.entry:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "".join(problem.header.splitlines(keepends=True)[: first - 1])
    return ""


def _parses(source: str) -> bool:
    return _tree(source) is not None


def _tree(source: str) -> ast.Module | None:
    """Parse, never run; None when it is not Python. What the parser would warn of is the program's affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
