"""The user's apt settings: which mirror, which proxy, which certificates.

apt itself is asked, so that every way of writing sources (one line or deb822) and every
configuration file counts. On a machine without apt, or of another release, nothing is found and
the distribution's own archive is used.

A snapshot is an archive as it was at a moment: EDGEKILN_APT_SNAPSHOT says which (like this:
20261101T000000Z), EDGEKILN_APT_SNAPSHOT_URL where such are kept, with {date} and {archive} in it;
apt.conf may say the same: EdgeKiln::Snapshot, EdgeKiln::Snapshot-Url.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgekiln.calls import call
from edgekiln.errors import UsageError

SNAPSHOT, SNAPSHOT_URL = "EDGEKILN_APT_SNAPSHOT", "EDGEKILN_APT_SNAPSHOT_URL"

_COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}
# Which archive each of a release's suites lies in.
_ARCHIVES = {
    "debian": {"": "debian", "-updates": "debian", "-security": "debian-security"},
    "ubuntu": {"": "ubuntu", "-updates": "ubuntu", "-security": "ubuntu"},
}
_DATE = re.compile(r"\d{8}T\d{6}Z")
_CARRIED = ("Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv")
_FILES = ("Acquire::https::CaInfo",)


@dataclass(frozen=True, kw_only=True)
class AptSettings:
    """`sources`: one-line entries for the release, "" where this machine has none.

    `options`: apt's own options about fetching; `auth`: passwords of mirrors; `snapshot`: the date
    that the sources are of, "" for today.
    """

    sources: str = ""
    snapshot: str = ""
    options: tuple[tuple[str, str], ...] = ()
    auth: Path | None = None

    def conf(self, *, ca: str | None = None) -> str:
        """The options as an apt.conf; `ca` replaces the path of a certificate bundle."""
        lines = []
        for key, value in self.options:
            moved = ca if ca and key.lower() in [f.lower() for f in _FILES] else value
            lines.append(f'{key} "{moved}";\n')
        return "".join(lines)

    def ca_file(self) -> Path | None:
        """The bundle of certificates that apt was told to trust."""
        wanted = [f.lower() for f in _FILES]
        named = (Path(value) for key, value in self.options if key.lower() in wanted)
        return next((path for path in named if path.is_file()), None)


def apt_settings(
    distribution: str, release: str, proxies: Mapping[str, str], cert: str | None
) -> AptSettings:
    """What apt on this machine has been told, with the user's proxies and certificates.

    `proxies` and `cert` are the ones pip has: apt's own word counts more than theirs.
    """
    date, pattern = snapshot_asked()
    options = dict(_options())
    for scheme in ("http", "https"):
        proxy = proxies.get(f"{scheme.upper()}_PROXY")
        if proxy and not any(key.lower() == f"acquire::{scheme}::proxy" for key in options):
            options[f"Acquire::{scheme}::Proxy"] = proxy
    if cert and not any(key.lower() == _FILES[0].lower() for key in options):
        options[_FILES[0]] = cert
    auth = Path("/etc/apt/auth.conf")
    every = _of_snapshot if date else _sources_here
    return AptSettings(
        sources="".join(every(distribution, release, date, pattern)),
        snapshot=date,
        options=tuple(sorted(options.items())),
        auth=auth if auth.is_file() else None,
    )


def snapshot_asked() -> tuple[str, str]:
    """The date of the snapshot that is asked for, and the pattern of its address; "" for none.

    Raises UsageError for a date that is none, or one without an address.
    """
    told = {key.lower(): value for key, value in _dump()}
    date = os.environ.get(SNAPSHOT) or told.get("edgekiln::snapshot", "")
    pattern = os.environ.get(SNAPSHOT_URL) or told.get("edgekiln::snapshot-url", "")
    if date and not _DATE.fullmatch(date):
        raise UsageError(f"{SNAPSHOT}={date} is no date", remedy="like this: 20261101T000000Z")
    if date and "{date}" not in pattern:
        raise UsageError(
            f"{SNAPSHOT} is set, and where snapshots are kept is not",
            remedy=f"{SNAPSHOT_URL}=https://HOST/archive/{{archive}}/{{date}}/",
        )
    return date, pattern


def _of_snapshot(distribution: str, release: str, date: str, pattern: str) -> Iterator[str]:
    """One-line entries of the release as it was; its archive has let the signatures run out."""
    for suite, archive in _ARCHIVES.get(distribution, {}).items():
        address = pattern.replace("{archive}", archive).replace("{date}", date)
        words = " ".join(_COMPONENTS[distribution])
        yield f"deb [check-valid-until=no] {address} {release}{suite} {words}\n"


def _options() -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in _dump() if key.startswith(_CARRIED))


@lru_cache(maxsize=1)
def _dump() -> tuple[tuple[str, str], ...]:
    """All that apt was told on this machine, less what is empty."""
    if not shutil.which("apt-config"):
        return ()
    done = call(["apt-config", "dump"])
    lines = (line.rstrip(";").partition(" ") for line in done.stdout.splitlines())
    return tuple((key, value.strip('"')) for key, _, value in lines if value.strip('"'))


def _sources_here(distribution: str, release: str, *_: str) -> Iterator[str]:
    """One-line entries of this machine's own sources for that very release."""
    if not shutil.which("apt-get"):
        return
    form = "$(CREATED_BY) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--no-release-info", "--format", form]
    done = call(command)
    suites = [release, *(f"{release}{part}" for part in ("-updates", "-security"))]
    seen = set()
    for line in done.stdout.splitlines():
        kind, *rest = line.split()
        if kind != "Packages" or len(rest) != 3 or tuple(rest) in seen:
            continue
        seen.add(tuple(rest))
        address, suite, component = rest
        if suite in suites and component in _COMPONENTS[distribution]:
            yield f"deb {address} {suite} {component}\n"
