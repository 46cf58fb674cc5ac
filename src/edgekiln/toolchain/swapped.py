"""A wheel or package that is not the lock's, out of a log: which, both digests, and from where.

uv does not say where a wheel came from: the user's own folders are searched for those very bytes,
and the indexes that it asked are named where none of them has them. images/apt-install says all of
it, and which locked versions an archive has dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError, FetchError, KilnError
from edgekiln.toolchain.debs import refusal
from edgekiln.toolchain.lock import Deb
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
_WRONG = re.compile(
    r"apt-install: wrong (?P<name>\S+) (?P<version>\S+) (?P<found>[0-9a-f]{64})"
    r" (?P<locked>[0-9a-f]{64}) ?(?P<place>.*)"
)
_GONE = re.compile(
    r"apt-install: gone (?P<name>\S+) (?P<version>\S+) (?P<locked>[0-9a-f]{64})"
    r" *(?P<place>\S*) *(?P<now>\S*) *(?P<found>[0-9a-f]*)"
)
_FROZEN = "apt-install: the locked versions cannot be installed"
_PYPI = "the Python index"
_ARCHIVE = "the distribution's archive"


def swapped(log: Path) -> KilnError | None:
    """The error for what was refused by its digest, or is not to be had at its locked version.

    None where the log tells of neither.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    return _wheel(text, log) or _deb(text) or _gone(text)


def _deb(text: str) -> DigestError | None:
    """A package of the right version in other bytes."""
    told = _WRONG.search(text)
    if told is None:
        return None
    deb = Deb(name=told["name"], version=told["version"], sha256=told["locked"])
    return refusal(deb, found=told["found"], place=told["place"].strip() or _ARCHIVE)


def _gone(text: str) -> FetchError | None:
    """Packages that an archive no longer has as they were locked, where nothing else will do."""
    every = list(_GONE.finditer(text)) if _FROZEN in text else []
    if not every:
        return None
    names = ", ".join(dict.fromkeys(f"{each['name']} {each['version']}" for each in every))
    first = every[0]
    now = f"{first['now']}, sha256 {first['found']}" if first["now"] else "no such package"
    return FetchError(
        f"{first['place'] or _ARCHIVE} no longer has {names}",
        why=f"of {first['name']} it has {now}; locked is sha256 {first['locked']}",
        remedy="build without --frozen, from a folder that `kiln toolchains fetch` filled in time, "
        "or from a snapshot of the archive: EDGEKILN_APT_SNAPSHOT",
    )


def _wheel(text: str, log: Path) -> DigestError | None:
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
