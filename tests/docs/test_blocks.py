"""Every Python block of every page runs as it stands, one after another as a reader would type them; those that cannot say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, blocks, page_id, write_files
from settings import SETTINGS, Setting

from goat_peft.adapter.presets import PRESETS
from goat_peft.recipes.schema import METHODS, TASKS

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
# Not run, and the page says why. A block that stops running must be named here as well.
KNOWN = {
    ("docs/quantised.md", "needs bitsandbytes and a model from the hub; tests/quantized runs the same lines"),
    ("docs/frameworks.md", "axolotl is not part of the development environment"),
    ("docs/frameworks.md", "ms-swift is not part of the development environment"),
}


@pytest.fixture(autouse=True)
def _registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone afterwards."""
    for registry in (METHODS, TASKS):
        registry.names()  # loads
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, PRESETS[name])


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_the_python_blocks_run(
    page: Path, tiny_bert_dir: Path, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    running = [block for block in blocks(page) if block.language == "python" and block.reason is None]
    build = SETTINGS.get(page_id(page), lambda bert, llama: Setting())
    setting = build(tiny_bert_dir, tiny_llama_dir) if running else Setting()
    for old, _ in setting.replaced:
        assert any(old in block.text for block in running), f"{old} is no longer in {page.name}"
    names = {"__name__": f"page_{page.stem}", **setting.names}
    for block in running:
        text = block.text
        for old, new in setting.replaced:
            text = text.replace(old, new)
        # Blank lines in front, so that a traceback names the page's own line.
        exec(compile("\n" * block.line + text, str(page), "exec", dont_inherit=True), names)  # noqa: S102
    if page.name == "README.md":
        assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_blocks_that_do_not_run_are_known_with_their_reason() -> None:
    found = {(page_id(page), block.reason) for page in PAGES for block in blocks(page) if block.reason is not None}
    assert found == KNOWN


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), f"{page_id(page)}:{block.line}"


def test_every_block_names_a_language_that_is_checked() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"", "sh", "python", "yaml", "text"}, f"{page_id(page)}:{block.line}"


def test_every_setting_has_its_page() -> None:
    assert set(SETTINGS) <= {str(page.relative_to(ROOT)) for page in WITH_PYTHON}
