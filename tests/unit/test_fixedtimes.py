"""Which builders can give an image one manifest digest, and what they are told for it."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgekiln.engine import Engine, fixedtimes
from edgekiln.images import basearchive
from tests.unit.test_engine import answering

CONTAINERD = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
OVERLAY = {"DriverStatus": [["Backing Filesystem", "extfs"]]}


def engine(url: str = "", version: str = "26.1.5+dfsg1", kind: str = "docker") -> Engine:
    return Engine(kind=kind, url=url, version=version, rootless=False)


def command(folder: Path, buildx: str) -> None:
    """A docker command that is asked for nothing but its versions."""
    folder.mkdir()
    told = f"github.com/docker/buildx {buildx}" if buildx else ""
    asked = f'version) echo 26.1.5;; buildx) echo "{told}"; [ "{told}" ];;'
    script = f'#!/bin/sh\ncase "$1" in {asked} esac\n'
    (folder / "docker").write_text(script)
    (folder / "docker").chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="sockets and shells of POSIX")
@pytest.mark.parametrize(
    ("case", "why"),
    [
        (("26.1.5+dfsg1", CONTAINERD, "0.13.1+ds1"), ""),
        (("28.5.2", CONTAINERD, "v0.29.1"), ""),
        (("25.0.3", CONTAINERD, "0.13.1"), "docker 25.0.3 has a BuildKit older than 0.13"),
        (("20.10.24+dfsg1", OVERLAY, "0.13.1"), "older than 0.13"),
        (("28.5.2", OVERLAY, "0.29.1"), "does not keep its images in containerd's store"),
        (("28.5.2", CONTAINERD, "v0.9.1"), "has no buildx 0.10 or newer"),
    ],
)
def test_a_builder_that_cannot_fix_times_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, dict[str, Any], str],
    why: str,
) -> None:
    version, info, buildx = case
    command(tmp_path / "bin", buildx)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with answering(tmp_path / "d.sock", {"/info": info}) as url:
        told = fixedtimes.why_not(engine(url, version))
    assert (why in told) if why else told == ""


def test_podman_builds_without_buildkit() -> None:
    assert fixedtimes.why_not(engine(kind="podman")) == "podman builds without BuildKit"


def test_the_builder_is_told_the_moment_and_to_compress_nothing() -> None:
    words = fixedtimes.build_words("edgekiln/x:1", Path("/a/image.tar"), 1735689600)
    assert "SOURCE_DATE_EPOCH=1735689600" in words
    assert "--provenance=false" in words
    output = words[words.index("--output") + 1].split(",")
    assert {"dest=/a/image.tar", "rewrite-timestamp=true", "compression=uncompressed"} <= {*output}


def test_a_bases_archive_has_no_time_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "root.tar"
    root.write_bytes(b"\0" * 10240)
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    for target in (one, two):
        basearchive.write(root, "edgekiln/base-x:1", "mmdebstrap x", target, epoch=1735689600)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(one.read_bytes())) as archive:
        said = archive.extractfile("manifest.json")
        assert said
        (told,) = json.loads(said.read())
        assert told["RepoTags"] == ["edgekiln/base-x:1"]
        read = {name: archive.extractfile(name) for name in (told["Config"], *told["Layers"])}
        config, layer = (file.read() for file in read.values() if file)
    assert layer == root.read_bytes()
    assert told["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
    made = json.loads(config)
    assert made["created"] == made["history"][0]["created"] == "2025-01-01T00:00:00Z"
    assert made["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
