"""Code: a model writes programs; they run in the sandbox against a benchmark's tests, and pass@k counts those that pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from datasets import Dataset
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import nn
from transformers import PreTrainedTokenizerBase

from .. import sandbox
from ..errors import UserError
from ..recipes.schema import Strict
from . import processes
from .base import DataTask, Family, Scores, Scoring, register
from .data import Splits, require_columns, template_columns
from .decoding import Sampling, Stops, cut, generate_texts
from .generation import Generation
from .passk import mean_pass_at_k
from .programs import COLUMNS, READERS, Problem, completed, extracted

FENCE = "```"
# What is counted beside the figures -> the outcome that it counts.
COUNTED = {"errors": "error", "timeouts": "timeout", "crashes": "crash", "memory": "memory", "forbidden": "forbidden"}


class Judging(Strict):
    """How written programs are found, run and counted."""

    problems: Literal["humaneval", "mbpp"] = Field("humaneval", description="whose records the test rows are")
    extract: Literal["fenced", "completion"] = Field(
        "fenced",
        description="fenced: the first fenced block of an answer, or all of it when it has none; completion: the text continues the problem",
    )
    stop: Stops = Field([], description="texts before which a generated text ends")
    k: list[PositiveInt] = Field([], description="pass@k is reported for these too; pass@1 always is")
    timeout: PositiveFloat = Field(
        5.0, description="seconds of processor time per program; six times that on the clock"
    )
    memory: PositiveInt = Field(1024, description="MiB that a program may use")
    isolation: Literal["strict", "weak"] = Field(
        "strict",
        description="strict: refuse where programs cannot be contained; weak: run them all the same, for a model that you trust",
    )

    @property
    def limits(self) -> sandbox.Limits:
        """What one program may use."""
        return sandbox.Limits(cpu_seconds=self.timeout, wall_seconds=6 * self.timeout, memory=self.memory << 20)

    @property
    def apart(self) -> sandbox.Isolation:
        """How programs are kept apart from the machine."""
        return sandbox.Isolation(strict=self.isolation == "strict")


class CodeOptions(Judging, DataTask):
    """Instruction in, program out; tested on a benchmark of programming problems."""

    type: Literal["code"] = "code"
    prompt: str | None = Field(None, description="template over the training rows' columns; needed for training")
    response: str | None = Field(None, description="template of what the model learns to write; needed for training")
    question: str = Field(description="template over the test rows' columns; may end in an opened fence")
    max_length: PositiveInt = Field(1024, description="tokens of prompt and response; longer examples are cut")
    max_new_tokens: PositiveInt = Field(512, description="tokens generated per program")
    samples: PositiveInt = Field(1, description="programs per problem")
    sampling: Sampling | None = Field(None, description="draw tokens; the likeliest is taken when not given")

    @field_validator("prompt", "response", "question")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is not None and not template_columns(template):
            raise ValueError("names no column; write columns in braces, such as '{prompt}'")
        return template

    @model_validator(mode="after")
    def _fits_together(self) -> CodeOptions:
        for name in ("prompt", "response"):
            if self.data.train is not None and getattr(self, name) is None:
                raise ValueError(f"{name}=None: training rows are given; say what becomes of them")
        if self.samples > 1 and self.sampling is None:
            raise ValueError(
                f"samples={self.samples}: all would be the same; give sampling, such as {{temperature: 0.8}}"
            )
        if self.k and max(self.k) > self.samples:
            raise ValueError(f"k={self.k}: needs samples={max(self.k)} or more, not {self.samples}")
        return self


class Code(Generation):
    """Trained as generation is; scored by running what it writes."""

    main_metric = "pass@1"

    def load(self, only: str | None = None, field: str = "task.data") -> Splits:
        """Read the rows; when programs will be run on them, first find out whether they can be contained here."""
        if only in (None, "test"):
            contained(self.options)
        return super().load(only, field)

    def check(self, rows: Dataset) -> None:
        """Every row is a problem of the benchmark's form and fills the question."""
        read_problems(rows, self.options)
        self._fill("question", rows)

    def evaluate(self, model: nn.Module, rows: Dataset, processor: PreTrainedTokenizerBase, scoring: Scoring) -> Scores:
        """Write `samples` programs per problem and run each; a kept row is one program.

        Its index is `problem * samples + sample`.
        """
        options: CodeOptions = self.options
        containment = contained(options)
        problems = read_problems(rows, options)
        prompts = [prompt for prompt in self._fill("question", rows) for _ in range(options.samples)]
        mine = processes.share(scoring.kept.missing(len(prompts)))
        done = 0

        def keep(indices: list[int], texts: list[str]) -> None:
            nonlocal done
            if options.extract == "fenced":
                texts = [with_opened_fence(prompts[index], text) for index, text in zip(indices, texts, strict=True)]
            places = [(index // options.samples, index % options.samples) for index in indices]
            judged = judge([(problems[place], text) for (place, _), text in zip(places, texts, strict=True)], options)
            scoring.kept.add(
                [
                    {"index": index, "problem": place, "sample": sample, **row}
                    for index, (place, sample), row in zip(indices, places, judged, strict=True)
                ]
            )
            done += len(indices)
            scoring.progress(done, len(mine))

        generate_texts(
            model,
            processor,
            prompts,
            max_new_tokens=options.max_new_tokens,
            batch_size=scoring.batch_size,
            indices=mine,
            stop=options.stop,
            sampling=options.sampling,
            done=keep,
        )
        return scores(scoring.kept.rows(), options.k, _note(containment))


def score_completions(
    rows: Iterable[Mapping[str, Any]],
    completions: Sequence[Sequence[str]],
    judging: Judging,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score texts that some model wrote, without a model: `completions[i]` holds the samples of row i.

    Every row has as many samples. Raises `UserError` when programs cannot be contained here.
    """
    containment = contained(judging)
    problems = read_problems(rows, judging)
    if len(problems) != len(completions) or len({len(samples) for samples in completions}) != 1:
        raise UserError(
            f"completions: {len(completions)} lists of {sorted({len(samples) for samples in completions})} samples for "
            f"{len(problems)} problems; give one list per problem, all of one length"
        )
    count = len(completions[0])
    written = [(problem, text) for problem, samples in zip(problems, completions, strict=True) for text in samples]
    judged = judge(written, judging, done)
    found = [{"index": i, "problem": i // count, "sample": i % count, **row} for i, row in enumerate(judged)]
    return scores(found, judging.k, _note(containment))


def read_problems(rows: Iterable[Mapping[str, Any]], judging: Judging) -> list[Problem]:
    """Read the benchmark's records."""
    table = rows if isinstance(rows, Dataset) else Dataset.from_list([dict(row) for row in rows])
    require_columns(table, COLUMNS[judging.problems], f"task.problems={judging.problems}")
    return [READERS[judging.problems](row) for row in table]


def judge(
    written: Sequence[tuple[Problem, str]],
    judging: Judging,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Run what was written; per text a row of problem name, text, program (None: no code found), outcome and error."""
    programs = []
    for problem, text in written:
        text = cut(text, judging.stop)
        programs.append(completed(problem, text) if judging.extract == "completion" else extracted(problem, text))
    cases = [
        sandbox.Case(program, problem.tests, problem.names)
        for (problem, _), program in zip(written, programs, strict=True)
        if program is not None
    ]
    try:
        # Processes of one launch share the machine's cores and memory.
        workers = max(1, sandbox.cores() // processes.count())
        verdicts = iter(
            sandbox.run_programs(cases, limits=judging.limits, isolation=judging.apart, workers=workers, done=done)
        )
    except sandbox.SandboxError as error:
        raise UserError(f"task.isolation={judging.isolation}: {error}") from error
    rows = []
    for (problem, text), program in zip(written, programs, strict=True):
        verdict = None if program is None else next(verdicts)
        rows.append(
            {
                "name": problem.name,
                "correct": verdict is not None and verdict.passed,
                "outcome": "no code" if verdict is None else verdict.outcome,
                "error": "" if verdict is None else verdict.error,
                "seconds": 0.0 if verdict is None else verdict.seconds,
                "program": program,
                "text": text,
            }
        )
    return rows


def scores(rows: list[dict[str, Any]], k: Iterable[int], note: str = "") -> Scores:
    """Figures over the rows of all programs: pass@1 and those asked for, and what kept programs from being judged right."""
    solved: dict[int, list[bool]] = {}
    for row in rows:
        solved.setdefault(row["problem"], []).append(row["correct"])
    metrics = {f"pass@{size}": mean_pass_at_k(list(solved.values()), size) for size in sorted({1, *k})}
    outcomes = Counter(row["outcome"] for row in rows)
    counts = {"failed_extractions": outcomes["no code"]} | {name: outcomes[value] for name, value in COUNTED.items()}
    return Scores(metrics, rows, counts, note=note)


def contained(judging: Judging) -> sandbox.Containment:
    """Find out what the sandbox holds here; raise `UserError` when that is less than the options ask for."""
    try:
        return sandbox.require(judging.apart)
    except sandbox.SandboxError as error:
        raise UserError(
            f"task.isolation={judging.isolation}: {error}; score on Linux (x86_64 or aarch64) with seccomp filters, or, on "
            "another Linux and for a model whose programs you trust, set task.isolation=weak"
        ) from error


def with_opened_fence(prompt: str, text: str) -> str:
    """The text behind the fence that the prompt ends in, if it ends inside one and the text does not open its own."""
    opened = sum(line.lstrip().startswith(FENCE) for line in prompt.splitlines()) % 2 == 1
    return f"{FENCE}\n{text}" if opened and not text.lstrip().startswith(FENCE) else text


def _note(containment: sandbox.Containment) -> str:
    """What a reader should know about how the programs ran."""
    if containment.escapes:
        return f"programs were not contained: {', '.join(containment.escapes)}"
    if not containment.reading:
        return "programs could read this user's files: the kernel has no Landlock, and no other user could run them"
    return ""


register(
    Family(
        name="code",
        description="instruction and program; pass@k of programs that run in a sandbox against tests",
        options=CodeOptions,
        task=Code,
    )
)
