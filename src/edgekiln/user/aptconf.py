"""The user's apt settings: which mirror, which proxy, which certificates.

apt itself is asked, so that every way of writing sources (one line or deb822) and every
configuration file counts. On a machine without apt, or of another release, nothing is found and
the distribution's own archive is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgekiln.calls import call

_COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}
_CARRIED = ("Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv")
_FILES = ("Acquire::https::CaInfo",)


@dataclass(frozen=True, kw_only=True)
class AptSettings:
    """`sources`: one-line entries for the release, "" where this machine has none.

    `options`: apt's own options about fetching; `auth`: passwords of mirrors.
    """

    sources: str = ""
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
    options = dict(_options())
    for scheme in ("http", "https"):
        proxy = proxies.get(f"{scheme.upper()}_PROXY")
        if proxy and not any(key.lower() == f"acquire::{scheme}::proxy" for key in options):
            options[f"Acquire::{scheme}::Proxy"] = proxy
    if cert and not any(key.lower() == _FILES[0].lower() for key in options):
        options[_FILES[0]] = cert
    auth = Path("/etc/apt/auth.conf")
    return AptSettings(
        sources="".join(_sources(distribution, release)),
        options=tuple(sorted(options.items())),
        auth=auth if auth.is_file() else None,
    )


@lru_cache(maxsize=1)
def _options() -> tuple[tuple[str, str], ...]:
    if not shutil.which("apt-config"):
        return ()
    done = call(["apt-config", "dump"])
    found = []
    for line in done.stdout.splitlines():
        key, _, value = line.rstrip(";").partition(" ")
        if key.startswith(_CARRIED) and value.strip('"'):
            found.append((key, value.strip('"')))
    return tuple(found)


def _sources(distribution: str, release: str) -> Iterator[str]:
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
