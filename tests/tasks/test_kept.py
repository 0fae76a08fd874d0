"""Kept rows: a cut-off evaluation continues, from its own rows alone."""

from __future__ import annotations

from pathlib import Path

from goat_peft.tasks import Kept


def rows(*indices: int) -> list[dict[str, object]]:
    return [{"index": index, "text": f"söme\ntext {index}"} for index in indices]


def test_rows_come_back_in_order_and_only_the_others_are_missing(tmp_path: Path) -> None:
    first = Kept(tmp_path / "rows.jsonl", "key")
    first.add(rows(4, 1))
    first.add(rows(0))
    second = Kept(tmp_path / "rows.jsonl", "key")
    assert second.missing(6) == [2, 3, 5]
    second.add(rows(5, 2, 3))
    assert second.missing(6) == []
    assert second.rows() == rows(*range(6))
    assert Kept(tmp_path / "rows.jsonl", "key").rows() == rows(*range(6))


def test_a_last_line_cut_anywhere_costs_that_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    Kept(file, "key").add(rows(0, 1, 2))
    whole = file.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        file.write_bytes(whole[:-cut])
        again = Kept(file, "key")
        assert again.missing(3) == [2]
        again.add(rows(2))
        assert file.read_bytes() == whole


def test_rows_of_another_model_or_task_are_not_used(tmp_path: Path) -> None:
    Kept(tmp_path / "rows.jsonl", "one").add(rows(0, 1))
    other = Kept(tmp_path / "rows.jsonl", "two")
    assert other.missing(2) == [0, 1]
    other.add(rows(1))
    assert Kept(tmp_path / "rows.jsonl", "two").rows() == rows(1)


def test_rows_that_other_processes_wrote_are_used(tmp_path: Path) -> None:
    Kept(tmp_path / "rows.jsonl", "key").add(rows(0))
    (tmp_path / "rows.jsonl.1").write_bytes((tmp_path / "rows.jsonl").read_bytes().replace(b"0", b"1"))
    (tmp_path / "rows.jsonl.2").write_bytes(b'{"key": "older"}\n{"index": 2}\n')
    assert Kept(tmp_path / "rows.jsonl", "key").missing(3) == [2]


def test_without_a_file_rows_stay_in_memory() -> None:
    kept = Kept()
    kept.add(rows(1))
    assert (kept.missing(2), kept.rows()) == ([0], rows(1))
