"""What an image holds, file by file, and whether some text is anywhere in it."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from edgekiln.engine import Engine
from edgekiln.engine.buildcli import build_environment

# The engine puts these into a container, not into an image.
_ENGINES_OWN = (".dockerenv", "dev", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf")
_CHUNK = 1 << 22


@contextmanager
def _streaming(engine: Engine, words: list[str]) -> Iterator[IO[bytes]]:
    """The standard output of an engine's command."""
    env = build_environment(engine.url)
    process = subprocess.Popen([*engine.cli, *words], env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout
        assert process.wait() == 0, words
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def called(engine: Engine, words: list[str]) -> str:
    """What an engine's command said."""
    env = build_environment(engine.url)
    done = subprocess.run([*engine.cli, *words], env=env, capture_output=True, check=True)
    return done.stdout.decode().strip()


def found_in(engine: Engine, image: str, needles: Iterable[bytes]) -> set[bytes]:
    """Which of `needles` occur in the image: every layer, its history, its configuration."""
    wanted: set[bytes] = set(needles)
    found: set[bytes] = set()
    overlap = max(map(len, wanted))
    with _streaming(engine, ["save", image]) as stream:
        tail = b""
        while chunk := stream.read(_CHUNK):
            piece = tail + chunk
            found |= {needle for needle in wanted - found if needle in piece}
            tail = piece[-overlap:]
    return found


def listing(engine: Engine, image: str) -> dict[str, tuple[object, ...]]:
    """path → (digest or link, mode, owner, group, size) of each file; times are left out."""
    container = called(engine, ["create", image])
    try:
        with (
            _streaming(engine, ["export", container]) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            return {
                member.name: _entry(archive, member)
                for member in archive
                if not member.name.startswith(_ENGINES_OWN)
            }
    finally:
        called(engine, ["rm", container])


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    content = archive.extractfile(member) if member.isfile() else None
    what = hashlib.sha256(content.read()).hexdigest() if content else member.linkname
    return what, member.mode, member.uid, member.gid, member.size


@contextmanager
def changed(engine: Engine, image: str, script: str) -> Iterator[str]:
    """The image after a script ran in it as root."""
    name = f"edgekiln-test/changed:{secrets.token_hex(4)}"
    container = called(engine, ["create", "--user", "0", image, "sh", "-c", script])
    try:
        called(engine, ["start", "--attach", container])
        change = ["--change", "USER 65534:65534", "--change", 'CMD ["python3"]']
        called(engine, ["commit", *change, container, name])
        yield name
    finally:
        called(engine, ["rm", "--force", container])
        called(engine, ["rmi", name])
