"""Models from ModelScope, through its own client, which is installed only when asked for."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import DiskError, FetchError, KilnError, ModelError
from edgekiln.models.snapshots import Listing, RemoteFile, explained, literal


class ModelScope:
    """ModelScope through modelscope_hub; MODELSCOPE_ENDPOINT and its token are honoured.

    The client does not tell which commit a branch stands for. A digest of the listing (paths,
    sizes, sha256 of every file) takes the commit's place: it changes when any file does.
    """

    kind = "modelscope"
    revision = "master"

    def __init__(self) -> None:
        self._revisions: dict[str, str] = {}

    def list(self, repo: str, revision: str) -> Listing:
        """The digest of the listing, and the files of a revision."""
        api = _api()
        with explained(_translate, repo, revision):
            found = api.list_repo_files(repo, "model", revision=revision)
        files = [
            RemoteFile(path=file.path, size=file.size, sha256=file.sha256 or None)
            for file in sorted(found, key=lambda file: file.path)
            if not file.is_dir
        ]
        listing = Listing(commit=_digest(files), files=tuple(files))
        self._revisions[listing.commit] = revision
        return listing

    def download(self, repo: str, commit: str, files: Sequence[RemoteFile], into: Path) -> None:
        """Put these files into a folder."""
        api = _api()
        revision = self._revisions[commit]
        with explained(_translate, repo, revision):
            api.download_repo(
                repo,
                "model",
                revision=revision,
                local_dir=into,
                allow_patterns=[literal(file.path) for file in files],
                progress_callbacks=[],
            )


def _digest(files: Sequence[RemoteFile]) -> str:
    """40 hex digits of a listing, as long as a commit's."""
    text = json.dumps([[file.path, file.size, file.sha256] for file in files])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _api() -> Any:
    try:
        from modelscope_hub import HubApi
    except ImportError as error:
        raise ModelError(
            "models from ModelScope need its client",
            why="the package modelscope-hub is not installed",
            remedy="run: python -m pip install 'modelscope-hub>=0.5', with kiln in its .venv",
        ) from error
    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    # Named here because the client remembers the first endpoint it saw in a process.
    return HubApi(endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None)


def _translate(error: Exception, repo: str, revision: str) -> KilnError:
    from modelscope_hub import errors

    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, errors.NotExistError | errors.InvalidParameter):
        return ModelError(
            f"ModelScope has no model {repo} with a revision {revision}",
            why=why,
            remedy="check the spelling; a private model needs MODELSCOPE_API_TOKEN",
        )
    if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
        return ModelError(
            f"ModelScope does not let you have {repo}",
            why=why,
            remedy="ask for access on its page, then set MODELSCOPE_API_TOKEN",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskError(f"the disk is full: {repo} could not be stored", remedy="free some space")
    return FetchError(
        f"{repo} could not be fetched from ModelScope",
        why=why,
        remedy="check the network, or name a local model directory",
    )
