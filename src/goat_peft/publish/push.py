"""`goat push` as a function."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ..errors import UserError, first_line
from .staging import stage


@dataclass(frozen=True)
class Pushed:
    """Where the files are now, and which."""

    url: str
    files: list[str]


def push(
    source: Path,
    repo_id: str,
    *,
    base: str | None = None,
    licence: str | None = None,
    private: bool = False,
    logs: bool = False,
    api: HfApi | None = None,
) -> Pushed:
    """Upload a run or an export in one commit; see `staging.stage`. The repository is made where there is none.

    The token is the one that `hf auth login` stored, or HF_TOKEN: the Hub's own library finds it, and nothing here sees it.

    Args:
        private: make the repository private; one that exists stays as it is.
        api: the Hub to talk to.

    Raises:
        UserError: nothing can be uploaded from there, or the Hub refuses.
    """
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        staged = stage(source, repo_id, Path(scratch) / "upload", base, licence, logs)
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True)
            api.create_commit(
                repo.repo_id,
                [CommitOperationAdd(name, str(staged.path / name)) for name in staged.files],
                commit_message=f"Upload {source.resolve().name}",
            )
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, ValueError, OSError) as error:
            raise UserError(
                f"repo={repo_id}: the Hub did not take it ({first_line(error)}); check the name, and log in with `hf auth login`"
            ) from error
    return Pushed(str(repo), staged.files)
