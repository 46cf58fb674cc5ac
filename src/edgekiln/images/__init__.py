"""Toolchains as images: built from their locks, proved by their own verify, named by both.

A tag says what is inside (the toolchain's digest) and how it got there (a digest over the
Dockerfile, verify, its checks and the installers), so an image that exists is the right one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edgekiln.calls import call, last_words
from edgekiln.errors import EngineError, ImageError, nearest
from edgekiln.home import home, project

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.images.base import ReadyBase
    from edgekiln.kits import Kit
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

SHARED = ("Dockerfile", "verify", "provision.py", "bytecode.py", "apt-install", "keystore.py")
_OWN = ("checks.py",)
# In every image: PATH, by its Dockerfile, and where kits are mounted.
PATH = "/opt/edgekiln/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KITS = "/opt/edgekiln/kits"
# Every file of a base, an image and an export is of one moment (provision.py has the same).
EPOCH = 1735689600  # 2025-01-01


def recipe_files(toolchain: Toolchain) -> dict[str, Path]:
    """The files an image is made by: its checks, and what all images share."""
    folder, name = project() / "images", toolchain.checks
    files = {part: folder / name / part for part in _OWN} | {p: folder / p for p in SHARED}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        known = [path.parent.name for path in folder.glob("*/checks.py")]
        raise ImageError(f"there is no image {name}", remedy=nearest(name, known))
    return files


def tag(toolchain: Toolchain) -> str:
    """edgekiln/NAME:<12 hex of the toolchain's digest>-<8 hex of how it is installed>."""
    how = recipe_digest(toolchain)
    return f"edgekiln/{toolchain.name}:{toolchain.installed[:12]}-{how[:8]}"


def file_name(toolchain: Toolchain) -> str:
    """The tag as files are called by it: edgekiln-NAME-…-…"""
    return tag(toolchain).replace("/", "-").replace(":", "-")


def recipe_digest(toolchain: Toolchain) -> str:
    """sha256 (hex) of the files of images/ that the toolchain's image is made by."""
    how = hashlib.sha256()
    for part, path in sorted(recipe_files(toolchain).items()):
        how.update(f"{part}\0".encode() + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return how.hexdigest()


def exists(engine: Engine, toolchain: Toolchain) -> bool:
    """Whether the engine has the image; one small request."""
    return engine.image(tag(toolchain)) is not None


def build(
    engine: Engine,
    toolchain: Toolchain,
    progress: Progress,
    *,
    frozen: bool = False,
    fresh: bool = False,
) -> str:
    """Build, verify and tag the image, unless it is there; returns its tag.

    `frozen` refuses packages of the distribution that are newer than the locked ones; `fresh`
    builds even if it is there, and takes nothing from the builder's cache. Raises ImageError
    with the builder's own last words and the log's path.
    """
    from edgekiln.images.exports import loaded
    from edgekiln.kits.vendor import told
    from edgekiln.locking import held

    name = tag(toolchain)
    lock = home() / "locks" / f"{file_name(toolchain)}.lock"
    with held(lock, lambda: progress.note(f"waiting: another edgekiln is building {name}")):
        if fresh or not (exists(engine, toolchain) or loaded(engine, toolchain, progress)):
            try:
                _build(engine, toolchain, progress, frozen=frozen, fresh=fresh)
            except ImageError as error:
                raise told(error, toolchain) from error
        elif frozen and (newer := drift(engine, toolchain)):
            remedy = f"kiln images build {toolchain.name} --frozen --fresh, or lock it anew"
            raise ImageError(f"{name} is newer than its lock", why=newer[0], remedy=remedy)
    return name


def _build(
    engine: Engine, toolchain: Toolchain, progress: Progress, *, frozen: bool, fresh: bool
) -> None:
    from edgekiln.images.base import ensure_base
    from edgekiln.kits import absent

    absent.refuse([toolchain], engine, kits=False)
    base = ensure_base(engine, toolchain.base, progress, frozen=frozen)
    trial = f"edgekiln/{toolchain.name}:trial-{os.getpid()}"
    try:
        make(engine, toolchain, base, trial, progress, frozen=frozen, fresh=fresh)
        run(engine, ["tag", trial, tag(toolchain)])
    finally:
        run(engine, ["rmi", trial], check=False)


def make(
    engine: Engine,
    toolchain: Toolchain,
    base: ReadyBase,
    name: str,
    progress: Progress,
    *,
    frozen: bool,
    fresh: bool,
) -> list[str]:
    """Build an image of the toolchain on `base`, called `name`, and verify it; returns its drift.

    Raises ImageError as `build` does; what has been built by then is the caller's to remove.
    """
    from edgekiln.images import builder
    from edgekiln.images.context import staged

    with staged(toolchain, base, progress, frozen=frozen) as context:
        words = [*context.arguments(engine), *_labels(toolchain, base)]
        words += ["--no-cache"] if fresh else []
        builder.build(engine, name, words, context.folder, progress)
    progress.update(0, None, "verify")
    report = verify(engine, name)
    drift = [*base.drift, *report.get("drift", [])]
    for line in drift:
        progress.note(f"newer than locked: {line}")
    if drift:
        builder.relabel(engine, name, {"io.edgekiln.drift": "; ".join(drift)})
    return drift


def verify(engine: Engine, image: str, kits: Iterable[Kit] = ()) -> dict[str, Any]:
    """Run the image's own verify, without a network, and return what it reports.

    With `kits` (unpacked) they are mounted, and what they are for is proved too. Raises
    ImageError with the check that failed.
    """
    limits = ["--network", "none", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp:exec"]
    words = ["run", "--rm", *limits, "--security-opt", "no-new-privileges"]
    words += _kit_words(engine, list(kits))
    done = _engine_call(engine, [*words, image, "/opt/edgekiln/verify", "--json"])
    if done.returncode:
        raise ImageError(f"{image} failed its verify", why=last_words(done))
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def prove(engine: Engine, toolchain: Toolchain) -> dict[str, Any]:
    """Verify the toolchain's image together with its kits, each still what was unpacked.

    Raises ImageError where kits are not here yet, with their names, and DigestError for a kit that
    was changed since.
    """
    from edgekiln.kits import is_ready
    from edgekiln.kits.making import verify as verify_kit

    if absent := [kit.name for kit in toolchain.kits if not is_ready(kit)]:
        raise ImageError(
            f"{toolchain.asked} cannot be proved without its kits",
            why=f"not here yet: {', '.join(absent)}",
            remedy=f"kiln toolchains fetch {toolchain.asked}, or build something that needs it",
        )
    for kit in toolchain.kits:
        verify_kit(kit)
    return verify(engine, tag(toolchain), toolchain.kits)


def _kit_words(engine: Engine, kits: list[Kit]) -> Iterator[str]:
    """How kits are mounted, and what checks are told of them: {family: version}."""
    from edgekiln.engine.paths import engine_path

    for kit in kits:
        place = engine_path(kit.path.resolve(), engine.kind)
        yield from ("--volume", f"{place}:{KITS}/{kit.family}:ro")
    if kits:
        yield from ("--env", f"KILN_KITS={told_of(kits)}")


def told_of(kits: Iterable[Kit]) -> str:
    """What verify is told of the kits it finds, as JSON: {family: version}."""
    return json.dumps({kit.family: kit.version for kit in kits}, sort_keys=True)


def drift(engine: Engine, toolchain: Toolchain) -> list[str]:
    """What of the built image is newer than its lock, as its label says; for manifests."""
    said = _label(engine, tag(toolchain), "io.edgekiln.drift")
    return said.split("; ") if said else []


def origin(engine: Engine, image: str) -> str:
    """What an image of ours stands on, by digest, as its label says."""
    return _label(engine, image, "io.edgekiln.images.base")


def _label(engine: Engine, image: str, name: str) -> str:
    labels = ((engine.image(image) or {}).get("Config") or {}).get("Labels") or {}
    return str(labels.get(name, ""))


def list_images(engine: Engine) -> list[dict[str, Any]]:
    """Every image of ours in the engine: tag, id, size in bytes, when it was made."""
    wanted = json.dumps({"label": ["io.edgekiln.toolchain"]})
    found = engine.get(f"/images/json?filters={quote(wanted)}") or []
    return [
        {"tag": name, "id": image["Id"], "size": image["Size"], "created": image["Created"]}
        for image in found
        for name in image.get("RepoTags") or []
    ]


def remove(engine: Engine, image: str) -> None:
    """Take an image's tag away; its layers go where no other image has them."""
    run(engine, ["rmi", image])


def shell_command(
    engine: Engine, toolchain: Toolchain, folder: Path
) -> tuple[list[str], Mapping[str, str]]:
    """The command (and its environment) of a shell in the image, with `folder` at /work.

    The kits that are here are mounted, and the toolchain's own variables set.
    """
    from edgekiln.engine.buildcli import build_environment
    from edgekiln.kits import is_ready
    from edgekiln.toolchain import variables

    mount = ["--volume", f"{folder.resolve()}:/work", "--workdir", "/work"]
    mount += _kit_words(engine, [kit for kit in toolchain.kits if is_ready(kit)])
    own = variables(toolchain, path=PATH, kits=KITS)
    mount += [word for key, value in own.items() for word in ("--env", f"{key}={value}")]
    words = ["run", "--rm", "--interactive", "--tty", *mount, tag(toolchain), "bash"]
    return [*engine.cli, *words], build_environment(engine.url)


def _labels(toolchain: Toolchain, base: ReadyBase) -> Iterator[str]:
    """What the image says of itself: OCI's annotations, and what edgekiln looks for."""
    said = {
        "org.opencontainers.image.title": f"edgekiln {toolchain.name}",
        "org.opencontainers.image.description": toolchain.summary,
        "org.opencontainers.image.version": toolchain.installed[:12],
        "org.opencontainers.image.base.name": base.origin.partition("@")[0].partition(" ")[0],
        "org.opencontainers.image.base.digest": _digest_of(base.origin),
        "io.edgekiln.toolchain": toolchain.name,
        "io.edgekiln.toolchain.lock": f"sha256:{toolchain.installed}",
        "io.edgekiln.images.base": base.origin,
    }
    for key, value in said.items():
        yield from ("--label", f"{key}={value}")


def _digest_of(origin: str) -> str:
    last = origin.rpartition("@")[2].rpartition(" ")[2]
    return last if last.startswith("sha256:") else f"sha256:{last}"


def run(engine: Engine, words: list[str], *, check: bool = True) -> None:
    """Run a command of the engine's. Raises EngineError for one that fails, if `check`."""
    done = _engine_call(engine, words)
    if check and done.returncode:
        raise EngineError(f"{engine.kind} {words[0]} failed", why=last_words(done))


def _engine_call(engine: Engine, words: list[str]) -> subprocess.CompletedProcess[str]:
    from edgekiln.engine.buildcli import build_environment

    return call([*engine.cli, *words], env=build_environment(engine.url))
