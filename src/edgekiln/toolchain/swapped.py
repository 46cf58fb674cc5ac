"""A wheel with the right name and other bytes than the lock's: which, both digests, and from where.

uv says the first two in its log and not the third: the user's own folders are searched for those
very bytes, and the indexes that it asked are named where none of them has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError
from edgekiln.toolchain.wheels import vendor
from edgekiln.transfer import shown
from edgekiln.user.pipconf import PipSettings, pip_settings

# A builder puts its own marks (#12 3.4) before each line.
_MISMATCH = re.compile(
    r"Hash mismatch for `(?P<name>[^=`]+)==(?P<version>[^`]+)`"
    r".*?Expected:.*?sha256:(?P<locked>[0-9a-f]{64})"
    r".*?Computed:.*?sha256:(?P<found>[0-9a-f]{64})",
    re.DOTALL,
)
_PYPI = "the Python index"


def swapped(log: Path) -> DigestError | None:
    """The error for a wheel that uv refused by its digest; None where the log tells of none."""
    text = log.read_text(encoding="utf-8", errors="replace")
    refused = _MISMATCH.search(text)
    if refused is None:
        return None
    pip = pip_settings()
    place = _folder_with(refused["name"], refused["found"], pip) or _indexes(pip)
    return DigestError(
        f"the wheel {refused['name']} {refused['version']} is not the one that was locked",
        why=f"sha256 is {refused['found']}, locked is {refused['locked']}; it came from {place}",
        remedy="take it from the index that it was published on, or remove it there; "
        f"the whole log: {log}",
    )


def _folder_with(name: str, sha256: str, pip: PipSettings) -> str:
    """The path of these very bytes in the user's folders; "" where they are in none."""
    for path in _wheels(name, (*vendor(), *pip.folders(), *pip.file_indexes())):
        if digest_file(path) == sha256:
            return str(path)
    return ""


def _wheels(name: str, folders: Iterable[Path]) -> Iterable[Path]:
    pattern = re.sub(r"[-_.]+", "[-_.]", name)
    for folder in folders:
        for path in folder.rglob("*.whl"):
            if re.match(f"{pattern}-", path.name, re.IGNORECASE):
                yield path


def _indexes(pip: PipSettings) -> str:
    """What was asked, in words, without passwords."""
    asked = [pip.index_url or _PYPI, *pip.extra_index_urls]
    return " or ".join(map(shown, asked))
