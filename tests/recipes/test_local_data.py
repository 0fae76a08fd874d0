"""The shared folder's files through `data.folder` and `evaluation.folder`: the schema and the counts that the task files state."""

from __future__ import annotations

import pytest
import task_rows

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.tasks import bind

pytestmark = pytest.mark.skipif(not task_rows.SHARED.is_dir(), reason=f"needs {task_rows.SHARED}")

# Task files whose shared copies are whole, by the folder that holds them.
WHOLE = {
    "glue/cola": {"cola": ("train", "test")},
    "glue/sst2": {"sst2": ("test",)},
    "glue/rte": {"rte": ("train", "test")},
    "math": {
        "gsm8k": ("train", "test"),
        "mawps": ("train", "validation", "test"),
        **dict.fromkeys(["svamp", "aqua", "addsub", "multiarith", "singleeq", "mathqa"], ("test",)),
    },
    "commonsense": dict.fromkeys(
        ["boolq", "piqa", "social_i_qa", "winogrande", "arc-easy", "arc-challenge", "openbookqa"], ("test",)
    ),
    "code/humaneval": {"humaneval": ("test",)},
    "chat/mt_bench": {"mt-bench": ("test",)},
}
CASES = [(folder, task, split) for folder, found in WHOLE.items() for task, splits in found.items() for split in splits]


@pytest.mark.parametrize(("folder", "task", "split"), CASES)
def test_a_shared_file_has_the_rows_and_columns_that_its_task_file_states(folder: str, task: str, split: str) -> None:
    place = task_rows.SHARED / folder
    inside = place if "/" in folder else place / task
    options = recipes.load_task(task, [f"data.folder={inside}"])
    rows = bind(options).load(split).named(split)
    source = getattr(options.data, split)
    assert len(rows) == (source.rows or len(rows))
    wanted = {"generation": {"instruction", "answer"} if task != "gsm8k" else {"question", "answer"}}
    assert wanted.get(options.type, set()) <= set(rows.column_names)


def test_a_part_of_a_set_is_refused_and_taken_when_asked_for() -> None:
    folder = f"data.folder={task_rows.SHARED / 'glue' / 'sst2'}"
    with pytest.raises(UserError, match=r"rows=67349: .* the data has 20000"):
        bind(recipes.load_task("sst2", [folder])).load("train")
    assert len(bind(recipes.load_task("sst2", [folder, "data.train.rows=null"])).load("train").train) == 20000
    mbpp = ["data.test.file=all", "data.test.rows=974", f"data.folder={task_rows.SHARED / 'code' / 'mbpp'}"]
    assert len(bind(recipes.load_task("mbpp", mbpp)).load("test").test) == 974
