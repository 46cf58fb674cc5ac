"""The bases images stand on: from a registry by digest, else made of the release's packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import offline
from edgekiln.calls import call, last_words
from edgekiln.engine.buildcli import build_environment
from edgekiln.errors import ImageError
from edgekiln.home import home
from edgekiln.images import EPOCH, basearchive
from edgekiln.images.localrepo import lay_out
from edgekiln.progress import Progress
from edgekiln.toolchain import Base, folder
from edgekiln.toolchain.debs import refusal
from edgekiln.toolchain.lock import BaseDefinition, BaseLock, Deb
from edgekiln.transfer import shown
from edgekiln.user.aptconf import AptSettings, apt_settings
from edgekiln.user.pipconf import pip_settings

if TYPE_CHECKING:
    from edgekiln.engine import Engine

# Registry or not is decided within this time, in seconds; one that answered may take longer.
_PATIENCE = 8.0
# What docker and podman say once the registry has sent the manifest.
_ANSWERED = ("Pulling from", "Copying blob", "Getting image source")

# What debian:*-slim leaves out too, and for good: later packages follow the same rule.
_SLIM = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/lintian/*",
]
# mmdebstrap copies this machine's resolver and host name, and writes its mirrors and options. apt's
# extended_states says which packages nobody asked for by name: made of a folder, all are asked for.
_LEFTOVERS = [
    "var/lib/apt/extended_states",
    "etc/resolv.conf",
    "etc/hostname",
    "etc/machine-id",
    "etc/apt/sources.list",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/auth.conf.d",
    "var/cache/ldconfig/aux-cache",
    "var/log",
]


@dataclass(frozen=True, kw_only=True)
class ReadyBase:
    """A base the engine has. `origin` is for labels: where it came from, by digest.

    `sources` are apt's entries to build with; "" means the base has its own.
    """

    reference: str
    origin: str
    sources: str
    drift: tuple[str, ...] = ()


def ensure_base(engine: Engine, base: Base, progress: Progress, *, frozen: bool) -> ReadyBase:
    """Have the base in the engine: already there, pulled by digest, or made with mmdebstrap."""
    if base.lock is None:
        return _given(engine, base.given, progress)
    lock, kept = base.lock, kept_file(base)
    reference = reference_of(base)
    if kept.is_file() and engine.image(reference):
        known = json.loads(kept.read_bytes())
        return _checked(ReadyBase(**{**known, "drift": tuple(known["drift"])}), frozen)
    ready = _ready(engine, base, lock, reference, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_name(f"{kept.name}.{os.getpid()}")  # others may read it at any moment
    fresh.write_text(json.dumps(vars(ready)), encoding="utf-8")
    fresh.replace(kept)
    return _checked(ready, frozen)


def once_more(engine: Engine, base: Base, reference: str, progress: Progress) -> ReadyBase:
    """The base under another name, made anew where it is made of packages; for comparing."""
    if base.lock is None:
        return _given(engine, base.given, progress)
    return _ready(engine, base, base.lock, reference, progress)


def reference_of(base: Base) -> str:
    """What the base is called in the engine."""
    return base.given or f"edgekiln/base-{base.name}:{base.digest[:12]}"


def kept_file(base: Base) -> Path:
    """Where it is written down how the engine's base came about."""
    return home() / "bases" / f"{base.name}-{base.digest[:12]}.json"


def _ready(
    engine: Engine, base: Base, lock: BaseLock, reference: str, progress: Progress
) -> ReadyBase:
    """The base out of the vendor folder, from its registry, or made of the release's packages."""
    from edgekiln.images import vendoredbase

    pinned = lock.definition.image
    if made := vendoredbase.from_folder(engine, base, lock, reference, progress):
        return made
    if not offline.enabled() and _pull(engine, _by_digest(pinned), progress):
        _tag(engine, _by_digest(pinned), reference)
        return ReadyBase(reference=reference, origin=_by_digest(pinned), sources="")
    vendoredbase.refuse_offline(base, lock)
    progress.note(f"no registry answers: making {lock.definition.summary} from its packages")
    return from_packages(engine, base, lock, reference, progress)


def apt_for(base: Base, ready: ReadyBase) -> AptSettings:
    """apt's settings for building on a base: the user's own, else the base's archive."""
    pip = pip_settings()
    if base.lock is None:
        return apt_settings("none of ours", "none", pip.proxies, pip.cert)
    what = base.lock.definition
    told = apt_settings(what.distribution, what.release, pip.proxies, pip.cert)
    return told if told.sources else AptSettings(**{**vars(told), "sources": ready.sources})


def _checked(ready: ReadyBase, frozen: bool) -> ReadyBase:
    if frozen and ready.drift:
        why = "; ".join(ready.drift[:3])
        remedy = "build without --frozen, or lock the base again"
        raise ImageError("the base is not exactly the locked one", why=why, remedy=remedy)
    return ready


def _given(engine: Engine, reference: str, progress: Progress) -> ReadyBase:
    found = engine.image(reference)
    if found is None and not offline.enabled() and _pull(engine, reference, progress):
        found = engine.image(reference)
    if found is None:
        remedy = "load or pull it first, or check its name"
        raise ImageError(f"the engine has no image {reference} and cannot pull it", remedy=remedy)
    return ReadyBase(reference=reference, origin=f"{reference} {found['Id']}", sources="")


def _by_digest(pinned: str) -> str:
    """name:tag@sha256:… → name@sha256:…: older engines refuse both together."""
    name, _, digest = pinned.partition("@")
    return f"{name.rpartition(':')[0]}@{digest}"


def _pull(engine: Engine, reference: str, progress: Progress) -> bool:
    """Whether the registry answers in time and sends the image; once it answers, it has time."""
    if engine.image(reference):
        return True
    progress.update(0, None, f"asking the registry for {reference.partition('@')[0]}")
    process = subprocess.Popen(
        [*engine.cli, "pull", reference],
        env=build_environment(engine.url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    give_up = threading.Timer(_PATIENCE, process.kill)
    give_up.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if any(mark in line for mark in _ANSWERED):
                give_up.cancel()
        return process.wait() == 0
    finally:
        give_up.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()


def _tag(engine: Engine, source: str, target: str) -> None:
    done = call([*engine.cli, "tag", source, target], env=build_environment(engine.url))
    if done.returncode:
        raise ImageError(f"{source} cannot be tagged", why=last_words(done))


def from_packages(
    engine: Engine,
    base: Base,
    lock: BaseLock,
    reference: str,
    progress: Progress,
    *,
    debs: Mapping[str, Path] | None = None,
) -> ReadyBase:
    """Make the base with mmdebstrap: of the files in `debs`, else of what the archive has now.

    Raises DigestError where the archive has a locked version in other bytes.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-base-") as scratch:
        made = bootstrap(lock.definition, Path(scratch), progress, debs)
        _refuse_other_bytes(lock.debs, made)
        archive = Path(scratch) / "image.tar"
        origin = f"mmdebstrap {lock.definition.release} {base.digest}"
        basearchive.write(made.tar, reference, origin, archive, epoch=EPOCH)
        command = [*engine.cli, "load", "--quiet", "--input", str(archive)]
        done = call(command, env=build_environment(engine.url))
        if done.returncode:
            raise ImageError("the engine did not take the base", why=last_words(done))
    return ReadyBase(
        reference=reference,
        origin=origin,
        sources=made.sources,
        drift=tuple(drift_of(lock.debs, made.debs)),
    )


def _refuse_other_bytes(locked: tuple[Deb, ...], made: Bootstrapped) -> None:
    """Raise DigestError for a package at its locked version that is not the locked file."""
    wanted = {(deb.name, deb.version): deb for deb in locked}
    for deb in made.debs:
        pinned = wanted.get((deb.name, deb.version))
        if pinned is not None and pinned.sha256 != deb.sha256:
            place = archives_in(made.sources) or "the distribution's archive"
            raise refusal(pinned, found=deb.sha256, place=place)


def archives_in(sources: str) -> str:
    """The archives that one-line entries name, for people: without passwords."""
    words = (line.split() for line in sources.splitlines())
    found = (next((w for w in line if "://" in w or w.startswith("file:")), "") for line in words)
    return ", ".join(dict.fromkeys(shown(each) for each in found if each))


def drift_of(locked: tuple[Deb, ...], found: tuple[Deb, ...]) -> list[str]:
    """One line for each package that is not the locked one."""
    wanted, there = ({deb.name: deb for deb in debs} for debs in (locked, found))
    lines = []
    for name in sorted(wanted.keys() | there.keys()):
        old, new = wanted.get(name), there.get(name)
        if old is None or new is None or old.sha256 != new.sha256:
            before, now = (deb.version if deb else "none" for deb in (old, new))
            other = "" if before != now else " (other bytes)"
            lines.append(f"{name}: locked {before}, got {now}{other}")
    return lines


@dataclass(frozen=True, kw_only=True)
class Bootstrapped:
    """A base as mmdebstrap made it: the tar, its packages, and apt's entries it was made from."""

    tar: Path
    debs: tuple[Deb, ...]
    sources: str


def bootstrap(
    what: BaseDefinition,
    scratch: Path,
    progress: Progress,
    debs: Mapping[str, Path] | None = None,
) -> Bootstrapped:
    """Make a release's smallest system with mmdebstrap; the same packages give the same bytes.

    `debs` are the files to make it of; without them the archive is asked.
    """
    need_mmdebstrap(progress)
    pip = pip_settings()
    apt = apt_settings(what.distribution, what.release, pip.proxies, pip.cert)
    archive = ""
    if debs is not None:
        archive = _archive_of(what, scratch, apt)
        apt = AptSettings(sources=lay_out(debs, scratch / "archive", what.release))
    command = _mmdebstrap(what, scratch, apt)
    if debs is not None:
        # All of them by name: which are "required" is said by an archive, not by the files.
        command.insert(1, f"--include={','.join(sorted(debs))}")
    progress.update(0, None, f"mmdebstrap {what.release}")
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(scratch)}
    done = call([*_apart(), *command], env=env, input=apt.sources)
    if done.returncode:
        remedy = f"see that apt can reach an archive with {what.release}"
        raise ImageError("mmdebstrap failed", why=last_words(done), remedy=remedy)
    return Bootstrapped(
        tar=scratch / "base.tar",
        debs=tuple(parse_records((scratch / "debs").read_text(encoding="utf-8"))),
        sources=archive or (scratch / "sources").read_text(encoding="utf-8"),
    )


def _archive_of(what: BaseDefinition, scratch: Path, apt: AptSettings) -> str:
    """apt's entries for a base that is made of a folder: the user's, else those mmdebstrap knows.

    It is asked for nothing else: the hook ends it before it asks any network.
    """
    hook = f'--setup-hook=cat "$1"/etc/apt/sources.list > {scratch}/sources; exit 1'
    if not apt.sources:
        mode = ["--variant=custom", "--mode=root", "--architectures=amd64"]
        mode += ["--components=main,universe"] if what.distribution == "ubuntu" else []
        call(["mmdebstrap", *mode, hook, what.release, str(scratch / "none")], env=dict(os.environ))
    known = scratch / "sources"
    return apt.sources or (known.read_text(encoding="utf-8") if known.is_file() else "")


def _apart() -> list[str]:
    """Words before mmdebstrap that give it mounts and processes of its own; none where refused.

    Stopped half-way, it would leave /proc and /sys mounted below a folder that is about to be
    removed, and apt running in it. With these both end when it does.
    """
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return words if call([*words, "true"]).returncode == 0 else []


def _mmdebstrap(what: BaseDefinition, scratch: Path, apt: AptSettings) -> list[str]:
    options = [f"--dpkgopt={rule}" for rule in _SLIM]
    options += [f"--aptopt={line}" for line in apt.conf().splitlines()]
    installed = r"""dpkg-query --admindir="$1/var/lib/dpkg" -W -f '${Package}=${Version}\n'"""
    show = f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache show $({installed})'
    hooks = [
        f"{show} > {scratch}/debs",
        f'cat "$1"/etc/apt/sources.list > {scratch}/sources',
        " && ".join(f'rm -rf "$1"/{path}' for path in _LEFTOVERS),
        'mkdir -p "$1"/var/log "$1"/etc/apt/auth.conf.d && : > "$1"/etc/machine-id',
        'rm -f "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old',
    ]
    customize = [f"--customize-hook={hook}" for hook in hooks]
    mode = ["--variant=minbase", "--mode=root", "--architectures=amd64"]
    if what.distribution == "ubuntu":
        # As its images have it. apt is not "required" there.
        mode += ["--components=main,universe", "--include=apt"]
    if what.distribution == "debian":
        # Else apt takes usrmerge, which brings all of Perl (57 MB) to do what this hook does.
        mode += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=usr-is-merged"]
    # A "-" takes the user's own sources from stdin; without any, mmdebstrap knows the archive,
    # but this machine may not know its key.
    mirror = ["-"] if apt.sources else []
    key = folder() / "bases" / f"{what.name}.asc"
    ours = not apt.sources or bool(apt.snapshot)
    mode += [f"--keyring={key}"] if key.is_file() and ours else []
    tar = str(scratch / "base.tar")
    return ["mmdebstrap", *mode, *options, *customize, what.release, tar, *mirror]


def parse_records(text: str) -> list[Deb]:
    """Debs from what `apt-cache show` prints, by name."""
    found = {}
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " "
        )
        if "SHA256" in fields:
            deb = Deb(
                name=fields["Package"],
                version=fields["Version"],
                sha256=fields["SHA256"],
                size=int(fields["Size"]),
            )
            found[deb.name] = deb
    return [found[name] for name in sorted(found)]


def need_mmdebstrap(progress: Progress) -> None:
    """Install mmdebstrap where it is missing and may be; say so, or raise ImageError."""
    remedy = "let the engine reach a registry, or build on Debian or Ubuntu as root"
    what = "the base cannot be made here"
    if sys.platform != "linux" or not shutil.which("apt-get"):
        raise ImageError(what, why="no registry answers, and this is no Debian", remedy=remedy)
    if os.geteuid() != 0:
        raise ImageError(what, why="no registry answers; mmdebstrap needs root", remedy=remedy)
    if shutil.which("mmdebstrap"):
        return
    offline.refuse("mmdebstrap", remedy="install it from the distribution's own media")
    progress.note("installing mmdebstrap with apt")
    from edgekiln.aptrun import install

    install(["mmdebstrap", "debian-archive-keyring"])
