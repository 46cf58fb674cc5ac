"""Single files, fetched: several places in order, resumed, retried, checked by digest.

The digest makes every place safe, so mirrors and folders are as good as the origin. The vendor
folder (EDGEKILN_VENDOR) is looked into first. Proxies and certificates are the user's: requests
reads them from the environment. A file appears under its own name only when it is whole; until
then its bytes lie beside it as NAME.part, and the next try goes on from there.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekiln import offline
from edgekiln.errors import AccessError, DigestError, DiskError, FetchError, KilnError
from edgekiln.home import vendor_folder
from edgekiln.locking import held
from edgekiln.progress import Progress, Silent
from edgekiln.transfer import FIRST_USE, PassingError, Pin, Receiver, note_of, offer, shown

__all__ = ["FIRST_USE", "RETRIES", "Fetched", "Pin", "differs", "fetch", "vendored"]

RETRIES = (0.5, 2.0, 5.0)  # seconds to wait before each further try of one place


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole file; with first use, `sha256` and `size` are what the caller writes down."""

    path: Path
    sha256: str
    size: int
    place: str


def fetch(
    places: Sequence[str],
    target: Path,
    *,
    pin: Pin = FIRST_USE,
    progress: Progress | None = None,
    retries: Sequence[float] = RETRIES,
) -> Fetched:
    """Get `target` from the first of `places` that has the right bytes.

    A place is a URL, a file, or a folder that holds a file called like the target. A file that
    is there already is kept if it has the pinned digest; without a pin it is kept as it is.
    Raises DigestError when some place answered and none had the right bytes, else FetchError.
    """
    progress = progress or Silent()
    with _system(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"somebody else fetches {target.name}; waiting"
        with held(target.with_name(f".{target.name}.lock"), lambda: progress.note(waiting)):
            if target.is_file() and not differs(target, pin):
                return _fetched(target, str(target))
            return _from_places(_with_vendor(places), target, pin, progress, retries)


def vendored(name: str) -> Path | None:
    """The file of that name in the vendor folder, if there is one."""
    folder = vendor_folder()
    return folder / name if folder and (folder / name).is_file() else None


def _with_vendor(places: Sequence[str]) -> list[str]:
    folder = vendor_folder()
    return [*([str(folder)] if folder else []), *places]


def _from_places(
    places: Sequence[str], target: Path, pin: Pin, progress: Progress, retries: Sequence[float]
) -> Fetched:
    """Try each place; what went wrong at each is told when all of them failed."""
    failures: list[KilnError] = []
    for place in places:
        try:
            local = on_this_machine(place, target.name)
            if local is None:
                _refuse_offline(target, pin, places)
                _download(place, target, pin, progress, retries)
            else:
                _copy(local, target, pin)
            return _fetched(target, place)
        except (FetchError, DigestError) as failure:
            failures.append(failure)
            if len(places) > 1:
                progress.note(f"{failure.what}: {failure.why}")
    raise _all_failed(target, failures)


def _refuse_offline(target: Path, pin: Pin, places: Sequence[str]) -> None:
    """Raise FetchError that says what is missing and who has it, where nobody may be asked."""
    digest = f"sha256:{pin.sha256}" if pin.sha256 else f"sha1:{pin.sha1}" if pin.sha1 else ""
    told = [f"it is {digest}"] if digest else []
    remote = [shown(place) for place in places if on_this_machine(place, target.name) is None]
    why = "; ".join([*told, f"to be had from {', '.join(remote)}"])
    offline.refuse(target.name, why=why)


def _all_failed(target: Path, failures: Sequence[KilnError]) -> KilnError:
    """The failure that tells most: wrong bytes over no bytes, then the last place tried."""
    if not failures:
        return FetchError(f"no place is known to have {target.name}", remedy=offer(target.name))
    wrong = [failure for failure in failures if isinstance(failure, DigestError)]
    told = (wrong or failures)[-1]
    if len(failures) == 1:
        return told
    why = f"{told.what}: {told.why} ({len(failures)} places tried)"
    error = type(told)(f"{target.name} could not be fetched", why=why, remedy=told.remedy)
    error.__cause__ = told
    return error


def on_this_machine(place: str, name: str) -> Path | None:
    """The path of a place that is on this machine; None for one that is not."""
    scheme = urlsplit(place).scheme
    if scheme in ("http", "https"):
        return None
    path = Path(place)
    if scheme == "file":
        from urllib.request import url2pathname

        path = Path(url2pathname(urlsplit(place).path))
    return path / name if path.is_dir() else path


def _copy(source: Path, target: Path, pin: Pin) -> None:
    if not source.is_file():
        raise FetchError(
            f"{source} does not exist",
            why=f"it was to give {target.name}",
            remedy=offer(target.name),
        )
    part = _part(target)
    note_of(part).unlink(missing_ok=True)
    shutil.copyfile(source, part)
    _finish(part, target, pin, str(source))


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _download(
    url: str, target: Path, pin: Pin, progress: Progress, retries: Sequence[float]
) -> None:
    """Get one URL, going on after a cut; only what a new try may cure is tried again."""
    part = _part(target)
    receiver = Receiver(url=url, part=part, pin=pin, name=target.name, progress=progress)
    for pause in (*retries, None):
        try:
            receiver.receive()
            return _finish(part, target, pin, url)
        except PassingError as failure:
            if pause is None:
                raise FetchError(
                    f"{shown(url)} could not be fetched",
                    why=str(failure),
                    remedy=offer(target.name),
                ) from failure
            progress.note(f"{target.name}: {failure}; trying again in {pause:g} s")
            time.sleep(pause)


def _finish(part: Path, target: Path, pin: Pin, place: str) -> None:
    """Give the file its name if its bytes are right; otherwise none of them are kept."""
    note_of(part).unlink(missing_ok=True)
    if wrong := differs(part, pin):
        begins = _text(part)
        part.unlink()
        raise DigestError(
            f"{shown(place)} gave another file than the one that was pinned",
            why=wrong + (f"; it begins: {begins}" if begins else ""),
            remedy=offer(target.name),
        )
    part.replace(target)


def differs(path: Path, pin: Pin) -> str:
    """How a file differs from its pin; empty where it does not."""
    size = path.stat().st_size
    if pin.size and size != pin.size:
        return f"{size} bytes, expected {pin.size}"
    if size == 0:
        return "0 bytes"
    if pin.sha256 and (found := _digest(path, "sha256")) != pin.sha256.lower():
        return f"sha256 {found}, expected {pin.sha256}"
    if pin.sha1 and (found := _digest(path, "sha1")) != pin.sha1.lower():
        return f"sha1 {found}, expected {pin.sha1}"
    return ""


def _text(path: Path) -> str:
    """The first words of a small text: the sign-in page or excuse that came instead."""
    with path.open("rb") as file:
        start = file.read(400)
    if path.stat().st_size > 100_000 or b"\0" in start:
        return ""
    return " ".join(start.decode(errors="replace").split())[:80]


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetched(path: Path, place: str) -> Fetched:
    sha256 = _digest(path, "sha256")
    return Fetched(path=path, sha256=sha256, size=path.stat().st_size, place=place)


@contextmanager
def _system(target: Path) -> Iterator[None]:
    """Turn what the system says about the disk into an error with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskError(
                f"the disk is full: {target.name} could not be stored",
                why=f"it was to lie in {target.parent}",
                remedy="free some space, or set EDGEKILN_HOME to a folder on a larger disk",
            ) from error
        raise AccessError(
            f"cannot write {error.filename or target}",
            why=error.strerror or str(error),
            remedy="set EDGEKILN_HOME to a folder you may write",
        ) from error
