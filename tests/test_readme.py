"""What the README says works as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from goat_peft.cli.app import app

README = (Path(__file__).parent.parent / "README.md").read_text()
MAKEFILE = (Path(__file__).parent.parent / "Makefile").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_ten_lines_run(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = code_blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("HuggingFaceTB/SmolLM2-135M", str(tiny_llama_dir)), "README.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_every_goat_command_is_one_the_program_has() -> None:
    runner = CliRunner()
    lines = [
        line.split("#")[0].split()
        for block in code_blocks("sh")
        for line in block.splitlines()
        if line.startswith("goat ")
    ]
    assert len(lines) >= 5
    for words in lines:
        verb = words[1:3] if words[1] == "recipes" else words[1:2]
        assert runner.invoke(app, [*verb, "--help"]).exit_code == 0, words


def test_every_make_target_exists() -> None:
    for target in re.findall(r"^make (\w+)", "\n".join(code_blocks("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target


def test_every_linked_file_exists() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
