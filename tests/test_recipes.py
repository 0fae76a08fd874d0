"""Recipes: overrides, messages, shipped files, and how rows are cut."""

from __future__ import annotations

import bz2
import gzip
import json
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from peft import TaskType
from torch import nn

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.methods import Method, register
from goat_peft.recipes import shelf
from goat_peft.recipes.schema import METHODS, Cut, MethodOptions, Source
from goat_peft.tasks.data import cut_rows, fill, load_source, resolve_path


def write(path: Path, data: dict) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_holds_for_every_method_and_stands_on_its_own_once_resolved(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    # What a run folder keeps must not depend on the files of the version that reads it.
    monkeypatch.setattr(shelf, "_root", lambda: pytest.fail("a shipped file was read"))
    data = yaml.safe_load(recipes.to_yaml(recipe))
    assert recipes.check(data) == recipe
    for method in METHODS.names():
        other = recipes.check({**data, "method": method})
        assert other.method.name == method and isinstance(other.training.learning_rate, float)


def test_overrides_reach_every_depth_and_are_read_as_yaml(tmp_path: Path, classify: dict) -> None:
    file = str(write(tmp_path / "r.yaml", classify))
    changes = ["training.learning_rate=3e-4", "training.epochs=null", "training.max_steps=7", "method.r=4"]
    recipe = recipes.load(file, [*changes, "task.labels=[fresh, rotten]", "model=other/model"])
    assert recipe.training.learning_rate == 3e-4
    assert (recipe.training.epochs, recipe.training.max_steps) == (None, 7)
    assert (recipe.method.r, recipe.task.labels) == (4, ["fresh", "rotten"])
    assert (recipe.model.name, recipe.model.dtype) == ("other/model", "float32")


def test_a_bare_method_name_takes_options_and_drops_the_old_ones(tmp_path: Path, classify: dict) -> None:
    file = str(write(tmp_path / "r.yaml", classify))
    recipe = recipes.load(file, ["method=goat", "method.r=16"])
    assert (recipe.method.name, recipe.method.r, recipe.method.num_experts) == ("goat", 16, 8)


def test_a_bare_method_name_keeps_the_settings_that_both_methods_have() -> None:
    lora = recipes.load("cola-roberta-large", ["method=lora"]).method
    assert (lora.name, lora.r, lora.lora_alpha, lora.lora_dropout) == ("lora", 32, 64, 0.05)
    assert "q_proj" in recipes.load("math-llama2-7b", ["method=dora"]).method.target_modules
    assert recipes.load("cola-roberta-large", ["method={name: lora}"]).method.r == 8
    assert recipes.load("cola-roberta-large", ["method=full"]).method.model_dump() == {"name": "full"}


def test_a_bare_method_name_never_keeps_what_makes_the_old_method() -> None:
    ablation = ["method.eta=3.0", "method.init_weights=random", "method.scaling=lora", "method.num_experts=4"]
    hydra = recipes.load("cola-roberta-large", [*ablation, "method=hydralora"]).method
    assert (hydra.r, hydra.num_experts, hydra.eta, hydra.init_weights) == (32, 4, 1.0, "lora")
    assert (hydra.router, hydra.shared_A) == ("softmax", True)
    same = recipes.load("cola-roberta-large", [*ablation, "method=goat"]).method
    assert (same.eta, same.init_weights, same.num_experts) == (3.0, "random", 4)


def test_learning_rate_may_be_one_per_method(tmp_path: Path, classify: dict) -> None:
    classify["training"]["learning_rate"] = {"lora": 0.5, "goat": 0.25}
    file = str(write(tmp_path / "r.yaml", classify))
    assert recipes.load(file).training.learning_rate == 0.5
    assert recipes.load(file, ["method=goat"]).training.learning_rate == 0.25
    assert recipes.load(file, ["method=full"]).training.learning_rate == METHODS["full"].learning_rate
    assert recipes.load(file, ["method=full", "training.learning_rate.other=0.125"]).training.learning_rate == 0.125


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.lerning_rate=1", ["training.lerning_rate=1", "unknown key", "learning_rate"]),
        ("trainin.epochs=1", ["trainin", "unknown key", "training"]),
        ("method.rank=4", ["method.rank=4", "unknown key", "r"]),
        ("task.data.trian.path=x", ["task.data.trian", "unknown key", "train"]),
        ("task.data.train.pth=x", ["task.data.train.pth=x", "unknown key", "path"]),
        ("training.batch_size=many", ["training.batch_size=many", "integer"]),
        ("training.learning_rate=fast", ["training.learning_rate=fast", "number"]),
        ("training.epochs=-1", ["training.epochs=-1", "greater than 0"]),
        ("training.max_steps=5", ["epochs and max_steps"]),
        ("training.schedule=cosin", ["training.schedule=cosin", "'cosine'"]),
        ("method=gaot", ["method.name=gaot", "goat"]),
        ("task.type=text_clasification", ["task.type=text_clasification", "text_classification"]),
        ("method={name: goat, r: 12}", ["method.r=12", "multiple of num_experts=8", "16"]),
        ("method={name: goat, top_k: 9}", ["method.top_k=9", "num_experts=8"]),
        ("method={name: goat, scaling: best}", ["method.scaling='best'", "paper, lora, rslora"]),
        ("method={name: goat, eta: nought}", ["method.eta=nought", "number"]),
        ("task.labels=[a, a]", ["labels=['a', 'a']", "twice"]),
        ("task.data.train={}", ["task.data.train", "path", "dataset"]),
        ("task.data.train.path=http://a/b.json", ["task.data.train.path=http://a/b.json", "https://"]),
        ("task.data.train.cut_after={text: '('}", ["task.data.train.cut_after", "regular expression"]),
        ("task.data.cut.validation=0", ["task.data.cut.validation=0", "greater than 0"]),
        ("task.data={test: {path: a.csv}}", ["task.data.train=None", "only tests"]),
        ("task.data={}", ["task.data", "train, test or both"]),
        ("task.version=0", ["task.version=0", "greater than 0"]),
        ("task.about={source: me, size: small}", ["task.about.licence: missing", "terms"]),
        ("task=colla", ["task.use=colla", "no such file and no shipped task", "cola"]),
        ("task={use: cola, type: generation}", ["task.type=generation", "text_classification"]),
        ("evaluation.tests=[qnly]", ["evaluation.tests.0.use=qnly", "qnli"]),
        ("evaluation.tests=[rte, rte]", ["evaluation.tests.0.name=rte", "another test's name"]),
        ("evaluation.tests=[{use: rte, max_len: 3}]", ["evaluation.tests.0.max_len=3", "unknown key", "max_length"]),
        ("evaluation.tests=[commonsense_170k]", ["evaluation.tests.0.data.test=None", "no test rows"]),
        ("training.report_to=[wanddb]", ["training.report_to.0=wanddb", "'wandb'"]),
        ("name=a/b", ["name=a/b", "match pattern"]),
        ("model=null", ["model=None"]),
    ],
)
def test_a_mistake_is_one_line_with_field_and_remedy(
    tmp_path: Path, classify: dict, override: str, said: list[str]
) -> None:
    file = str(write(tmp_path / "r.yaml", classify))
    with pytest.raises(UserError) as caught:
        recipes.load(file, [override])
    text = str(caught.value)
    assert "\n" not in text
    for part in said:
        assert part in text


def test_every_mistake_is_reported_at_once(tmp_path: Path, classify: dict) -> None:
    classify["training"] |= {"epoch": 3, "batch_size": 0}
    del classify["task"]["text"]
    with pytest.raises(UserError) as caught:
        recipes.load(str(write(tmp_path / "r.yaml", classify)))
    assert len(str(caught.value).splitlines()) == 3
    assert "task.text: missing; a column's name" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "name: [", "\tname: x"])
def test_a_file_that_is_no_recipe_says_so(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="bad.yaml"):
        recipes.load(str(file))


def test_an_unknown_name_gets_the_nearest_recipe() -> None:
    with pytest.raises(UserError, match="did you mean demo-reviews"):
        recipes.load("demo-review")
    with pytest.raises(UserError, match=r"missing.yaml: No such file"):
        recipes.load("missing.yaml")


def test_a_method_is_added_by_registering_it(tmp_path: Path, classify: dict) -> None:
    class ToyOptions(MethodOptions):
        name: str = "toy"
        depth: int = 1

    def build(model: nn.Module, options: ToyOptions, task_type: TaskType) -> nn.Module:
        return model

    register(Method("toy", "a toy", ToyOptions, build, 0.5))
    try:
        recipe = recipes.load(str(write(tmp_path / "r.yaml", classify)), ["method={name: toy, depth: 3}"])
        assert recipe.method.depth == 3
        assert "depth: 3" in recipes.to_yaml(recipe)
    finally:
        METHODS.unregister("toy")


def test_cut_keeps_groups_apart_and_the_test_rows_fixed() -> None:
    rows = Dataset.from_list([{"film": i // 7, "n": i} for i in range(140)])
    first = cut_rows(rows, Cut(test=30, validation=20, group_by="film"))
    films = [set(part["film"]) for part in first.values()]
    assert [len(first[name]) for name in ("test", "validation")] == [30, 20]
    assert not films[0] & films[1] and not films[0] & films[2] and not films[1] & films[2]
    other = cut_rows(rows, Cut(test=30, validation=40, train=10, group_by="film"))
    assert other["test"]["n"] == first["test"]["n"]
    assert len(other["train"]) == 10
    assert cut_rows(rows, Cut(test=30, seed=1))["test"]["n"] != cut_rows(rows, Cut(test=30))["test"]["n"]


def test_a_cut_that_is_too_large_says_how_many_rows_are_left() -> None:
    rows = Dataset.from_list([{"n": i} for i in range(10)])
    with pytest.raises(UserError, match=r"cut.validation=5: only 2 of 10 rows"):
        cut_rows(rows, Cut(test=8, validation=5))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.bz2", "parquet"])
def test_local_files_of_every_kind_hold_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = [{"text": f"row {i}, with a comma", "label": i % 2} for i in range(5)]
    path = tmp_path / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = ("text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in rows)).encode()
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(kind.rpartition(".")[2], bytes)
        path.write_bytes(pack(lines if kind.startswith("jsonl") else table))
    assert load_source(Source(path=str(path)), "task.data.train").to_list() == rows
    kept = load_source(Source(path=str(path), keep={"label": [1]}, limit=1), "task.data.train")
    assert kept.to_list() == [rows[1]]


def test_a_package_path_is_found_without_importing_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "inert_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "rows.csv").write_text("a\n1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("package:inert_package/rows.csv", "x") == package / "rows.csv"
    assert "inert_package" not in sys.modules
    with pytest.raises(UserError, match="x=package:absent_package/y: package absent_package is not installed"):
        resolve_path("package:absent_package/y", "x")


def test_templates_reach_into_nested_columns_and_name_what_is_missing() -> None:
    rows = Dataset.from_list([{"q": "why", "choices": {"text": ["a", "b"]}}])
    assert fill("{q}? {choices[text][1]}", rows, "task.prompt") == ["why? b"]
    with pytest.raises(UserError, match="row 0 cannot fill it"):
        fill("{choices[text][2]}", rows, "task.prompt")
    with pytest.raises(UserError, match="task.prompt=choice: the data has no such column; did you mean choices"):
        fill("{choice}", rows, "task.prompt")
