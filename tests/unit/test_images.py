"""Tags, steps and reasons of image builds, without an engine; the installer's own checks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from edgekiln import images
from edgekiln.errors import EngineError, ImageError
from edgekiln.home import project
from edgekiln.images import builder
from edgekiln.images.base import ReadyBase, _by_digest, _mmdebstrap
from edgekiln.images.context import _on_this_machine, _secrets, indexes
from edgekiln.prefix import prefix_path, prefix_ready, refuse_elsewhere
from edgekiln.progress import Silent
from edgekiln.toolchain import folder, load_base, load_toolchain
from edgekiln.user.aptconf import AptSettings
from edgekiln.user.pipconf import PipSettings


@pytest.fixture
def provision() -> ModuleType:
    """images/provision.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "provision", project() / "images" / "provision.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """images/ in a project that a test may change."""
    shutil.copytree(project() / "images", tmp_path / "images")
    monkeypatch.setattr(images, "project", lambda: tmp_path)
    return tmp_path / "images"


def test_a_tag_holds_the_locks_digest() -> None:
    toolchain = load_toolchain("mnn")
    name, _, tag = images.tag(toolchain).partition(":")
    assert name == "edgekiln/mnn"
    assert tag.split("-")[0] == toolchain.digest[:12]
    other = load_toolchain("mnn", base="debian:12")
    assert images.tag(other) != images.tag(toolchain)


@pytest.mark.parametrize("part", ["mnn/checks.py", *images.SHARED])
def test_whatever_makes_an_image_changes_its_tag(copy: Path, part: str) -> None:
    before = images.tag(load_toolchain("mnn"))
    with (copy / part).open("a", encoding="utf-8") as stream:
        stream.write("# more\n")
    assert images.tag(load_toolchain("mnn")) != before


def test_line_ends_of_a_windows_checkout_give_the_same_tag(copy: Path) -> None:
    before = images.tag(load_toolchain("mnn"))
    path = copy / "Dockerfile"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert images.tag(load_toolchain("mnn")) == before


def test_a_toolchain_without_checks_is_named(copy: Path) -> None:
    (copy / "mnn" / "checks.py").unlink()
    with pytest.raises(ImageError, match="there is no image mnn"):
        images.tag(load_toolchain("mnn"))


def test_the_dockerfile_needs_no_registry_for_its_syntax() -> None:
    text = (project() / "images" / "Dockerfile").read_text(encoding="utf-8")
    assert not text.lower().replace(" ", "").startswith("#syntax=")
    assert "<<" not in text and "--link" not in text and "ADD " not in text


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("#7 [3/4] RUN python3 provision.py", (2, 4, "provision.py")),
        ("#6 [stage-0 2/4] RUN sh apt-install", (1, 4, "apt")),
        ("STEP 2/9: COPY lock.json verify /opt/", (1, 9, "COPY")),
        ("#7 3.703 Setting up readline", None),
    ],
)
def test_a_builders_steps_are_told(line: str, step: tuple[int, int, str] | None) -> None:
    assert builder.step_of(line) == step


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "#6 1.2 E: Unable to locate package x\n#6 ERROR: exit 100\n",
            "E: Unable to locate package x",
        ),
        ("#7 2.0 error: No solution found\n#7 ERROR: exit 1\n", "error: No solution found"),
        (
            "#7 0.3 provision: torch: locked 1, installed None\n",
            "provision: torch: locked 1, installed None",
        ),
        ("", "the builder said nothing"),
    ],
)
def test_the_reason_is_the_tools_own_line(tmp_path: Path, text: str, why: str) -> None:
    log = tmp_path / "log"
    log.write_text(text, encoding="utf-8")
    assert builder.reason(log) == why


def test_an_image_pinned_with_tag_and_digest_is_pulled_by_digest() -> None:
    assert _by_digest("debian:bookworm-slim@sha256:ab") == "debian@sha256:ab"
    assert _by_digest("host:5000/a/b:1@sha256:ab") == "host:5000/a/b@sha256:ab"


@pytest.mark.parametrize("base", ["debian-12", "ubuntu-22.04"])
def test_only_an_archive_that_is_not_the_users_own_needs_its_key(tmp_path: Path, base: str) -> None:
    lock = load_base(base).lock
    assert lock is not None
    key = f"--keyring={folder() / 'bases' / 'ubuntu-22.04.asc'}"
    words = _mmdebstrap(lock.definition, tmp_path, AptSettings())
    assert (key in words) is (base == "ubuntu-22.04")
    own = AptSettings(sources="deb http://mirror.example/ubuntu jammy main\n")
    assert key not in _mmdebstrap(lock.definition, tmp_path, own)


def test_the_key_of_ubuntus_archive_is_the_one_its_first_line_names(tmp_path: Path) -> None:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    key = folder() / "bases" / "ubuntu-22.04.asc"
    command = ["gpg", "--homedir", str(tmp_path), "--show-keys", "--with-colons", str(key)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told = key.read_text(encoding="utf-8").splitlines()[0].rpartition(", ")[2].replace(" ", "")
    assert f"fpr:::::::::{told}:" in said


def test_labels_name_the_base_by_digest() -> None:
    base = ReadyBase(reference="x", origin="debian@sha256:ab", sources="")
    words = list(images._labels(load_toolchain("mnn"), base))
    assert "org.opencontainers.image.base.name=debian" in words
    assert "org.opencontainers.image.base.digest=sha256:ab" in words
    assert f"io.edgekiln.toolchain.lock=sha256:{load_toolchain('mnn').digest}" in words


def test_secrets_are_files_only_this_user_reads(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    pip = PipSettings(cert=str(tmp_path / "ca.pem"))
    settings = {"UV_INDEX": "https://u:p@i.example"}
    found = _secrets(tmp_path, tmp_path, settings, pip, AptSettings())
    assert found["ca"].read_text() == "a certificate"
    assert found["netrc"].read_text() == ""
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o600}


def test_a_bundle_too_large_for_a_secret_goes_with_the_context(tmp_path: Path) -> None:
    hidden, context = tmp_path / "secrets", tmp_path / "context"
    hidden.mkdir()
    context.mkdir()
    (tmp_path / "ca.pem").write_bytes(b"x" * 500_001)
    apt = AptSettings(options=(("Acquire::https::CaInfo", str(tmp_path / "ca.pem")),))
    found = _secrets(hidden, context, {}, PipSettings(), apt)
    assert found["ca"].stat().st_size == 0
    assert (context / "ca").stat().st_size == 500_001
    assert "/run/kiln/ca" in found["apt"].read_text()


@pytest.mark.parametrize(
    ("pip", "shared"),
    [
        (PipSettings(proxies={"HTTPS_PROXY": "http://127.0.0.1:8080"}), True),
        (PipSettings(proxies={"HTTPS_PROXY": "localhost:8080"}), True),
        (PipSettings(index_url="http://localhost:3141/simple"), True),
        (PipSettings(proxies={"HTTPS_PROXY": "http://proxy.example:8080"}), False),
        (PipSettings(), False),
    ],
)
def test_a_proxy_on_this_machine_is_reached_by_sharing_its_network(
    pip: PipSettings, shared: bool
) -> None:
    assert _on_this_machine(pip, AptSettings()) is shared


def test_places_are_not_asked_when_their_wheels_are_at_hand() -> None:
    toolchain = load_toolchain("mnn")
    at_hand = {wheel.file for wheel in toolchain.lock.wheels if wheel.local}
    assert "UV_INDEX" not in indexes(toolchain, at_hand, PipSettings())


def test_a_prefix_is_whole_only_with_its_marker_and_its_python() -> None:
    toolchain = load_toolchain("mnn")
    path = prefix_path(toolchain)
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python3").symlink_to("/usr/bin/env")
    assert not prefix_ready(toolchain)
    (path / "complete").touch()
    assert prefix_ready(toolchain)
    (path / "bin" / "python3").unlink()
    (path / "bin" / "python3").symlink_to("/no/longer/there")
    assert not prefix_ready(toolchain)


def test_other_machines_are_sent_to_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(EngineError) as caught:
        refuse_elsewhere()
    assert "--executor docker" in caught.value.remedy


def test_a_wheel_of_a_folder_leaves_what_one_of_an_index_leaves(
    provision: ModuleType, tmp_path: Path
) -> None:
    info = tmp_path / "lib" / "python3.11" / "site-packages" / "one-1.dist-info"
    info.mkdir(parents=True)
    (info / "uv_cache.json").write_text("{}")
    record = info / "RECORD"
    record.write_text("one.py,,\none-1.dist-info/uv_cache.json,,\none-1.dist-info/RECORD,,\n")
    record.chmod(0o755)
    provision._forget_sources(tmp_path)
    assert not (info / "uv_cache.json").exists()
    assert record.read_text() == "one.py,,\none-1.dist-info/RECORD,,\n"
    assert record.stat().st_mode & 0o777 == 0o755


def test_the_installer_tells_missing_extra_and_other_versions(provision: ModuleType) -> None:
    locked = [{"name": n, "version": "1"} for n in ("Same_Name", "gone", "other")]
    found = [("same-name", "1"), ("other", "2"), ("extra", "3")]
    there = [{"name": name, "version": version} for name, version in found]
    assert list(provision.differences(locked, there)) == [
        "extra: locked None, installed 3",
        "gone: locked 1, installed None",
        "other: locked 1, installed 2",
    ]


def test_the_installer_takes_no_setting_from_the_environment(provision: ModuleType) -> None:
    environ = {"UV_INDEX_URL": "x", "PIP_CERT": "x", "PYTHONPATH": "x", "PATH": "/bin"}
    assert provision._clean(environ) == {"PATH": "/bin"}


def test_the_installer_gives_every_file_one_moment(provision: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    (tmp_path / "link").symlink_to("/no/longer/there")
    provision._settle(tmp_path)
    for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "file", tmp_path / "link"):
        assert path.lstat().st_mtime == provision.EPOCH


def test_a_finished_image_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.test_engine import DOCKER, answering

    toolchain = load_toolchain("mnn")
    known = {**DOCKER, f"/images/{images.tag(toolchain)}/json": {"Id": "sha256:1"}}
    with answering(tmp_path / "d.sock", known) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        from edgekiln.engine import find_engine

        engine = find_engine()
        assert engine is not None
        # Nothing here can build: the engine answers with 404 to anything else.
        assert images.build(engine, toolchain, Silent()) == images.tag(toolchain)
