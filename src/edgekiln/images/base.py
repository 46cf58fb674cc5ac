"""The bases images stand on: from a registry by digest, else made of the release's packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call, last_words
from edgekiln.engine.buildcli import build_environment
from edgekiln.errors import ImageError
from edgekiln.home import home
from edgekiln.images import basearchive
from edgekiln.progress import Progress
from edgekiln.toolchain import Base, folder
from edgekiln.toolchain.lock import BaseDefinition, BaseLock, Deb
from edgekiln.user.aptconf import AptSettings, apt_settings
from edgekiln.user.pipconf import pip_settings

if TYPE_CHECKING:
    from edgekiln.engine import Engine

# Registry or not is decided within this time, in seconds; one that answered may take longer.
_PATIENCE = 8.0
# What docker and podman say once the registry has sent the manifest.
_ANSWERED = ("Pulling from", "Copying blob", "Getting image source")
# Every file of a base is of one moment (provision.py has the same): 2025-01-01.
EPOCH = 1735689600

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
# mmdebstrap copies this machine's resolver and host name, and writes its mirrors and options.
_LEFTOVERS = [
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
    lock, kept = base.lock, home() / "bases" / f"{base.name}-{base.digest[:12]}.json"
    reference = f"edgekiln/base-{base.name}:{base.digest[:12]}"
    if kept.is_file() and engine.image(reference):
        known = json.loads(kept.read_bytes())
        return _checked(ReadyBase(**{**known, "drift": tuple(known["drift"])}), frozen)
    ready = _ready(engine, base, lock, reference, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(vars(ready)), encoding="utf-8")
    return _checked(ready, frozen)


def once_more(engine: Engine, base: Base, reference: str, progress: Progress) -> ReadyBase:
    """The base under another name, made anew where it is made of packages; for comparing."""
    if base.lock is None:
        return _given(engine, base.given, progress)
    return _ready(engine, base, base.lock, reference, progress)


def _ready(
    engine: Engine, base: Base, lock: BaseLock, reference: str, progress: Progress
) -> ReadyBase:
    pinned = lock.definition.image
    if _pull(engine, _by_digest(pinned), progress):
        _tag(engine, _by_digest(pinned), reference)
        return ReadyBase(reference=reference, origin=_by_digest(pinned), sources="")
    progress.note(f"no registry answers: making {lock.definition.summary} from its packages")
    return _from_packages(engine, base, lock, reference, progress)


def apt_for(base: Base, ready: ReadyBase) -> AptSettings:
    """apt's settings for building on a base: the user's own, else the base's archive."""
    pip = pip_settings()
    if base.lock is None:
        return apt_settings("debian", "none of ours", pip.proxies, pip.cert)
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
    if found is None and _pull(engine, reference, progress):
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


def _from_packages(
    engine: Engine, base: Base, lock: BaseLock, reference: str, progress: Progress
) -> ReadyBase:
    with tempfile.TemporaryDirectory(prefix="edgekiln-base-") as scratch:
        made = bootstrap(lock.definition, Path(scratch), progress)
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


def bootstrap(what: BaseDefinition, scratch: Path, progress: Progress) -> Bootstrapped:
    """Make a release's smallest system with mmdebstrap; the same packages give the same bytes."""
    _need_mmdebstrap(progress)
    pip = pip_settings()
    apt = apt_settings(what.distribution, what.release, pip.proxies, pip.cert)
    command = _mmdebstrap(what, scratch, apt)
    progress.update(0, None, f"mmdebstrap {what.release}")
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(scratch)}
    done = call(command, env=env, input=apt.sources)
    if done.returncode:
        remedy = f"see that apt can reach an archive with {what.release}"
        raise ImageError("mmdebstrap failed", why=last_words(done), remedy=remedy)
    return Bootstrapped(
        tar=scratch / "base.tar",
        debs=tuple(parse_records((scratch / "debs").read_text(encoding="utf-8"))),
        sources=(scratch / "sources").read_text(encoding="utf-8"),
    )


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
    mode += [f"--keyring={key}"] if key.is_file() and not apt.sources else []
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


def _need_mmdebstrap(progress: Progress) -> None:
    """Install mmdebstrap where it is missing and may be; say so, or say what to do."""
    remedy = "let the engine reach a registry, or build on Debian or Ubuntu as root"
    what = "the base cannot be made here"
    if sys.platform != "linux" or not shutil.which("apt-get"):
        raise ImageError(what, why="no registry answers, and this is no Debian", remedy=remedy)
    if os.geteuid() != 0:
        raise ImageError(what, why="no registry answers; mmdebstrap needs root", remedy=remedy)
    if shutil.which("mmdebstrap"):
        return
    progress.note("installing mmdebstrap with apt")
    from edgekiln.aptrun import install

    install(["mmdebstrap", "debian-archive-keyring"])
