"""`extends` and `use`: files on top of files, tests with folders of their own, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from goat_peft import recipes
from goat_peft.errors import UserError


def write(path: Path, data: dict) -> str:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(path)


def test_a_recipe_extends_a_shipped_one_and_changes_what_it_says() -> None:
    base = recipes.load("rte-roberta-large")
    assert (base.training.epochs, base.training.learning_rate) == (50, 2e-5)
    assert base.training.batch_size * base.training.gradient_accumulation_steps == 256
    assert recipes.load("rte-roberta-large", ["method=full"]).training.learning_rate == 1e-5


def test_a_chain_of_files_joins_blocks_key_by_key(tmp_path: Path, classify: dict) -> None:
    first = write(tmp_path / "first.yaml", classify)
    second = write(tmp_path / "second.yaml", {"extends": first, "training": {"batch_size": 3}, "name": "second"})
    third = write(tmp_path / "third.yaml", {"extends": second, "training": {"epochs": 9}})
    recipe = recipes.load(third)
    assert (recipe.name, recipe.training.batch_size, recipe.training.epochs) == ("second", 3, 9)
    assert recipe.training.learning_rate == classify["training"]["learning_rate"]


def test_a_block_that_names_another_thing_takes_nothing_from_the_one_below(tmp_path: Path, classify: dict) -> None:
    classify["method"] = {"name": "lora", "r": 4, "lora_alpha": 3}
    base = write(tmp_path / "base.yaml", classify)
    other = write(tmp_path / "other.yaml", {"extends": base, "method": "goat"})
    assert recipes.load(other).method.r == 8
    same = write(tmp_path / "same.yaml", {"extends": base, "method": {"name": "lora", "lora_alpha": 5}})
    assert (recipes.load(same).method.r, recipes.load(same).method.lora_alpha) == (4, 5)


def test_keys_beside_use_lie_on_top_of_the_task_file_and_a_path_replaces_its_hub_source() -> None:
    recipe = recipes.load("sst2-minilm", ["task.max_length=64", "task.data.test.path=own.jsonl"])
    assert (recipe.task.max_length, recipe.task.text) == (64, recipes.load_task("sst2").text)
    test = recipe.task.data.test
    assert (test.path, test.dataset, test.rows) == ("own.jsonl", None, None)
    assert recipe.task.data.train.rows == 67349
    assert recipes.load("sst2-minilm", ["task=cola"]).task.name == "cola"


def test_a_task_file_of_one_s_own_is_used_by_its_path(tmp_path: Path) -> None:
    block = {"type": "text_classification", "data": {"test": {"path": "a.csv"}}, "text": "t", "labels": [0, 1]}
    file = write(tmp_path / "mine.yaml", block)
    assert recipes.load_task(file).name == "mine"
    recipe = recipes.load("rte-minilm", [f"evaluation.tests=[{file}, rte]"])
    assert [test.name for test in recipe.evaluation.tests] == ["mine", "rte"]


def test_evaluation_folder_gives_each_test_the_folder_of_its_task_file() -> None:
    recipe = recipes.load("mnli-minilm", ["evaluation.folder=/data"])
    folders = {test.name: test.data.folder for test in recipe.evaluation.tests}
    assert folders == {"mnli-matched": "/data/mnli", "mnli-mismatched": "/data/mnli-mismatched"}
    own = "evaluation.tests=[{use: rte, data: {folder: /elsewhere}}]"
    assert recipes.load("rte-minilm", [own]).evaluation.tests[0].data.folder == "/elsewhere"


def test_evaluation_folder_moves_the_tests_of_a_resolved_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipes.to_yaml(recipes.load("mnli-minilm", ["evaluation.folder=/data"])), encoding="utf-8")
    folders = [test.data.folder for test in recipes.load(str(file), ["evaluation.folder=/new"]).evaluation.tests]
    assert folders == ["/new/mnli", "/new/mnli-mismatched"]


def test_load_task_takes_overrides_and_reports_them_as_the_task_s() -> None:
    assert recipes.load_task("gsm8k", ["data.folder=/data", "max_new_tokens=7"]).max_new_tokens == 7
    with pytest.raises(UserError, match="task.max_new_token=7: unknown key; did you mean max_new_tokens"):
        recipes.load_task("gsm8k", ["max_new_token=7"])
    with pytest.raises(UserError, match="task.use=gsm9k: no such file and no shipped task; did you mean gsm8k"):
        recipes.load_task("gsm9k")


def test_files_that_extend_each_other_in_a_circle_say_so(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    write(first, {"extends": str(second)})
    write(second, {"extends": str(first)})
    with pytest.raises(UserError, match=r"goes in a circle .*first.yaml -> .*second.yaml -> .*first.yaml"):
        recipes.load(str(first))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"extends": "miniml"}, "extends=miniml: no such file and no shipped defaults or recipe; did you mean minilm"),
        ({"extends": "gone.yaml"}, "extends=gone.yaml: No such file"),
        ({"extends": ["minilm"]}, "extends=.*one file"),
        ({"extends": "minilm", "name": "x", "task": {"use": 3}}, "task.use=3: not a name"),
    ],
)
def test_what_cannot_be_resolved_names_the_key(tmp_path: Path, data: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipes.load(write(tmp_path / "recipe.yaml", data))


def test_a_task_file_cannot_use_another(tmp_path: Path, classify: dict) -> None:
    classify["task"] = {"use": write(tmp_path / "task.yaml", {"use": "cola"})}
    with pytest.raises(UserError, match="task.use=.*task.yaml: uses cola itself"):
        recipes.load(write(tmp_path / "recipe.yaml", classify))


def test_the_paper_s_settings_are_the_recipes() -> None:
    """METHOD section 3, for one recipe of each column."""
    table = {
        "cars-clip-b32": (8, 16, 512, 1e-4, 35, 1.0),
        "math-llama2-7b": (8, 16, 32, 2e-5, 5, 1.0),
        "code-llama2-7b": (8, 16, 32, 2e-5, 5, 1.0),
        "chat-llama2-7b": (8, 16, 32, 2e-5, 5, 1.0),
        "commonsense-llama2-7b": (32, 64, 16, 1e-4, 3, 0.1),
        "cola-roberta-large": (32, 64, 256, 1e-4, 10, 1.0),
    }
    for name, expected in table.items():
        recipe = recipes.load(name)
        method, training = recipe.method, recipe.training
        batch = training.batch_size * training.gradient_accumulation_steps
        found = (method.r, method.lora_alpha, batch, training.learning_rate, training.epochs, method.eta)
        assert found == expected, name
        assert (training.warmup, training.schedule, training.weight_decay, training.bf16) == (100, "cosine", 0, True)
        assert (method.num_experts, method.top_k, method.rho, method.lora_dropout) == (8, 2, 10, 0.05)


def test_every_paper_recipe_has_a_small_sibling_on_the_same_task_and_tests() -> None:
    small = {"clip-b32": "vit-s", "roberta-large": "minilm", "llama2-7b": "smollm2"}
    for name in recipes.shipped():
        for large, sibling in small.items():
            if name.endswith(large):
                mine, other = recipes.load(name), recipes.load(name.removesuffix(large) + sibling)
                assert mine.task.name == other.task.name
                assert [t.name for t in mine.evaluation.tests] == [t.name for t in other.evaluation.tests]


def test_every_task_file_says_where_its_data_comes_from_and_is_used() -> None:
    used = {recipes.load(name).task.name for name in recipes.shipped()}
    used |= {test for name in recipes.shipped() for test in _test_names(name)}
    for name in recipes.task_files():
        options = recipes.load_task(name)
        assert options.name == name and options.about is not None
        assert name in used
        for split in ("train", "validation", "test"):
            source = getattr(options.data, split)
            assert source is None or source.rows is not None or name == "mawps"


def _test_names(name: str) -> list[str]:
    tests = recipes.read(name).get("evaluation", {}).get("tests", [])
    return [test if isinstance(test, str) else test["use"] for test in tests]
