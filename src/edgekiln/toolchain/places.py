"""Indexes beyond the user's own: asked only whether they answer, and never waited for."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgekiln import offline
from edgekiln.user.pipconf import PipSettings

_PATIENCE = 3.0


def answering(places: Iterable[str], pip: PipSettings) -> list[str]:
    """Those of `places` that answer within seconds, in their order."""
    asked = [] if offline.enabled() else list(places)
    if not asked:
        return []
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        told = list(pool.map(lambda place: _head(place.rstrip("/") + "/", pip) >= 0, asked))
    return [place for place, yes in zip(asked, told, strict=True) if yes]


def size_of(place: str, pip: PipSettings) -> int:
    """A file's size in bytes, by its file or its server's word; 0 where none is told."""
    if place.startswith("file:"):
        path = Path(unquote(urlsplit(place).path))
        return path.stat().st_size if path.is_file() else 0
    return max(0, _head(place, pip)) if place else 0


def _head(address: str, pip: PipSettings) -> int:
    """Content-Length (0 where not said), or -1 where nobody answers with a page."""
    from edgekiln.upstream.web import NotReachedError, pip_options, request, told_size

    try:
        answer = request("HEAD", address, timeout=_PATIENCE, **pip_options(address, pip))
    except NotReachedError:
        return -1
    answer.close()
    return told_size(answer) if answer.ok else -1
