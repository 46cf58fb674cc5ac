"""What an image holds, file by file, and whether some text is anywhere in it."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from edgekiln.engine import Engine
from edgekiln.engine.buildcli import build_environment
from edgekiln.images import content, exports

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


def listing(engine: Engine, image: str) -> content.Listing:
    """What the engine says the image holds, file by file."""
    with exports.streamed(engine, image) as stream:
        return content.of_tar(stream)


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
