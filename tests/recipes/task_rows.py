"""A few rows for every task file, in the schema of its hub data: real ones from the shared folder where it is there, else made ones."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from PIL import Image

from goat_peft import recipes

SHARED = Path(__file__).parents[3] / "shared" / "data"
COUNT = {"train": 10, "test": 4}
Row = dict[str, Any]

# (task, split) -> file of the shared folder. What is not named here has no real rows there.
REAL: dict[tuple[str, str], str] = {
    **{(task, "train"): f"glue/{task}/train" for task in ("cola", "sst2", "mrpc", "rte")},
    **{(task, "test"): f"glue/{task}/validation" for task in ("cola", "sst2", "rte")},
    ("mrpc", "test"): "glue/mrpc/test",
    ("commonsense_170k", "train"): "commonsense/ARC-Easy/train",
    ("arc-easy", "test"): "commonsense/ARC-Easy/test",
    ("arc-challenge", "test"): "commonsense/ARC-Challenge/test",
    **{
        (task, "test"): f"commonsense/{task}/test"
        for task in ("boolq", "piqa", "social_i_qa", "winogrande", "openbookqa")
    },
    **{(task, "train"): f"math/{task}/train" for task in ("gsm8k", "mawps")},
    ("mawps", "validation"): "math/mawps/validation",
    **{
        (task, "test"): f"math/{task}/test"
        for task in ("gsm8k", "svamp", "aqua", "mawps", "addsub", "multiarith", "singleeq", "mathqa")
    },
    ("humaneval", "test"): "code/humaneval/test",
    ("mbpp", "test"): "code/mbpp/all",
    ("mt-bench", "train"): "chat/alpaca_en_demo/train",
    ("mt-bench", "test"): "chat/mt_bench/question",
}


def _choice(kind: str, count: int) -> Callable[[int], Row]:
    """Rows in LLM-Adapters' form."""

    def row(index: int) -> Row:
        options = [f"{kind}{n + 1}" for n in range(count)] if kind else ["true", "false"]
        answer = options[index % len(options)]
        told = f"Please choose: the film is\n\nAnswer format: {'/'.join(options)}"
        return {"instruction": told, "input": "", "output": f"the correct answer is {answer}", "answer": answer}

    return row


def _pair(first: str, second: str, classes: int = 2) -> Callable[[int], Row]:
    def row(index: int) -> Row:
        return {first: "the film is good", second: f"the plot was bad {index}", "label": index % classes, "idx": index}

    return row


def _sentence(index: int) -> Row:
    return {"sentence": f"the film is {'good' if index % 2 else 'bad'}", "label": index % 2, "idx": index}


def _number(index: int) -> Row:
    return {"instruction": f"One film and {index} films are how many?", "answer": f"{index + 1}.0"}


def _letter(index: int) -> Row:
    return {"instruction": "Which? Answer Choices: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5", "answer": "ABCDE"[index % 5]}


def _problem(index: int) -> Row:
    name = f"add{index}"
    return {
        "task_id": f"HumanEval/{index}",
        "prompt": f'def {name}(x):\n    """Add {index} to x."""\n',
        "entry_point": name,
        "canonical_solution": f"    return x + {index}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {index + 1}\n",
    }


def _basic_problem(index: int) -> Row:
    return {
        "task_id": index,
        "text": f"Write a function to add {index}.",
        "code": f"def add(x):\n    return x + {index}",
        "test_setup_code": "",
        "test_list": [f"assert add({n}) == {n + index}" for n in range(3)],
        "challenge_test_list": [],
    }


MADE: dict[tuple[str, str], Callable[[int], Row]] = {
    **{(task, split): _sentence for task in ("cola", "sst2") for split in ("train", "test")},
    **{(task, split): _pair("sentence1", "sentence2") for task in ("mrpc", "rte") for split in ("train", "test")},
    **{("qqp", split): _pair("question1", "question2") for split in ("train", "test")},
    **{("qnli", split): _pair("question", "sentence") for split in ("train", "test")},
    **{("mnli", split): _pair("premise", "hypothesis", 3) for split in ("train", "test")},
    ("mnli-mismatched", "test"): _pair("premise", "hypothesis", 3),
    **{
        ("stsb", split): lambda index: _pair("sentence1", "sentence2")(index) | {"label": index % 6 + 0.5}
        for split in ("train", "test")
    },
    ("commonsense_170k", "train"): _choice("answer", 4),
    ("boolq", "test"): _choice("", 2),
    ("piqa", "test"): _choice("solution", 2),
    ("social_i_qa", "test"): _choice("answer", 3),
    ("hellaswag", "test"): _choice("ending", 4),
    ("winogrande", "test"): _choice("option", 2),
    **{(task, "test"): _choice("answer", 4) for task in ("arc-easy", "arc-challenge", "openbookqa")},
    ("metamathqa", "train"): lambda index: {
        "type": "GSM_Rephrased" if index % 2 else "MATH_AnsAug",
        "query": "One film and one film are how many?",
        "original_question": "What is 1 + 1?",
        "response": "They are two.\n#### 2\nThe answer is: 2",
    },
    **{
        ("gsm8k", split): lambda index: {"question": "How many films?", "answer": f"One and {index}.\n#### {index + 1}"}
        for split in ("train", "test")
    },
    **{
        ("mawps", split): lambda index: {"id": str(index), "question": f"How many? {index}", "result": str(index)}
        for split in ("train", "validation", "test")
    },
    **{(task, "test"): _number for task in ("svamp", "addsub", "multiarith", "singleeq")},
    **{(task, "test"): _letter for task in ("aqua", "mathqa")},
    ("humaneval", "train"): lambda index: {
        "query": f"Add {index}.",
        "answer": f"So:\n```python\nx + {index}\n```\nThat was it." if index % 3 else "No.",
        "lang": "python",
    },
    ("humaneval", "test"): _problem,
    ("mbpp", "test"): _basic_problem,
    ("mt-bench", "train"): lambda index: {"instruction": "Name a film.", "output": "The Great One."},
    ("mt-bench", "test"): lambda index: {
        "question_id": 81 + index,
        "category": "writing",
        "turns": ["Write of a film.", "Again, shorter."],
    },
}


def is_image(task: str) -> bool:
    """Whether a task file is one of images."""
    return recipes.load_task(task).type == "image_classification"


def write(task: str, folder: Path) -> None:
    """Write a file per split of a task into `folder`, named as `data.folder` wants them."""
    data = recipes.load_task(task).data
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        source = getattr(data, split)
        if source is None:
            continue
        count = COUNT.get(split, COUNT["test"])
        place = folder / (source.file or source.split)
        if is_image(task):
            _pictures(task, source.columns, count).to_parquet(place.with_suffix(".parquet"))
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows(task, split, count))
            place.with_suffix(".jsonl").write_text(lines, encoding="utf-8")


def rows(task: str, split: str, count: int) -> list[Row]:
    """Rows of one split: the first of the shared file, if there is a shared folder and a file for it."""
    name = REAL.get((task, split))
    if name is None or not SHARED.is_dir():
        return [MADE[task, split](index) for index in range(count)]
    with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def _pictures(task: str, columns: dict[str, str], count: int) -> Dataset:
    """Pictures under the hub's column names, with labels as ids of the task's classes (PCAM: false and true)."""
    hub = {name: column for column, name in columns.items()}
    options = recipes.load_task(task)
    classes = options.num_classes or len(options.labels)
    labels = [bool(i % 2) if task == "pcam" else i % classes for i in range(count)]
    images = [{"bytes": image, "path": None} for image in _images()[:count]]
    return Dataset.from_dict({hub.get("image", "image"): images, hub.get("label", "label"): labels})


@cache
def _images() -> list[bytes]:
    """Ten encoded pictures of 32 x 32: CIFAR-10's where it is there."""
    file = SHARED / "image" / "cifar10" / "test.parquet"
    if SHARED.is_dir():
        found = load_dataset("parquet", data_files=str(file), split="train[:10]")
        return [row["bytes"] for row in found.data.column("image").to_pylist()]
    made = []
    for index in range(10):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (20 * index, 100, 200 - 20 * index)).save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made
