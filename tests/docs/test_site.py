"""The site: every page is in it, every link and anchor leads somewhere, and mkdocs builds it without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, anchors, links, page_id

from goat_peft import GoatConfig

SITE_PAGES = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


def _nav(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [path for inner in (entry.values() if isinstance(entry, dict) else entry) for path in _nav(inner)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = _nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in SITE_PAGES)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert target.is_relative_to(ROOT), f"{page.name}: {path} leaves the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), (
                f"{page.name}: {path}#{anchor}; {target.name} has {sorted(anchors(target))}"
            )


@pytest.mark.parametrize("page", [p for p in SITE_PAGES if p.parent.name == "reference"], ids=page_id)
def test_every_name_of_the_reference_exists(page: Path) -> None:
    import pkgutil

    names = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert names
    for name in names:
        assert (pkgutil.resolve_name(name).__doc__ or "").strip(), f"{name} says nothing"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'goat-peft[docs]'")
    pytest.importorskip("material", reason="pip install 'goat-peft[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="pip install 'goat-peft[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in SITE_PAGES:
        html = (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8")
        loaded = set(re.findall(r"<(?:script|link|img)[^>]*?(?:src|href)=\"?(https?://[^\">\s]+)", html))
        assert not loaded, f"{page.name} loads {loaded}"
        for target in re.findall(r"href=\"?(?!https?:|mailto:|#)([^\">\s#]+)", html):
            assert (site / page.relative_to(ROOT / "docs").parent / target).exists(), f"{page.name}: {target}"
    adapter = (site / "reference" / "adapter.html").read_text(encoding="utf-8")
    assert GoatConfig.__dataclass_fields__["eta"].metadata["help"] in adapter
    operator = (site / "reference" / "ops.html").read_text(encoding="utf-8")
    assert 'id="goat_peft.ops.reference.balance_loss_reference"' in operator
