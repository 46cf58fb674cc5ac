"""Wheels that already lie on this machine, recognised by the digest the lock holds.

The vendor folder (EDGEKILN_VENDOR) is looked into first, then the folders of EDGEKILN_MIRRORS, then
the user's own find-links.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError
from edgekiln.home import mirrors_named, vendor_folder
from edgekiln.toolchain.lock import Wheel, normal
from edgekiln.user.pipconf import PipSettings


def find_local(wheels: Iterable[Wheel], pip: PipSettings) -> dict[str, Path]:
    """file name → where it lies, for those of `wheels` that the user's own folders hold.

    A file with the right name and other bytes is passed over, as an index's would be: the
    right one may lie in the next place.
    """
    found = {}
    for wheel in wheels:
        for path in _candidates(wheel, pip):
            if digest_file(path) == wheel.sha256:
                found[wheel.file] = path
                break
    return found


def vendor() -> list[Path]:
    """The vendor folder, when one is named and there."""
    folder = vendor_folder()
    return [folder] if folder and folder.is_dir() else []


def mirrored() -> list[Path]:
    """The folders on this machine that EDGEKILN_MIRRORS names; addresses are not among them."""
    return [folder for folder in map(Path, mirrors_named()) if folder.is_dir()]


def _candidates(wheel: Wheel, pip: PipSettings) -> Iterator[Path]:
    for folder in (*vendor(), *mirrored(), *pip.folders()):
        if (folder / wheel.file).is_file():
            yield folder / wheel.file
    for index in pip.file_indexes():
        yield from _in_index(wheel, index)


def _in_index(wheel: Wheel, index: Path) -> Iterator[Path]:
    """The files of that name that a simple index on this machine links to."""
    page = index / normal(wheel.name) / "index.html"
    if not page.is_file():
        return
    links = Links()
    links.feed(page.read_text(encoding="utf-8", errors="replace"))
    for link in links.found:
        parts = urlsplit(link["href"] or "")
        name = unquote(parts.path)
        if parts.scheme not in ("", "file") or Path(name).name != wheel.file:
            continue
        path = page.parent / name  # an absolute name replaces the folder
        if path.is_file():
            yield path


class Links(HTMLParser):
    """The links of a simple index's page: the attributes of each, `href` among them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        attributes = dict(attrs)
        if tag == "a" and attributes.get("href"):
            self.found.append(attributes)


def put(source: Path, target: Path) -> None:
    """Give `source` a second name; copied where the file system can not link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_file(path: Path, sha256: str) -> None:
    """Raise DigestError unless the file's bytes are the pinned ones."""
    found = digest_file(path)
    if found != sha256:
        why = f"sha256 is {found}, pinned is {sha256}"
        raise DigestError(f"{path.name} is not the file that was pinned", why=why)
