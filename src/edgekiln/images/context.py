"""What a build of an image is given: a folder of files, and the user's settings as secrets.

The folder is the build's context. It is bind-mounted, so nothing of it lands in a layer unless
the Dockerfile copies it. Settings are secrets: they are seen by one RUN and are part of neither
a layer, the history nor the build cache's keys.

Its files have the times at which they were written: by size and time the builder tells whether it
has them from the build before, and two markers or locks are often of one size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgekiln import offline
from edgekiln.images.base import ReadyBase, apt_for
from edgekiln.toolchain import MARKER
from edgekiln.toolchain.debs import file_name, find_debs
from edgekiln.toolchain.places import answering
from edgekiln.toolchain.uvtool import linux_uv
from edgekiln.toolchain.wheels import find_local, put
from edgekiln.user.aptconf import AptSettings
from edgekiln.user.pipconf import PipSettings, pip_settings, uv_environment

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain
    from edgekiln.toolchain.lock import Lock

_CA = "/run/secrets/ca"
# BuildKit takes secrets of up to 500 KB. A bundle of certificates is half of that as a rule; one
# that is larger is mounted with the context, which leaves as little behind.
_SECRET_LIMIT = 500_000
_LARGE_CA = "/run/kiln/ca"
# Slim bases leave manuals out, and with them this folder: Java's set-up makes a link in it, and
# fails where it is missing. So the folder is let in, and no manual.
_WITH_MANUALS = "-oDpkg::Options::=--path-include=/usr/share/man/man1"


@dataclass(frozen=True, kw_only=True)
class Context:
    """A staged build: the context's folder, its base, and the secrets' files by their id."""

    folder: Path
    base: str
    secrets: dict[str, Path] = field(default_factory=dict)
    network: str = ""

    def arguments(self, engine: Engine) -> list[str]:
        """What the builder's command line is given."""
        words = ["--build-arg", f"BASE={self._reference(engine)}"]
        words += ["--file", str(self.folder / "Dockerfile")]
        for name, path in sorted(self.secrets.items()):
            words += ["--secret", f"id={name},src={path}"]
        return [*words, *(["--network", self.network] if self.network else [])]

    def _reference(self, engine: Engine) -> str:
        # Podman looks short names up in registries first, unless told they are its own.
        own = engine.kind == "podman" and self.base.startswith("edgekiln/")
        return f"localhost/{self.base}" if own else self.base


@contextmanager
def staged(
    toolchain: Toolchain, base: ReadyBase, progress: Progress, *, frozen: bool
) -> Iterator[Context]:
    """Lay out everything a build of the toolchain's image needs; gone again afterwards."""
    from edgekiln.home import home
    from edgekiln.images import recipe_files

    pip = pip_settings()
    parent = home() / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-", dir=parent) as scratch:
        folder, hidden = Path(scratch, "context"), Path(scratch, "secrets")
        (folder / "wheels").mkdir(parents=True)
        hidden.mkdir(mode=0o700)
        for name, path in recipe_files(toolchain).items():
            _copy_text(path, folder / name)
        put(linux_uv(toolchain.lock.uv, pip, progress), folder / "uv")
        _write_lock(toolchain, folder)
        _write_debs(toolchain.lock, folder, frozen=frozen)
        local = find_local(toolchain.lock.wheels, pip)
        for name, path in local.items():
            put(path, folder / "wheels" / name)
        settings = indexes(toolchain, set(local), pip)
        apt = apt_for(toolchain.base, base)
        yield Context(
            folder=folder,
            base=base.reference,
            secrets=_secrets(hidden, folder, settings, pip, apt),
            network=_network(pip, apt),
        )


def indexes(
    toolchain: Toolchain, local: set[str], pip: PipSettings, *, remote_only: bool = True
) -> dict[str, str]:
    """uv's environment for what is not at hand, with further places where they are needed.

    A wheel with a local version (+cpu) is in no Python index: when it is not at hand, the
    toolchain's places are tried, those that answer. With every wheel at hand no index is asked.
    """
    env = uv_environment(pip, remote_only=remote_only)
    if all(wheel.file in local for wheel in toolchain.lock.wheels):
        return {**env, "UV_OFFLINE": "1"}
    if any(wheel.local and wheel.file not in local for wheel in toolchain.lock.wheels):
        found = answering(toolchain.places, pip)
        env["UV_INDEX"] = " ".join([*env.get("UV_INDEX", "").split(), *found])
    return env


def _copy_text(source: Path, target: Path) -> None:
    """Copy a file of ours; a checkout with CRLF would give `bash\\r: No such file`."""
    target.write_bytes(source.read_bytes().replace(b"\r\n", b"\n"))
    target.chmod(0o755)


def _write_lock(toolchain: Toolchain, folder: Path) -> None:
    """The lock as it lies in the image, and the marker that names the toolchain."""
    from edgekiln.images import tag
    from edgekiln.toolchain import marker
    from edgekiln.toolchain.lock import installed_text

    lock = installed_text(toolchain.lock)
    told = {"lock.json": lock, MARKER: marker(toolchain, tag(toolchain))}
    for name, text in told.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        (folder / name).chmod(0o644)


def _write_debs(lock: Lock, folder: Path, *, frozen: bool) -> None:
    """What images/apt-install is told, and the packages that are at hand.

    Raises DigestError offline, where a package is here in other bytes only.
    """
    java = any(deb.name.startswith("openjdk-") for deb in lock.debs)
    found = find_debs(lock.debs)
    lacking = [deb for deb in lock.debs if deb not in found.here]
    if offline.enabled():
        found.refuse(lacking)
    texts = {
        "debs": "".join(f"{d.name} {d.version} {d.sha256} {d.size}\n" for d in lock.debs),
        "debs.lacking": "".join(f"{deb.name}={deb.version}\n" for deb in lacking),
        "apt.names": "".join(f"{name}\n" for name in lock.definition.apt),
        "apt.options": f"{_WITH_MANUALS}\n" if java else "",
        "frozen": f"{int(frozen)}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    if found.here:
        (folder / "debs.here").mkdir()
    for deb in lock.debs:
        if path := found.here.get(deb):
            put(path, folder / "debs.here" / file_name(deb, path))


def _secrets(
    hidden: Path, folder: Path, settings: dict[str, str], pip: PipSettings, apt: AptSettings
) -> dict[str, Path]:
    """Each secret as a file only this user can read; empty where there is nothing to say."""
    bundle = apt.ca_file() or _path(pip.cert)
    large = bundle is not None and bundle.stat().st_size > _SECRET_LIMIT
    if bundle and large:
        shutil.copyfile(bundle, folder / "ca")
    conf = apt.conf(ca=_LARGE_CA if large else _CA)
    texts = {"uv": json.dumps(settings), "apt": conf, "sources": apt.sources}
    files = {"ca": None if large else bundle, "netrc": pip.netrc, "aptauth": apt.auth}
    found = {name: hidden / name for name in (*texts, *files)}
    for path in found.values():
        path.touch(mode=0o600)
    for name, text in texts.items():
        found[name].write_text(text, encoding="utf-8")
    for name, source in files.items():
        if source:
            shutil.copyfile(source, found[name])
    return found


def _path(name: str | None) -> Path | None:
    return Path(name) if name and Path(name).is_file() else None


def _network(pip: PipSettings, apt: AptSettings) -> str:
    """What network the build's steps have: none offline, "" for the engine's own."""
    if offline.enabled():
        return "none"
    return "host" if _on_this_machine(pip, apt) else ""


def _on_this_machine(pip: PipSettings, apt: AptSettings) -> bool:
    """Whether a proxy or an index listens on this machine only: then the build shares its net."""
    places = [pip.index_url or "", *pip.extra_index_urls, *pip.proxies.values()]
    places += [value for key, value in apt.options if key.lower().endswith("proxy")]
    places += [word for word in apt.sources.split() if "://" in word]
    hosts = {urlsplit(place if "://" in place else f"//{place}").hostname for place in places}
    return any(host in ("localhost", "::1") or (host or "").startswith("127.") for host in hosts)
