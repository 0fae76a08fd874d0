"""Data files as people really have them, and as nobody should: read rightly, or one clear error before a model is loaded."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.recipes import Data, Source
from goat_peft.tasks import bind
from goat_peft.tasks.data import fill, load_source, load_splits

ROWS = "".join(json.dumps({"text": f"film {i}", "label": "fresh" if i % 2 else "rotten"}) + "\n" for i in range(6))


@pytest.fixture
def classify_rows(classify_recipe: Callable[[Path], dict], tmp_path: Path) -> Callable[..., Any]:
    """Reads a file as a classification recipe would before it trains."""

    def read(name: str, content: str | bytes, **task: Any) -> list[tuple[str, int]]:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        data = classify_recipe(tmp_path / "run")
        data["task"] |= {"data": {"train": {"path": str(file)}, "test": {"path": str(file)}}} | task
        found = bind(recipes.check(data).task)
        rows = found.load().train
        return list(zip(found._texts(rows, "train"), found._truth(rows, "train"), strict=True))

    return read


PLAIN = [(f"film {i}", i % 2) for i in range(6)]


def as_csv(rows: list[dict]) -> str:
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


CSV = as_csv([json.loads(line) for line in ROWS.splitlines()])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ROWS),
        ("a.json", json.dumps([json.loads(line) for line in ROWS.splitlines()])),
        ("bom.jsonl", b"\xef\xbb\xbf" + ROWS.encode()),
        ("a.csv", CSV),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("windows.csv", CSV.replace("\n", "\r\n")),
        ("gaps.jsonl", ROWS.replace("\n", "\n\n")),
        ("no-end.jsonl", ROWS.rstrip("\n")),
        ("a.jsonl.gz", gzip.compress(ROWS.encode(), mtime=0)),
        ("a.jsonl.bz2", bz2.compress(ROWS.encode())),
        ("a.jsonl.xz", lzma.compress(ROWS.encode())),
        ("with space, [1] and *?.jsonl", ROWS),
    ],
)
def test_odd_but_whole_files_are_read_rightly(classify_rows: Callable, name: str, content: str | bytes) -> None:
    assert classify_rows(name, content) == PLAIN


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", "", "holds no rows"),
        ("blank.jsonl", "\n \n", "holds no rows|cannot be read"),
        ("empty.csv", "", "cannot be read as csv"),
        ("header.csv", "text,label\n", "holds no rows, a header at most"),
        ("other.jsonl", ROWS.replace('"text"', '"body"'), "task.text=text: the data has no such column; choose from body"),
        ("unlabelled.jsonl", ROWS.replace('"label"', '"lable"'), "no such column; did you mean lable"),
        ("wrong.jsonl", ROWS.replace("fresh", "frsh"), "row 1 of train has label='frsh'; add it.*did you mean fresh"),
        ("null.jsonl", ROWS.replace('"fresh"', "null"), "row 1 of train has label=None"),
        ("emptyrow.jsonl", ROWS.replace("film 3", "  "), "row 3 of train is empty"),
        ("nulltext.jsonl", ROWS.replace('"film 3"', "null"), "row 3 of train is empty"),
        ("lacks.jsonl", ROWS + '{"label": "fresh"}\n', "row 6 of train is empty"),
        ("number.jsonl", ROWS.replace('"film 3"', "3"), "row 3 of train holds 3, which is no text"),
        ("nan.csv", CSV.replace("film 3", ""), "row 3 of train is empty"),
        ("nan-label.csv", CSV.replace("film 3,fresh", "film 3,"), "row 3 of train has label=None"),
        ("few.csv", CSV.replace("film 3,fresh", "film 3"), "row 3 of train has label=None"),
        ("many.csv", CSV.replace("film 3,fresh", "film 3,fresh,1"), "cannot be read as csv .*Expected 2 fields"),
        ("shifted.csv", CSV.replace("fresh", "fresh,1").replace("rotten", "rotten,1"), "more cells than its header"),
        ("twice.csv", CSV.replace("text,label", "text,text"), "column text is there 2 times"),
        ("twice.jsonl", ROWS.replace('"label"', '"text"'), "text.* was specified twice"),
        ("quote.csv", CSV.replace("film 3", '"film 3'), "cannot be read as csv"),
        ("latin.csv", CSV.replace("film 3", "caf\xe9").encode("latin-1"), "cannot be read as csv"),
        ("latin.jsonl", ROWS.replace("film 3", "caf\xe9").encode("latin-1"), "column text holds text that is not UTF-8"),
        ("utf16.csv", CSV.encode("utf-16"), "cannot be read as csv"),
        ("utf16.jsonl", ROWS.encode("utf-16"), "cannot be read as json"),
        ("cut.jsonl", ROWS[:-9], "cannot be read as json"),
        ("cut.jsonl.gz", gzip.compress(ROWS.encode(), mtime=0)[:-9], "cannot be read as json"),
        ("flipped.jsonl.gz", gzip.compress(ROWS.encode(), mtime=0)[:-6] + b"\0" * 6, "cannot be read as json .*CRC"),
        ("no.jsonl.gz", ROWS, "cannot be read as json .*[Nn]ot a gzip"),
        ("cut.jsonl.xz", lzma.compress(ROWS.encode())[:40], "cannot be read as json"),
        ("no.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("deep.json", '[{"text": ' + "[" * 5000 + "]" * 5000 + "}]", "cannot be read as json"),
        ("number.json", "5", "cannot be read as json"),
        ("a.pickle", b"\x80\x04.", "not a known kind of file"),
        ("a.zip", b"PK\x03\x04", "not a known kind of file"),
    ],
)  # fmt: skip
def test_broken_files_are_one_clear_error(classify_rows: Callable, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        classify_rows(name, content)
    assert "\n" not in str(caught.value)


def test_a_text_that_says_na_is_never_read_as_another_one(classify_rows: Callable) -> None:
    """CSV readers take NA and null for nothing: that is said, where JSON lines keep the words."""
    with pytest.raises(UserError, match="row 3 of train is empty"):
        classify_rows("na.csv", CSV.replace("film 3", "NA"))
    assert classify_rows("na.jsonl", ROWS.replace("film 3", "NA"))[3] == ("NA", 1)


def test_a_row_of_megabytes_is_read_whole(classify_rows: Callable) -> None:
    huge = "word " * 3_000_000  # more than a reader's block
    rows = classify_rows("huge.jsonl", ROWS + json.dumps({"text": huge, "label": "fresh"}) + "\n" + ROWS)
    assert rows == [*PLAIN, (huge, 1), *PLAIN]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_template_is_never_filled_with_nothing(tmp_path: Path, value: Any) -> None:
    """`None` and `nan` would become words that the model learns."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"q": "why", "n": 1.5}\n' + json.dumps({"q": "how", "n": value}) + "\n")
    rows = load_source(Source(path=str(file)), "x")
    with pytest.raises(UserError, match=r"task.prompt='\{q\} \{n:.1f\}': row 1 cannot fill it \(a value is missing"):
        fill("{q} {n:.1f}", rows, "task.prompt")
    assert fill("{q} {n:.1f}", rows.select([0]), "task.prompt") == ["why 1.5"]


def test_a_name_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    for name, text in (("a[1]", "asked for"), ("a1", "another"), ("b*", "asked for"), ("bb", "another")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    for name in ("a[1]", "b*"):
        assert load_source(Source(path=str(tmp_path / f"{name}.jsonl")), "x")["text"] == ["asked for"]


@pytest.mark.parametrize("inner", ["../secret.jsonl", "data/../../secret.jsonl", "/etc/passwd"])
def test_names_inside_a_package_or_folder_do_not_lead_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    package = tmp_path / "somepackage"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="leads out of package somepackage"):
        load_source(Source(path=f"package:somepackage/{inner}"), "x")
    (package / "data" / "a.jsonl").write_text('{"text": "inside"}\n')
    assert load_source(Source(path="package:somepackage/data/a.jsonl"), "x")["text"] == ["inside"]
    assert not (tmp_path / "executed").exists()
    for change in ({"file": inner.removesuffix(".jsonl")}, {"split": inner.removesuffix(".jsonl")}):
        data = Data(train=Source(dataset="a/b", **change), folder=str(package / "data"))
        with pytest.raises(UserError, match="leads out of"):
            load_splits(data)


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", "..", ".hidden", "a\nb"])
def test_names_that_become_folders_stay_in_their_place(classify: dict, name: str) -> None:
    with pytest.raises(UserError, match="name="):
        recipes.check(classify | {"name": name})
    test = {**classify["task"], "name": name, "data": {"test": classify["task"]["data"]["train"]}}
    with pytest.raises(UserError, match=r"evaluation.tests"):
        recipes.check(classify | {"evaluation": {"tests": [test]}})


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_picture_that_cannot_be_opened(tmp_path: Path, damage: str) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), color="red").save(tmp_path / "train" / name / "0.png")
    file = tmp_path / "train" / "dog" / "0.png"
    file.write_bytes({"cut": file.read_bytes()[:60], "text": b"no picture", "empty": b""}[damage])
    rows = load_source(Source(path=str(tmp_path / "train")), "x")
    with pytest.raises((UserError, OSError)):
        [row["image"].load() for row in rows]
