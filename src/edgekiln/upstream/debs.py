"""apt's own view of a release: which versions of a package its archive still has.

apt runs in folders of its own, with the sources, proxies and keys that this machine's apt was told:
nothing of this machine's lists is read or changed. Where this machine cannot (no apt, no sources of
the release), the same is asked in a container of the base.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekiln import offline
from edgekiln.calls import call, last_words
from edgekiln.errors import EngineError, FetchError
from edgekiln.progress import Progress
from edgekiln.toolchain import Base, folder
from edgekiln.toolchain.lock import Deb
from edgekiln.upstream import CHANGED, GONE, OK, Answer
from edgekiln.user.aptconf import AptSettings

_BETWEEN = "= newest ="
_KEYS = ("debian-archive-keyring.gpg", "ubuntu-archive-keyring.gpg")


@dataclass(frozen=True, kw_only=True)
class View:
    """What an archive has of some packages: every version, and the one apt would take."""

    place: str
    all: tuple[Deb, ...]
    newest: dict[str, Deb]

    def ask(self, deb: Deb) -> Answer:
        """Whether the very deb that was locked is still served."""
        same = self.served(deb)
        if any(each.sha256 == deb.sha256 for each in same):
            return Answer(place=self.place, state=OK)
        if same:
            why = f"sha256 {same[0].sha256}, pinned is {deb.sha256}"
            return Answer(place=self.place, state=CHANGED, why=why)
        now = self.newest.get(deb.name)
        why = f"the archive has {now.version}" if now else "the archive has no such package"
        return Answer(place=self.place, state=GONE, why=why)

    def served(self, deb: Deb) -> list[Deb]:
        """What the archive has of that package at that very version; its bytes may be others."""
        return [each for each in self.all if (each.name, each.version) == (deb.name, deb.version)]


def view(base: Base, names: Iterable[str], progress: Progress) -> View:
    """Ask apt about packages of a base's release, of today.

    Raises FetchError where apt cannot get its lists, EngineError where nothing here can ask.
    """
    return _asked(base, _script(sorted(set(names))), progress, None)


def bring(base: Base, debs: Iterable[Deb], folder: Path, progress: Progress) -> View:
    """Have apt put those of `debs` into a folder that are served at their locked versions.

    The view says what else is there; nothing is held against the lock here. Raises as `view` does.
    """
    wanted = list(debs)
    names = sorted({deb.name for deb in wanted})
    return _asked(base, f"{_script(names)}; {_bringing(wanted)}", progress, folder)


def _asked(base: Base, script: str, progress: Progress, out: Path | None) -> View:
    """A View out of what a script says, on this machine or in a container of the base."""
    from edgekiln.images.base import archives_in

    offline.refuse(f"what the archive of {base.name} has")
    apt = _settings(base)
    if apt.sources and shutil.which("apt-get"):
        return parse(_here(apt, script, out), archives_in(apt.sources))
    from edgekiln.engine import find_engine
    from edgekiln.toolchain.inbase import in_base

    engine = find_engine()
    if engine is None:
        raise EngineError(
            f"the packages of {base.name} cannot be asked about",
            why="this machine's apt has no sources of that release, and no engine answers",
            remedy="start one: kiln engine up",
        )
    return parse(in_base(engine, base, script, progress, out=out), f"apt in {base.name}")


def _settings(base: Base) -> AptSettings:
    """The user's own sources, else those that a base made here was made from."""
    from edgekiln.images.base import ReadyBase, apt_for, kept_file

    try:
        sources = str(json.loads(kept_file(base).read_bytes()).get("sources", ""))
    except (OSError, ValueError):
        sources = ""
    return apt_for(base, ReadyBase(reference="", origin="", sources=sources))


def _script(names: list[str]) -> str:
    """Lists brought up to date, then every version, then the ones apt would take."""
    told = shlex.join(names)
    return (
        'apt-get update -qq -o APT::Update::Error-Mode=any "$@" || exit 1; '
        f'apt-cache "$@" show {told}; echo; echo "{_BETWEEN}"; '
        f'apt-cache "$@" --no-all-versions show {told}; true'
    )


def _bringing(debs: list[Deb]) -> str:
    """What is served at its locked version, brought into the folder that the shell is in."""
    names = shlex.join(sorted({deb.name for deb in debs}))
    wanted = " ".join(f"-e {shlex.quote(f'{deb.name}={deb.version}')}" for deb in debs)
    pairs = """awk '$1 == "Package:" { p = $2 } $1 == "Version:" { print p "=" $2 }'"""
    return (
        f'have=$(apt-cache "$@" show {names} | {pairs} | sort -u | grep -Fx {wanted}); '
        '[ -z "$have" ] || apt-get "$@" download -q $have >&2; true'
    )


def _here(apt: AptSettings, script: str, out: Path | None) -> str:
    with tempfile.TemporaryDirectory(prefix="edgekiln-apt-") as scratch:
        options = _private(Path(scratch), apt)
        there = f"cd {shlex.quote(str(out))} || exit; " if out else ""
        command = ["sh", "-c", there + script, "sh", "-c", str(options)]
        done = call(command, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise FetchError("apt cannot get its lists", why=last_words(done))
    return done.stdout


def _private(scratch: Path, apt: AptSettings) -> Path:
    """An apt.conf that keeps everything below `scratch`."""
    for name in ("state/lists/partial", "cache/archives/partial", "trusted"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources").write_text(apt.sources, encoding="utf-8")
    for key in _keys():
        with (scratch / "trusted" / key.name).open("wb") as sink:
            sink.write(key.read_bytes())
    told = {
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::SourceList": scratch / "sources",
        "Dir::Etc::SourceParts": "/nonexistent",
        "Dir::Etc::TrustedParts": scratch / "trusted",
        "APT::Architecture": "amd64",
        "Acquire::Languages": "none",
        "Acquire::http::Timeout": "20",  # seconds; what the user's apt was told comes after
        "Acquire::https::Timeout": "20",
        "APT::Sandbox::User": "root",  # apt's own user could not read these folders
    }
    lines = [f'{key} "{value}";\n' for key, value in told.items()]
    path = scratch / "apt.conf"
    many = '#clear APT::Architectures;\nAPT::Architectures { "amd64"; };\n'
    path.write_text(many + "".join(lines) + apt.conf(), encoding="utf-8")
    return path


def _keys() -> Iterator[Path]:
    """The keys of archives that this machine trusts, and those that bases bring."""
    yield from sorted(Path("/etc/apt/trusted.gpg.d").glob("*.*"))
    yield from (path for name in _KEYS if (path := Path("/usr/share/keyrings") / name).is_file())
    yield from sorted((folder() / "bases").glob("*.asc"))


def parse(said: str, place: str) -> View:
    """A View out of what the script printed."""
    before, _, after = said.partition(f"{_BETWEEN}\n")
    every = tuple(records(before))
    newest: dict[str, Deb] = {}
    for deb in records(after):
        newest.setdefault(deb.name, deb)
    return View(place=place, all=every, newest=newest)


def records(text: str) -> Iterator[Deb]:
    """Each record `apt-cache show` printed, in its order."""
    from edgekiln.images.base import parse_records

    for block in text.split("\n\n"):
        yield from parse_records(block)
