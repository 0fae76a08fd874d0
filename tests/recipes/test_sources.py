"""Sources: renamed columns, filters in their order, counted rows, local folders, and rows that are too long."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from goat_peft.errors import UserError
from goat_peft.recipes import Cut, Data, Source
from goat_peft.tasks.data import cut_rows, load_source, load_splits, short_enough


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Ten rows of text; row 3 has no code, row 4 refuses."""
    rows = [{"kind": "GSM" if i % 2 else "MATH", "text": f"row {i} ```a\nb``` and ```c```"} for i in range(10)]
    rows[3]["text"] = "no code"
    rows[5]["text"] = "I am SORRY ```a```"
    path = tmp_path / "train.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


def read(file: str, **settings: object) -> list[str]:
    return load_source(Source(path=file, **settings), "task.data.train")["text"]


def test_filters_keep_leave_out_and_cut_in_the_order_of_the_fields(file: str) -> None:
    assert len(read(file, containing={"kind": ["GSM", "none"]})) == 5
    assert "no code" not in read(file, containing={"text": ["```"]})
    assert not any("SORRY" in text for text in read(file, not_containing={"text": ["sorry", "as an ai"]}))
    assert read(file, cut_after={"text": "```.*?```"})[0] == "row 0 ```a\nb```"
    assert read(file, cut_after={"text": "```.*?```"})[3] == "no code"
    # The cut comes after the filters: a fence that it removes still counts for them.
    both = read(file, containing={"text": ["```c```"]}, cut_after={"text": "```.*?```"}, limit=2)
    assert both == ["row 0 ```a\nb```", "row 1 ```a\nb```"]


def test_rows_that_are_not_as_many_as_expected_are_refused_with_both_figures(file: str) -> None:
    assert len(read(file, rows=10, limit=3)) == 3
    with pytest.raises(UserError, match=r"task.data.train.rows=11: .* the data has 10; .*rows: null"):
        read(file, rows=11)


def test_columns_get_the_task_s_names_and_may_have_them_already(file: str) -> None:
    rows = load_source(Source(path=file, columns={"text": "question", "label": "kind"}), "x")
    assert rows.column_names == ["kind", "question"]
    with pytest.raises(UserError, match=r"x.columns=txt: the data has no such column; did you mean text"):
        load_source(Source(path=file, columns={"txt": "question"}), "x")
    with pytest.raises(UserError, match=r"x.columns.text=kind: the data has both"):
        load_source(Source(path=file, columns={"text": "kind"}), "x")


def test_too_long_rows_go_before_the_limit_counts() -> None:
    rows = Dataset.from_list([{"n": n} for n in range(2500)])
    source = Source(path="x", max_tokens=1200, limit=1100)
    measured: list[int] = []

    def lengths(part: Dataset) -> list[int]:
        measured.extend(part["n"])
        return [2 if n % 2 else 1200 for n in part["n"]]

    kept = short_enough(rows, source, lengths, "task.data.train")
    assert kept["n"] == list(range(1, 2200, 2))
    with pytest.raises(UserError, match="task.data.train.max_tokens=1200: every row is longer"):
        short_enough(rows, source, lambda part: [1200] * len(part), "task.data.train")


def test_a_limit_waits_for_the_tokenizer_where_length_decides(file: str) -> None:
    assert len(read(file, max_tokens=5, limit=2)) == 10


def test_a_folder_stands_for_the_hub_and_leaves_local_paths_alone(tmp_path: Path, file: str) -> None:
    for name in ("validation-00000-of-00002", "validation-00001-of-00002", "asked"):
        Dataset.from_list([{"text": name}]).to_parquet(tmp_path / f"{name}.parquet")
    hub = {"dataset": "a/b"}
    sources = {"train": Source(path=file), "validation": Source(**hub, split="validation")}
    data = Data(**sources, test=Source(**hub, split="train", file="asked"), folder=str(tmp_path))
    splits = load_splits(data)
    assert (len(splits.train), len(splits.validation), splits.test["text"]) == (10, 2, ["asked"])
    alone = load_splits(data, only="test")
    assert alone.train is None and alone.validation is None and len(alone.test) == 1
    # A web address is no local path: the folder stands for it too.
    web = Source(path="https://example.org/x.json", split="asked")
    assert load_source(web, "task.data.test", str(tmp_path))["text"] == ["asked"]


def test_a_folder_s_name_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "ARC-Easy").mkdir()
    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "ARC-Easy" / "test.parquet")
    assert len(load_source(Source(dataset="a/b", split="test"), "x", str(tmp_path / "arc-easy"))) == 1


def test_what_a_folder_lacks_is_said_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    source = Source(dataset="a/b", split="test")
    with pytest.raises(UserError, match=r"task.data.test.file=test: .* holds no test.jsonl.*it holds train.jsonl"):
        load_source(source, "task.data.test", str(tmp_path))
    with pytest.raises(UserError, match=r"task.data.folder=.*absent: no such folder"):
        load_source(source, "task.data.test", str(tmp_path / "absent"))
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="neither data files nor a folder of pictures per class"):
        load_source(source, "task.data.test", str(tmp_path))


def test_pictures_lie_in_a_folder_per_class(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{index}.png")
    hub = {"dataset": "a/b"}
    splits = load_splits(Data(train=Source(**hub), test=Source(**hub, split="test"), folder=str(tmp_path)))
    assert splits.train.features["label"].names == ["cat", "dog"]
    assert (len(splits.train), len(splits.test), splits.test["label"]) == (4, 2, [0, 1])
    assert len(load_source(Source(path=str(tmp_path / "train")), "x")) == 4


def test_several_files_are_one_source(tmp_path: Path, file: str) -> None:
    assert len(load_source(Source(path=[file, file], rows=20), "x")) == 20
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": 5}\n')
    with pytest.raises(UserError, match=r"x.path=.*the files' columns differ \(kind, text against text\)"):
        load_source(Source(path=[file, str(other)]), "x")
    other.write_text('{"text": 5, "kind": "GSM"}\n')
    with pytest.raises(UserError, match=r"x.path=.*the files' columns differ"):
        load_source(Source(path=[file, str(other)]), "x")
    with pytest.raises(UserError, match="x.containing.text: row 0 holds 5, which is no text"):
        load_source(Source(path=str(other), containing={"text": ["a"]}), "x")


def test_a_cut_may_be_a_share_of_all_rows_up_to_a_most() -> None:
    rows = Dataset.from_list([{"n": i} for i in range(1000)])
    parts = cut_rows(rows, Cut(validation=0.1, at_most=5000))
    assert (len(parts["validation"]), len(parts["train"])) == (100, 900)
    assert len(cut_rows(rows, Cut(validation=0.1, at_most=30))["validation"]) == 30
    assert not set(parts["validation"]["n"]) & set(parts["train"]["n"])
    few = cut_rows(rows.select(range(4)), Cut(validation=0.1))
    assert len(few["validation"]) == 1
