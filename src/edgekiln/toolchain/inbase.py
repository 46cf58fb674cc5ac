"""Packages of the distribution as apt resolves them, in a container of the base."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from edgekiln.calls import call, last_words
from edgekiln.errors import EngineError, ToolchainError
from edgekiln.progress import Progress
from edgekiln.toolchain import Base
from edgekiln.toolchain.lock import Deb

if TYPE_CHECKING:
    from edgekiln.engine import Engine


def resolve_debs(packages: tuple[str, ...], base: Base, progress: Progress) -> list[Deb]:
    """What apt would install on the base today for `packages`, with what they need."""
    from edgekiln.engine import find_engine

    if not packages:
        return []
    engine = find_engine()
    if engine is None:
        remedy = "start one: kiln engine up"
        raise EngineError("apt's packages are locked in a container of the base", remedy=remedy)
    progress.update(0, None, "resolving packages")
    script = (
        'apt-get update -qq "$@" && apt-get install -qq -y --no-install-recommends --print-uris '
        f'-o Acquire::ForceHash=SHA256 "$@" {" ".join(packages)}'
    )
    said = in_base(engine, base, script, progress)
    return sorted((_deb(line) for line in said.splitlines() if line), key=lambda deb: deb.name)


def in_base(
    engine: Engine, base: Base, script: str, progress: Progress, *, out: Path | None = None
) -> str:
    """What a shell script says in a container of the base; "$@" are apt's options there.

    It runs in `out`, where that is given: what it writes there stays.
    """
    from edgekiln.images.base import apt_for, ensure_base

    ready = ensure_base(engine, base, progress, frozen=False)
    apt = apt_for(base, ready)
    settings = (
        "export APT_CONFIG=/run/kiln/apt; set -- ; [ ! -s /run/kiln/sources ] || "
        "set -- -o Dir::Etc::SourceList=/run/kiln/sources -o Dir::Etc::SourceParts=/nonexistent;"
    )
    with tempfile.TemporaryDirectory(prefix="edgekiln-lock-") as scratch:
        Path(scratch, "apt").write_text(apt.conf(ca="/run/kiln/ca"), encoding="utf-8")
        Path(scratch, "sources").write_text(apt.sources, encoding="utf-8")
        ca = apt.ca_file()
        Path(scratch, "ca").write_bytes(ca.read_bytes() if ca else b"")
        mount = ["--volume", f"{scratch}:/run/kiln:ro"]
        mount += ["--volume", f"{out}:/run/out", "--workdir", "/run/out"] if out else []
        return _run(engine, [*mount, ready.reference, "sh", "-c", settings + script])


def _run(engine: Engine, arguments: list[str]) -> str:
    from edgekiln.engine.buildcli import build_environment

    done = call([*engine.cli, "run", "--rm", *arguments], env=build_environment(engine.url))
    if done.returncode:
        raise ToolchainError("apt could not say what it would install", why=last_words(done))
    return done.stdout


def _deb(line: str) -> Deb:
    """One of apt's own lines: 'address' name_version_arch.deb size SHA256:digest."""
    _, file, size, told = line.split()
    name, version, _ = file.split("_", 2)
    return Deb(
        name=name,
        version=unquote(version),
        sha256=told.removeprefix("SHA256:"),
        size=int(size),
    )
