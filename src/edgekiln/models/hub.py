"""Models from the Hugging Face Hub, or a mirror that HF_ENDPOINT names."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import edgekiln.offline
from edgekiln.boxes.profiles import set_by_profile
from edgekiln.errors import DiskError, FetchError, KilnError, ModelError
from edgekiln.models.snapshots import Listing, RemoteFile, explained

ENDPOINT = "https://huggingface.co"
OTHER_WAYS = "check the network, set HF_ENDPOINT to a mirror, or name a local model directory"


def endpoint() -> str:
    """The Hub's address, or the mirror's."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


class HuggingFace:
    """The Hub: asked through huggingface_hub, which knows the user's token; files by ourselves."""

    kind = "hub"
    revision = "main"

    def list(self, repo: str, revision: str) -> Listing:
        """The commit and files of a revision."""
        with explained(_translate, repo, revision):
            info = _api().model_info(repo, revision=revision, files_metadata=True, timeout=20)
        files = [_remote(sibling) for sibling in info.siblings or ()]
        return Listing(commit=str(info.sha), files=tuple(files))

    def download(self, repo: str, commit: str, files: Sequence[RemoteFile], into: Path) -> None:
        """Put these files into a folder."""
        from edgekiln.models import pieces

        source = pieces.Source(url_of=partial(_address, repo, commit), headers=_authorization)
        try:
            pieces.bring(source, files, into)
        except FetchError:
            # The Hub may have a reason that only its client can read: a gate, a private model.
            with explained(_translate, repo, commit):
                _ask_about(repo, commit, files[0])
            raise


def _address(repo: str, commit: str, path: str) -> str:
    return f"{endpoint()}/{repo}/resolve/{commit}/{quote(path)}"


def _authorization() -> dict[str, str]:
    """The user's token, as the Hub's own client finds it; requests keeps it to the Hub's host."""
    from huggingface_hub import get_token

    token = get_token() if _trusted() else None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _trusted() -> bool:
    """Whether the user chose the Hub's place: a mirror that a profile chose gets no token."""
    return not set_by_profile("HF_ENDPOINT")


def _ask_about(repo: str, commit: str, file: RemoteFile) -> None:
    """Have the Hub's client ask for a file; raises what that makes of a refusal."""
    _api().get_hf_file_metadata(url=_address(repo, commit, file.path))


def _api() -> Any:
    """The client, with the certificates requests would use: it reads only SSL_CERT_FILE."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle and Path(bundle).is_file():
        os.environ.setdefault("SSL_CERT_FILE", bundle)
    from huggingface_hub import HfApi

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    token = None if _trusted() else False
    return HfApi(endpoint=endpoint(), library_name="edgekiln", token=token)


def _remote(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return RemoteFile(path=sibling.rfilename, size=sibling.size or 0, sha256=sha256)


def _translate(error: Exception, repo: str, revision: str) -> KilnError:
    from huggingface_hub import errors

    place = endpoint()
    if isinstance(error, errors.GatedRepoError) and not _trusted():
        return ModelError(
            f"{repo} asks you to accept its terms first",
            why=f"your token is not sent to {place}, which a profile chose and not you",
            remedy="set HF_ENDPOINT to the Hub, or to this mirror if you trust it with your token",
        )
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{repo} asks you to accept its terms first",
            why="the repository is gated",
            remedy=f"accept them at {place}/{repo}, then run hf auth login or set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{repo} has no revision {revision}",
            remedy=f"see its branches and commits at {place}/{repo}/commits",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return ModelError(
            f"{place} has no model {repo}",
            why="the name is wrong, or the model is private",
            remedy="check the spelling; for a private model run hf auth login or set HF_TOKEN",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskError(
            f"the disk is full: {repo} could not be stored",
            remedy="free some space, or set EDGEKILN_HOME to a folder on a larger disk",
        )
    return FetchError(f"{repo} could not be fetched from {place}", why=_why(error), remedy=_way())


def _why(error: BaseException) -> str:
    """One line from the exception, or from what caused it where it says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def offline() -> bool:
    """Whether the user told the client to keep off the network."""
    if edgekiln.offline.enabled():
        return True
    told = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return told.upper() in ("1", "ON", "YES", "TRUE")


def _way() -> str:
    return "unset HF_HUB_OFFLINE, or name a local model directory" if offline() else OTHER_WAYS


def answers(repo: str, *, within: float = 6.0) -> bool:
    """Whether the Hub really gives `repo`'s weights, found out in a few seconds at most.

    In a thread, because a resolver that does not answer holds up any time-out of the request.
    """
    if offline():
        return False
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_asked(repo, within)), daemon=True)
    thread.start()
    thread.join(within)
    return bool(found and found[0])


def _asked(repo: str, within: float) -> bool:
    """Ask for the first bytes of the weights.

    They come from another host than the listing, which a company's proxy may well refuse, and a
    portal that wants a sign-in answers with a page: a listing that arrives promises nothing.
    """
    import requests

    url = f"{endpoint()}/{repo}/resolve/{HuggingFace.revision}/model.safetensors"
    limits = (within / 2, within)
    try:
        with requests.get(
            url, headers={"Range": "bytes=0-8"}, timeout=limits, stream=True
        ) as reply:
            return reply.ok and next(reply.iter_content(9), b"")[8:9] == b"{"
    except requests.RequestException:
        return False
