"""`goat report FILE.json` on the screen, as a page, and into one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from comparisons import ROOT, made_up, run, stored

from goat_peft.reporting import tabled
from goat_peft.reporting.inserted import parts

PAGE = ROOT / "docs" / "evidence.md"


def test_tables_on_the_screen_and_in_a_file_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (stored(made_up(), tmp_path / "results" / f"{name}.json") for name in ("fixed", "fair"))
    third = stored(made_up(("rte",)), tmp_path / "results" / "small.json")
    wide = made_up()
    wide["run_info"]["plan"]["common"] = {"r": 32}
    fourth = stored(wide, tmp_path / "results" / "wide.json")
    assert run(str(first), str(second)) == 0
    assert capsys.readouterr().out.count("| goat |") == 2
    assert not list(tmp_path.rglob("*.png"))
    page = tmp_path / "docs" / "page.md"
    assert run(*map(str, (first, second, third, fourth)), "--output", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("| goat |") == 4 and "[fair.json](../results/fair.json)" in text
    pictures = {path.name for path in page.parent.glob("*.png")}
    assert pictures == {"fixed.png", "small.png", "wide.png"}  # one for the two over the same tasks at one rank
    assert all(f"]({name})" in text for name in pictures)
    assert "fixed goat" not in text and "fixed full +4.00 (+1.00 to +7.00)" in text  # in words, the largest difference


def test_a_page_keeps_its_own_words_and_gets_its_tables_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stored(made_up(), tmp_path / "mine.json")
    page = tmp_path / "page.md"
    page.write_text(
        "# Mine\n\n<!-- table: mine -->\nold\n<!-- end -->\n\nAfter.\n\n<!-- picture: mine -->\n<!-- end -->\n"
    )
    assert run(str(file), "--into", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Mine\n\n<!-- table: mine -->\n\n**mine**") and "\nold\n" not in text
    assert (
        "<!-- end -->\n\nAfter.\n" in text and "](mine.png)" in text and (tmp_path / "mine.png").stat().st_size > 5000
    )
    assert run(str(file), "--into", str(page)) == 0
    assert page.read_text(encoding="utf-8") == text
    capsys.readouterr()

    for content, said in (
        ("# Mine\n", "has no line <!-- table: mine -->"),
        ("<!-- table: mine -->\n", "has no line <!-- end -->"),
        ("<!-- table: mine -->\n<!-- table: other -->\n<!-- end -->\n", "has no line <!-- end -->"),
    ):
        page.write_text(content)
        assert run(str(file), "--into", str(page)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and page.read_text() == content


def test_a_marker_is_a_whole_line_outside_of_code_and_stands_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(stored(made_up(), tmp_path / "mine.json"))
    page = tmp_path / "page.md"
    example = (
        "````md\n```\n<!-- table: mine -->\nstays\n<!-- end -->\n````\n\n    <!-- table: mine -->\n    <!-- end -->\n"
    )
    page.write_text(
        example + "Say <!-- table: mine -->\n\n<!-- table: mine -->\nstale <!-- end -->\n<!-- end -->\nAfter.\n"
    )
    assert run(file, "--into", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(example + "Say <!-- table: mine -->\n\n<!-- table: mine -->\n\n**mine**")
    assert text.endswith("\n\n<!-- end -->\nAfter.\n") and "stale" not in text and text.count("**mine**") == 1
    assert not list(tmp_path.rglob("*.png"))  # the page shows none
    capsys.readouterr()
    part = "<!-- table: mine -->\n<!-- end -->\n"
    picture = "<!-- picture: mine -->\n<!-- end -->\n"
    for content, said in (
        (part + part, "has the line <!-- table: mine --> 2 times"),
        (part + picture + picture, "has the line <!-- picture: mine --> 2 times"),
        (example, "has no line <!-- table: mine -->"),
    ):
        page.write_text(content)
        assert run(file, "--into", str(page)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and page.read_text() == content
        assert not list(tmp_path.rglob("*.png"))


def test_a_picture_has_any_name_of_its_group(tmp_path: Path) -> None:
    files = [str(stored(made_up(), tmp_path / "results" / f"{name}.json")) for name in ("fixed", "fair")]
    page = tmp_path / "page.md"
    tables = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in ("fixed", "fair"))
    page.write_text(tables + "<!-- picture: fair -->\nold\n<!-- end -->\n")
    assert run(*files, "--into", str(page)) == 0
    assert "](fair.png)" in page.read_text(encoding="utf-8") and "\nold\n" not in page.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["fair.png"]


def test_no_source_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_page, as_picture = stored(made_up(), tmp_path / "mine.md"), stored(made_up(), tmp_path / "mine.png")
    plain = stored(made_up(), tmp_path / "plain.json")
    link = tmp_path / "link.md"
    link.symlink_to(plain)
    before = {path: path.read_bytes() for path in (as_page, as_picture, plain)}
    for source, option, page in (
        (as_page, "--output", as_page),
        (as_page, "--into", as_page),
        (plain, "--output", plain),
        (plain, "--into", plain),
        (plain, "--output", link),
        (as_picture, "--output", tmp_path / "page.md"),
    ):
        assert run(str(source), option, str(page)) == 2
        error = capsys.readouterr().err
        assert f"{option[2:]}={page}" in error and error.count("\n") == 1
        assert {path: path.read_bytes() for path in before} == before


def test_what_does_not_go_together_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(stored(made_up(), tmp_path / "mine.json"))
    twin = str(stored(made_up(), tmp_path / "deeper" / "mine.json"))
    latin, folder = tmp_path / "latin.md", tmp_path / "folder.md"
    latin.write_bytes("<!-- table: mine -->\né\n<!-- end -->\n".encode("latin-1"))
    folder.mkdir()
    for arguments, said in (
        ((str(tmp_path), file), "is a folder, which is drawn alone"),
        ((str(tmp_path), "--into", "page.md"), "written from files"),
        ((file, "--alignment", "alignment.json"), "leave it out"),
        ((file, "--output", "a.md", "--into", "b.md"), "two places"),
        ((file, twin), "is given twice"),
        ((file, "--into", str(tmp_path / "none.md")), "no such page"),
        ((file, "--into", str(tmp_path)), "no such page"),
        ((file, "--into", str(latin)), "is no text in UTF-8"),
        ((file, "--output", "."), "ends in .md"),
        ((file, "--output", str(tmp_path / "page.html")), "ends in .md"),
        ((file, "--output", str(folder)), "ends in .md"),
        ((file, "--output", str(latin / "page.md")), "in which no page can be"),
        ((str(tmp_path / "none.json"),), "no such file or folder"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.skipif(not PAGE.is_file(), reason="docs/evidence.md is not written yet")
def test_the_committed_page_is_what_the_committed_files_give() -> None:
    text = PAGE.read_text(encoding="utf-8")
    # In the page's order; a picture stands for the group of its first file.
    names = [name for kind, name in parts(text) if kind == "table"]
    assert names
    summaries = tabled.read_all([ROOT / "results" / f"{name}.json" for name in names])
    assert tabled.filled(text, summaries, PAGE) == text
    for found in re.findall(r"\]\(([\w.-]+\.png)\)", text):
        assert (PAGE.parent / found).is_file()
