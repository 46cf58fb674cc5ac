"""Images through a real registry: pushed and pulled, over TLS and lines that break, never wrong."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln.errors import DigestError, FetchError, ImageError, UsageError
from edgekiln.images import exports, registry, repository
from edgekiln.images.layout import Layout
from edgekiln.progress import Silent
from edgekiln.rootfs import unpack
from edgekiln.toolchain import Toolchain, load_toolchain
from tests.images import registry as real
from tests.images import tokens
from tests.unit import imagekit
from tests.unit.imagekit import Member, folder

USER, SECRET = "somebody", "a-word-that-nobody-guesses"
SIZE = 1 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short pauses, and a home and settings of the test's own."""
    monkeypatch.setattr(repository, "PAUSES", (0.01,) * 5)
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("EDGEKILN_REGISTRY", "EDGEKILN_VENDOR", "EDGEKILN_OFFLINE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def toolchain() -> Toolchain:
    return dataclasses.replace(load_toolchain("mnn"), installed=secrets.token_hex(32))


@pytest.fixture
def source(tmp_path: Path, toolchain: Toolchain) -> Layout:
    """An export of it: three layers of a megabyte that no zstd makes smaller."""
    return layout(tmp_path / "export", toolchain)


def layout(path: Path, toolchain: Toolchain, count: int = 3) -> Layout:
    layers = [
        [folder("opt"), Member(name=f"opt/{n}", body=secrets.token_bytes(SIZE))]
        for n in range(count)
    ]
    labels = {"io.edgekiln.toolchain.lock": f"sha256:{toolchain.installed}"}
    return imagekit.layout(path, layers, labels=labels)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[real.Registry]:
    with real.serving(tmp_path / "registry") as found:
        yield found


def push(toolchain: Toolchain, source: Layout, place: str) -> str:
    return registry.push(toolchain, source, place, Silent())


def pull(toolchain: Toolchain, place: str) -> Layout:
    return registry.pull(toolchain, place, Silent())


def uploads(running: real.Registry) -> int:
    """How many blobs were sent to it."""
    return sum(line.startswith("PUT ") and "/blobs/" in line for line in running.asked())


def test_what_was_pushed_is_pulled(
    toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    told = push(toolchain, source, running.place)
    assert told.endswith(f"/me/edgekiln:{registry.tag_of(toolchain)}")
    found = real.manifest(running, registry.tag_of(toolchain))
    assert found.headers["Docker-Content-Digest"] == f"sha256:{source.image().manifest.digest}"
    pulled = pull(toolchain, running.place)
    assert imagekit.blobs(pulled.path) == imagekit.blobs(source.path)
    assert pulled.image().manifest == source.image().manifest


def test_what_is_there_is_neither_sent_nor_fetched_again(
    tmp_path: Path, toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    push(toolchain, source, running.place)
    before = uploads(running)
    assert before == 4
    push(toolchain, source, running.place)
    assert uploads(running) == before
    pull(toolchain, running.place)
    asked = len([line for line in running.asked() if line.startswith("GET ") and "/blobs/" in line])
    pull(toolchain, running.place)
    again = [line for line in running.asked() if line.startswith("GET ") and "/blobs/" in line]
    assert len(again) == asked + 1  # the configuration, which says what it is


def test_a_pull_that_is_cut_goes_on_at_the_byte(
    toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    push(toolchain, source, running.place)
    with real.line_to(running.port, [SIZE // 2, *[SIZE // 8] * 9]) as line:
        pulled = pull(toolchain, f"http://127.0.0.1:{line.port}/me/edgekiln")
        assert not line.cuts
    assert pulled.image().manifest == source.image().manifest
    for blob in pulled.image().blobs:
        pulled.check(blob)
    # A cut loses no more than a buffer and what the line had taken and not given on, and ten of
    # them are not too often: each brought some on.
    assert line.received < 3 * SIZE + 10 * ((1 << 16) + real.PIECE) + (1 << 15)


def test_a_push_that_is_cut_sends_no_layer_twice_that_arrived(
    toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    with real.line_to(running.port, [SIZE // 2, SIZE // 2]) as line:
        push(toolchain, source, f"http://127.0.0.1:{line.port}/me/edgekiln")
        assert not line.cuts
    assert line.sent < 4 * SIZE + (1 << 18)  # two halves more than three layers
    assert pull(toolchain, running.place).image().manifest == source.image().manifest


def test_a_line_that_stays_broken_is_told_and_nothing_is_lost(
    toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    push(toolchain, source, running.place)
    with real.line_to(running.port, [SIZE // 2, *[100] * 40]) as line:
        place = f"http://127.0.0.1:{line.port}/me/edgekiln"
        with pytest.raises(FetchError, match="cut off too often") as caught:
            pull(toolchain, place)
        assert "run it again" in caught.value.remedy
        begun = sum(path.stat().st_size for path in parts())
        assert begun
        with pytest.raises(ImageError, match="is not on this machine"):
            unpack.ready(toolchain, Silent())  # half an export is none
        line.cuts.clear()
        before = line.received
        pull(toolchain, place)
    assert line.received - before < 3 * SIZE - begun + (1 << 15)
    assert not list(parts())


def parts() -> list[Path]:
    return list(exports.folder().rglob("*.part"))


def test_other_bytes_are_refused_and_not_kept(
    toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    push(toolchain, source, running.place)
    layer = source.image().layers[1]
    path = running.blob(layer.digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DigestError, match=layer.digest) as caught:
        pull(toolchain, running.place)
    assert "gave other bytes" in caught.value.why
    assert layer.digest not in {path.name for path in exports.folder().rglob("*")}
    assert not parts()
    path.write_bytes(whole)
    assert pull(toolchain, running.place).image().manifest == source.image().manifest


def test_another_image_is_refused_before_it_is_fetched(
    tmp_path: Path, toolchain: Toolchain, source: Layout, running: real.Registry
) -> None:
    other = dataclasses.replace(toolchain, installed=toolchain.installed[:12] + "0" * 52)
    assert registry.tag_of(other) == registry.tag_of(toolchain)
    push(toolchain, source, running.place)
    with pytest.raises(ImageError, match="has another image"):
        pull(other, running.place)
    assert not any(f"sha256:{b.digest}" in line and line.startswith("GET")
                   for b in source.image().layers for line in running.asked())  # fmt: skip
    nobody = dataclasses.replace(toolchain, installed=secrets.token_hex(32))
    with pytest.raises(ImageError, match=f"has no {registry.tag_of(nobody)}"):
        pull(nobody, running.place)
    with pytest.raises(ImageError, match="has another image"):
        push(nobody, source, running.place)


def test_a_certificate_must_be_trusted(
    tmp_path: Path, toolchain: Toolchain, source: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = real.made_certificate(tmp_path / "tls")
    with real.serving(tmp_path / "registry", certificate=pair) as running:
        assert running.place.startswith("https://")
        with pytest.raises(FetchError, match="could not be reached") as caught:
            push(toolchain, source, running.place)
        assert "REQUESTS_CA_BUNDLE" in caught.value.remedy
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pair[0]))
        push(toolchain, source, running.place)
        with real.line_to(running.port, [SIZE // 2]) as line:
            pulled = pull(toolchain, f"https://127.0.0.1:{line.port}/me/edgekiln")
            assert not line.cuts
    assert pulled.image().manifest == source.image().manifest


@pytest.mark.parametrize("how", ["docker", "netrc"])
def test_passwords_are_those_of_docker_or_netrc(
    tmp_path: Path, toolchain: Toolchain, source: Layout, how: str
) -> None:
    with real.serving(tmp_path / "registry", users={USER: SECRET}) as running:
        with pytest.raises(FetchError, match="does not let this user in") as caught:
            push(toolchain, source, running.place)
        assert "docker login" in caught.value.remedy
        host = running.place.partition("//")[2].partition("/")[0]
        if how == "docker":
            log_in(tmp_path, host)
        else:
            text = f"machine 127.0.0.1 login {USER} password {SECRET}\n"
            Path(os.environ["NETRC"]).write_text(text)
        push(toolchain, source, running.place)
        pulled = pull(toolchain, running.place)
        assert SECRET not in running.log.read_text()
    assert pulled.image().manifest == source.image().manifest
    assert not any(SECRET.encode() in each.read_bytes() for each in files(tmp_path / "home"))


def log_in(tmp_path: Path, host: str) -> None:
    """What `docker login` leaves behind where it has no keychain."""
    word = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    (tmp_path / "docker").mkdir(exist_ok=True)
    text = json.dumps({"auths": {host: {"auth": word}}})
    (tmp_path / "docker/config.json").write_text(text)


def test_tokens_are_fetched_for_what_is_done(
    tmp_path: Path, toolchain: Toolchain, source: Layout
) -> None:
    pair = real.made_certificate(tmp_path / "signing")
    with (
        tokens.serving(USER, SECRET, pair) as server,
        real.serving(tmp_path / "registry", settings=server.settings()) as running,
    ):
        with pytest.raises(FetchError, match="does not let this user in"):
            push(toolchain, source, running.place)
        log_in(tmp_path, f"127.0.0.1:{running.port}")
        push(toolchain, source, running.place)
        with real.line_to(running.port, [SIZE // 2]) as line:
            log_in(tmp_path, f"127.0.0.1:{line.port}")
            pulled = pull(toolchain, f"http://127.0.0.1:{line.port}/me/edgekiln")
            assert not line.cuts
        assert pulled.image().manifest == source.image().manifest
        # The registry names what it wants in any order.
        asked = {frozenset(scope.rpartition(":")[2].split(",")) for scope in server.asked}
        assert asked == {frozenset({"pull"}), frozenset({"pull", "push"})}
        assert all(scope.startswith("repository:me/edgekiln:") for scope in server.asked)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_machine_without_an_engine_has_it_as_a_folder(
    tmp_path: Path,
    toolchain: Toolchain,
    source: Layout,
    running: real.Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push(toolchain, source, running.place)
    monkeypatch.setenv("EDGEKILN_REGISTRY", running.place)
    monkeypatch.setenv("EDGEKILN_OFFLINE", "1")
    with pytest.raises(FetchError):
        unpack.ready(toolchain, Silent())
    monkeypatch.delenv("EDGEKILN_OFFLINE")
    root = unpack.ready(toolchain, Silent())
    assert {path.name for path in (root / "opt").iterdir()} == {"0", "1", "2"}
    assert not files(exports.folder() / exports.export_name(toolchain))
    assert unpack.ready(toolchain, Silent()) == root


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x/y",
        "host.example/me:tag",
        "me@sha256:0",
        "127.0.0.1",
        "host.example:99999/me",
        "host.example/Me",
        "a b/c",
        "me:secret@host.example/me",
    ],
)
def test_a_repository_is_named_without_a_tag(text: str) -> None:
    with pytest.raises(UsageError, match="no repository"):
        repository.Repository(text)


def test_nobody_listening_is_told(toolchain: Toolchain) -> None:
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        pull(toolchain, f"http://127.0.0.1:{real.free_port()}/me/edgekiln")
    assert "name and port" in caught.value.remedy


def test_a_registry_without_https_is_told_as_that(
    toolchain: Toolchain, running: real.Registry
) -> None:
    with pytest.raises(FetchError) as caught:
        pull(toolchain, f"https://{running.place.rpartition('://')[2]}")
    assert "no HTTPS" in caught.value.why
