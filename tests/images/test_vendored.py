"""An image out of a vendor folder: loaded where it is the right one, refused where it is not."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.engine import Engine
from edgekiln.errors import DigestError, ImageError
from edgekiln.images.base import ensure_base
from edgekiln.kits import vendor
from edgekiln.progress import Silent
from edgekiln.toolchain import Toolchain, load_toolchain
from tests.images.content import called

pytestmark = pytest.mark.engine

REPORT = json.dumps({"proved": ["it is there"], "drift": []})


@pytest.fixture
def toolchain() -> Toolchain:
    """One whose image nobody has."""
    return dataclasses.replace(load_toolchain("mnn"), installed=secrets.token_hex(32))


@pytest.fixture
def save(
    engine: Engine, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """Puts an image with a verify of its own into a vendor folder, and takes it from the engine."""
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path))
    base = ensure_base(engine, toolchain.base, Silent(), frozen=False).reference

    def make(verify: str, locked: str = toolchain.installed) -> Path:
        path = "/opt/edgekiln/verify"
        script = f"mkdir -p /opt/edgekiln; printf '%s\\n' '#!/bin/sh' '{verify}' > {path}"
        script += f"; chmod 755 {path}"
        container = called(engine, ["create", "--user", "0", base, "sh", "-c", script])
        label = f"LABEL io.edgekiln.toolchain=mnn io.edgekiln.toolchain.lock=sha256:{locked}"
        try:
            called(engine, ["start", "--attach", container])
            called(engine, ["commit", "--change", label, container, images.tag(toolchain)])
        finally:
            called(engine, ["rm", "--force", container])
        saved = vendor.save_image(engine, toolchain, tmp_path, Silent())
        images.remove(engine, images.tag(toolchain))
        return saved

    yield make
    if images.exists(engine, toolchain):
        images.remove(engine, images.tag(toolchain))


def test_the_right_one_is_loaded_in_the_place_of_a_build(
    engine: Engine, toolchain: Toolchain, save: Callable[..., Path]
) -> None:
    save(f"echo {json.dumps(REPORT)}")
    assert not images.exists(engine, toolchain)
    assert images.build(engine, toolchain, Silent()) == images.tag(toolchain)
    assert images.exists(engine, toolchain)


def test_one_that_fails_its_verify_is_not_kept(
    engine: Engine, toolchain: Toolchain, save: Callable[..., Path]
) -> None:
    save("echo E: torch is missing >&2; exit 1")
    with pytest.raises(ImageError, match="failed its verify") as caught:
        images.build(engine, toolchain, Silent())
    assert "torch is missing" in caught.value.why
    assert not images.exists(engine, toolchain)


def test_one_of_another_lock_is_refused(
    engine: Engine, toolchain: Toolchain, save: Callable[..., Path]
) -> None:
    save(f"echo {json.dumps(REPORT)}", locked="0" * 64)
    with pytest.raises(ImageError, match="has another image"):
        images.build(engine, toolchain, Silent())
    assert not images.exists(engine, toolchain)


def test_a_damaged_one_is_not_loaded(
    engine: Engine, toolchain: Toolchain, save: Callable[..., Path]
) -> None:
    saved = save(f"echo {json.dumps(REPORT)}")
    path = max(saved.rglob("*"), key=lambda each: each.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"damage")
    with pytest.raises(DigestError, match="is damaged"):
        images.build(engine, toolchain, Silent())
    assert not images.exists(engine, toolchain)
