"""The family `code`: programs found in answers, run against the benchmarks' tests, counted by pass@k."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from goat_peft import sandbox
from goat_peft.errors import UserError
from goat_peft.recipes.schema import TASKS
from goat_peft.tasks import code
from goat_peft.tasks.base import Scoring, bind
from goat_peft.tasks.code import CodeOptions, Judging, score_completions, with_opened_fence
from goat_peft.tasks.kept import Kept
from goat_peft.tasks.passk import mean_pass_at_k, pass_at_k
from goat_peft.tasks.programs import extracted, humaneval, mbpp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are contained on Linux alone")

DATA = Path(__file__).parents[3] / "shared" / "data" / "code"
STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
SIGNATURE = 'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef double(x: int) -> List[int]:\n    """Twice."""\n'
DOUBLE = {
    "task_id": "Own/0",
    "prompt": SIGNATURE,
    "entry_point": "double",
    "canonical_solution": "    return [helper(x), x]\n",
    "test": "def check(candidate):\n    assert candidate(2) == [2, 2]\n    assert helper(3) == 3\n",
}
SUM = {
    "task_id": 7,
    "text": "Add the digits.",
    "code": "def sum(n):\r\n    return 0 if n == 0 else n % 10 + sum(n // 10)",
    "test_list": ["assert sum(345) == 12", "assert sum(start) == 1", "assert max(sum(9), 3) == 9"],
    "test_setup_code": "start = 10",
    "challenge_test_list": [],
}


def records(name: str) -> list[dict[str, Any]]:
    """A benchmark's rows."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judged(text: str, row: dict[str, Any] = DOUBLE, **settings: Any) -> dict[str, Any]:
    """The row that one text gets."""
    return score_completions([row], [[text]], Judging(**settings)).predictions[0]


def fenced(program: str) -> str:
    """An answer as chat models write it."""
    return f"Sure! Here is the solution:\n\n```python\n{program}\n```\n\nIt runs in linear time.\n\n```python\ndouble = None\n```"


def test_canonical_solutions_of_humaneval_all_pass() -> None:
    rows = records("humaneval/test.jsonl.gz")
    scores = score_completions(
        rows, [[row["canonical_solution"]] for row in rows], Judging(extract="completion", stop=STOP)
    )
    assert [row["name"] for row in scores.predictions if not row["correct"]] == []
    assert (len(scores.predictions), scores.metrics) == (164, {"pass@1": 1.0})


def test_empty_completions_of_humaneval_all_fail() -> None:
    rows = records("humaneval/test.jsonl.gz")
    scores = score_completions(rows, [[""]] * len(rows), Judging(extract="completion"))
    assert [row["name"] for row in scores.predictions if row["correct"]] == []
    assert (len(scores.predictions), scores.metrics) == (164, {"pass@1": 0.0})
    assert scores.counts["failed_extractions"] == 0
    assert {row["outcome"] for row in scores.predictions} <= {"failed", "error"}


def test_solutions_of_mbpp_pass() -> None:
    rows = records("mbpp/all.jsonl.gz")
    assert len(rows) == 974
    with_setup = [row for row in rows if row["test_setup_code"]]
    hidden = [row for row in rows if mbpp(row).names][:8]
    rows = rows[::60] + with_setup + hidden
    scores = score_completions(rows, [[fenced(row["code"])] for row in rows], Judging(problems="mbpp"))
    assert [row["name"] for row in scores.predictions if not row["correct"]] == []


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (fenced(SIGNATURE + DOUBLE["canonical_solution"]), "passed"),
        (fenced("def double(x):\n    return [helper(x), x]"), "passed"),
        (fenced("def double(x) -> List[int]:\n    return [x] * 2"), "passed"),
        (fenced("    return [x, x]"), "passed"),
        (fenced("y = x\nreturn [x, y]"), "passed"),
        ("```\ndef double(x):\n    return [x, x]\n```", "passed"),
        ("```Python3 title=a.py\r\ndef double(x):\r\n    return [x, x]\r\n```", "passed"),
        ("1. First:\n   ```py\n   def double(x):\n       return [x, x]\n   ```\n", "passed"),
        ("```python\ndef double(x):\n    return [x, x]", "passed"),
        ("```bash\npip install double\n```\n```python\ndef double(x):\n    return [x, x]\n```", "passed"),
        ("def double(x):\n    return [x, x]\n", "passed"),
        ("    return [x, x]\n", "passed"),
        ("y = x\n    return [x, y]\n", "passed"),
        ("return [x, x]", "passed"),
        (fenced("def double(x):\n    return [x]"), "failed"),
        (fenced("def double(x):\n    return [x"), "error"),
        (fenced("def twice(x):\n    return [x, x]"), "failed"),
        ("```java\nint[] twice(int x) { return null; }\n```", "no code"),
        ("```python\n```", "no code"),
        ("I am sorry, I cannot help with that.", "no code"),
        ("", "no code"),
        (" \n", "no code"),
    ],
)
def test_the_program_in_an_answer(text: str, outcome: str) -> None:
    row = judged(text)
    assert row["outcome"] == outcome
    assert (row["program"] is None) == (outcome == "no code")
    assert row["correct"] == (outcome == "passed")


def test_a_completion_continues_the_problem_word_for_word_and_ends_at_a_stop_text() -> None:
    text = "    return [x, x]\n\nprint(undefined)\n"
    assert judged(text, extract="completion", stop=STOP)["outcome"] == "passed"
    assert judged(text, extract="completion")["outcome"] == "error"
    assert judged("```python\nreturn [x, x]\n```", extract="completion")["outcome"] == "error"


def test_mbpp_runs_setup_and_tests_and_knows_names_of_built_in_functions() -> None:
    assert mbpp(SUM).names == ("sum",)
    assert judged(fenced(SUM["code"]), SUM, problems="mbpp")["outcome"] == "passed"
    cheat = "def max(*x):\n    return 9\ndef sum(n):\n    return {345: 12, 10: 1}.get(n, 0)"
    assert judged(fenced(cheat), SUM, problems="mbpp")["outcome"] == "failed"


def test_what_kept_a_program_from_passing_is_counted() -> None:
    texts = [
        "def double(x):\n    while True: pass",
        "def double(x):\n    import os; os._exit(0)",
        "def double(x):\n    return bytearray(10**11)",
        "def double(x):\n    import socket; return socket.socket()",
        "def double(x):\n    return [x, x]",
    ]
    rows = [DOUBLE] * 6
    scores = score_completions(rows, [[fenced(text)] for text in texts] + [["no idea"]], Judging(timeout=1))
    assert scores.counts == {
        "failed_extractions": 1,
        "errors": 0,
        "timeouts": 1,
        "crashes": 1,
        "memory": 1,
        "forbidden": 1,
    }
    assert scores.metrics == {"pass@1": 1 / 6}
    assert [bool(row["error"]) for row in scores.predictions] == [True, True, True, True, False, False]


def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_program() -> None:
    for samples, correct, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if correct > samples or k > samples:
            continue
        draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert mean_pass_at_k([[True, False], [False, False]], 1) == 0.25
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    for wrong in ((5, 1, 6), (5, 6, 1), (5, 1, 0)):
        with pytest.raises(ValueError, match="k is 1 to 5"):
            pass_at_k(*wrong)


def test_several_samples_give_pass_at_every_k() -> None:
    right, wrong = fenced("def double(x):\n    return [x, x]"), "none"
    scores = score_completions([DOUBLE, DOUBLE], [[right, wrong, wrong], [wrong] * 3], Judging(k=[2, 3]))
    assert scores.metrics == {"pass@1": pytest.approx(1 / 6), "pass@2": pytest.approx(1 / 3), "pass@3": 0.5}
    assert [(row["index"], row["problem"], row["sample"]) for row in scores.predictions][:4] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
        (3, 1, 0),
    ]


def test_completions_must_fit_the_problems() -> None:
    for completions in ([["a"]], [["a"], ["b", "c"]]):
        with pytest.raises(UserError, match="one list per problem"):
            score_completions([DOUBLE, DOUBLE], completions, Judging())
    with pytest.raises(UserError, match=r"task\.problems=mbpp=task_id|task\.problems=mbpp=code"):
        score_completions([DOUBLE], [["a"]], Judging(problems="mbpp"))


def options(tmp_path: Path, **settings: Any) -> CodeOptions:
    """Options of a task that only tests."""
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({**DOUBLE, "task_id": f"Own/{i}"}) + "\n" for i in range(3)))
    return CodeOptions(**{"data": {"test": {"path": str(path)}}, "question": "{prompt}", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 4}, "all would be the same"),
        ({"k": [10]}, "needs samples=10"),
        ({"question": "write code"}, "names no column"),
        ({"stop": [""]}, "empty text"),
        ({"isolation": "none"}, "strict"),
        ({"data": {"train": {"path": "x"}}}, "prompt=None"),
    ],
)
def test_options_that_cannot_work_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        options(tmp_path, **settings)


def test_the_family_is_registered() -> None:
    assert TASKS["code"].options is CodeOptions


def test_where_programs_cannot_be_contained_scoring_refuses_before_any_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_holds(isolation: sandbox.Isolation) -> sandbox.Containment:
        raise sandbox.SandboxError("seccomp filter: Invalid argument")

    monkeypatch.setattr(sandbox, "require", nothing_holds)
    task = bind(options(tmp_path, data={"test": {"path": "not there.jsonl"}}))
    with pytest.raises(UserError, match=r"task\.isolation=strict: seccomp filter.*task\.isolation=weak"):
        task.load("test")
    with pytest.raises(UserError, match=r"task\.isolation=strict"):
        judged("")


def test_a_model_is_scored_and_a_killed_evaluation_continues(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = bind(
        options(
            tmp_path,
            question="### Instruction: {prompt}\n### Response:\n```python\n",
            samples=2,
            k=[2],
            sampling={"temperature": 1.0},
            max_new_tokens=4,
        )
    )
    rows = task.load("test").named("test")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    whole = task.evaluate(model, rows, tokenizer, Scoring(batch_size=4))
    assert whole.metrics == {"pass@1": 0.0, "pass@2": 0.0}
    assert [row["index"] for row in whole.predictions] == list(range(6))
    assert len({row["text"] for row in whole.predictions}) > 3

    def right(model: Any, tokenizer: Any, prompts: list[str], *, indices: list[int], done: Any, **rest: Any) -> None:
        assert all(prompts[index].endswith("```python\n") for index in indices)
        for index in indices:
            done([index], ["def double(x):\n    return [x, x]\n```\nThat is all."])

    kept = tmp_path / "kept.jsonl"
    Kept(kept, "key").add(whole.predictions[:3])
    monkeypatch.setattr(code, "generate_texts", right)
    seen: list[tuple[int, int]] = []
    scoring = Scoring(kept=Kept(kept, "key"), progress=lambda done, total: seen.append((done, total)))
    scores = task.evaluate(model, rows, tokenizer, scoring)
    assert [row["correct"] for row in scores.predictions] == [False] * 3 + [True] * 3
    assert scores.metrics == {"pass@1": 0.5, "pass@2": pytest.approx(2 / 3)}
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("prompt", "text", "whole"),
    [
        ("Write.", "x = 1", "x = 1"),
        ("Write.\n```python\n", "x = 1\n```", "```\nx = 1\n```"),
        ("Write.\n```python\n", "\n```python\nx = 1\n```", "\n```python\nx = 1\n```"),
        ("```\ny\n```\nWrite.", "x = 1", "x = 1"),
        ("Write `x`.", "x = 1", "x = 1"),
    ],
)
def test_a_question_may_end_inside_a_fence(prompt: str, text: str, whole: str) -> None:
    assert with_opened_fence(prompt, text) == whole


def test_training_rows_become_prompt_and_response(tiny_llama_dir: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"query": "good film ?", "answer": "the answer is fun"}) + "\n")
    task = bind(options(tmp_path, data={"train": {"path": str(train)}}, prompt="{query} :", response="{answer}"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    rows = task.prepare(Dataset.from_json(str(train), cache_dir=str(tmp_path / "cache")), tokenizer, "validation")
    learned = [i for i, mask in zip(rows[0]["input_ids"], rows[0]["completion_mask"], strict=True) if mask]
    assert tokenizer.decode(learned, skip_special_tokens=True).split() == ["the", "answer", "is", "fun"]


def test_what_precedes_the_function_is_kept() -> None:
    program = extracted(humaneval(DOUBLE), "```\ndef double(x):\n    return 1\n```")
    assert program is not None
    assert program.startswith("from typing import List")
    assert program.count("def double") == 1
    assert "def helper" in program
