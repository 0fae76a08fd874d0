"""Fixture of the sandbox's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside import SENTINEL, Outside


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """The user's folder; after the test it must be as it was."""
    place = Outside(tmp_path / "outside", tmp_path / "programs")
    place.folder.mkdir()
    place.programs.mkdir()
    place.sentinel.write_text(SENTINEL)
    place.sentinel.chmod(0o600)
    monkeypatch.setattr(tempfile, "tempdir", str(place.programs))
    yield place
    place.assert_untouched()
