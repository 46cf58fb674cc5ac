"""A model's files over plain HTTP, each gone on with where it was cut off, by a kill as well.

Hub clients resume within one process only: a file that a killed one had half is fetched again from
its beginning, which with weights of gigabytes on a rented box costs an hour. Nothing but a chunk
of each file is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import FetchError
from edgekiln.models.snapshots import RemoteFile
from edgekiln.progress import Silent
from edgekiln.store import disk_error
from edgekiln.transfer import PassingError, Pin, Receiver

# Beside the files: what has come of those that are not whole.
_PARTS = ".parts"
_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files are: the address of each by its path, and what to send along."""

    url_of: Callable[[str], str]
    headers: Callable[[], Mapping[str, str]]


def bring(source: Source, files: Sequence[RemoteFile], into: Path) -> None:
    """Have the files in a folder, several at once; those that are there whole stay.

    Raises FetchError for the first that cannot be had; what came of the others is kept.
    """
    absent = [file for file in files if not _whole(into / file.path, file)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [pool.submit(_bring, source, file, into) for file in absent]
        try:
            for one in asked:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and (not file.size or path.stat().st_size == file.size)


def _bring(source: Source, file: RemoteFile, into: Path) -> None:
    part = into / _PARTS / file.path
    part.parent.mkdir(parents=True, exist_ok=True)
    receiver = Receiver(
        url=source.url_of(file.path),
        part=part,
        name=file.path,
        pin=Pin(sha256=file.sha256 or "", size=file.size),
        progress=Silent(),
        headers=source.headers,
    )
    try:
        if not _whole(part, file) or not file.size:
            receiver.receive()
    except PassingError as error:
        raise FetchError(f"{file.path} could not be fetched", why=str(error)) from error
    except OSError as error:
        raise disk_error(error, part) from error
    part.replace(into / file.path)
