"""Images and bundles out of a filled folder with no way out; packages that are not the locked ones.

The network is taken away by the kernel: the commands run in a network namespace of their own, in
which not even the loopback device is up. The engine is reached through its socket, and is told to
build without a network.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from edgekiln import images
from edgekiln.calls import call
from edgekiln.engine import Engine
from edgekiln.errors import DigestError, FetchError, KilnError, UsageError
from edgekiln.home import project
from edgekiln.images import vendoredbase
from edgekiln.images.base import ensure_base, once_more
from edgekiln.kits import ownpackages, vendordebs
from edgekiln.prefix import build_prefix
from edgekiln.progress import Silent
from edgekiln.toolchain import Toolchain, load_toolchain
from edgekiln.toolchain.lock import Deb
from edgekiln.user import aptconf
from tests.boxes import supplies
from tests.builds.kit import LENIENT
from tests.builds.test_qnn_build import WORDS
from tests.builds.tinyllm import MAKE_MODEL
from tests.conftest import USERS_HOME
from tests.images.content import called

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OPTIONS = {"mnn": LENIENT, "qnn": WORDS}


@pytest.fixture(scope="module")
def vendor() -> Path:
    """A folder with all that mnn and qnn are made of; kept, so filled once."""
    folder = supplies.fill(USERS_HOME / "tests" / "vendor", ("mnn", "qnn"))
    ownpackages.bring(folder, (), Silent())
    return folder


def no_way_out() -> list[str]:
    """The words before a command that take every network from it."""
    for words in (["unshare", "--net"], ["unshare", "--net", "--map-root-user"]):
        if call([*words, "true"]).returncode == 0:
            return words
    pytest.skip("this user can make no network namespace")


@dataclass(frozen=True, kw_only=True)
class Island:
    """A checkout of its own kind (its images have names of their own) on a machine cut off."""

    checkout: Path
    home: Path

    def kiln(self, vendor: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of that checkout, set up by itself, with nobody to ask."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "HF_"))}
        told = {
            "EDGEKILN_HOME": str(self.home),
            "EDGEKILN_VENDOR": str(vendor),
            "EDGEKILN_OFFLINE": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "KILN_PYTHON": sys.executable,
        }
        command = [*no_way_out(), str(self.checkout / "kiln"), *words]
        return subprocess.run(
            command, env={**kept, **told}, capture_output=True, text=True, check=False
        )


def tags_of(checkout: Path) -> list[str]:
    """What a checkout's own images are called: nobody else's have these names."""
    program = (
        "from edgekiln import images; from edgekiln.toolchain import load_toolchain\n"
        f"for name in {list(OPTIONS)}: print(images.tag(load_toolchain(name)))"
    )
    env = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    done = call([sys.executable, "-c", program], env=env)
    assert done.returncode == 0, done.stderr
    ours = {images.tag(load_toolchain(name)) for name in OPTIONS}
    tags = done.stdout.split()
    assert not ours & set(tags)
    return tags


@pytest.fixture
def land(tmp_path: Path, engine: Engine) -> Iterator[Callable[[str], Island]]:
    """Makes islands; what they built is taken from the engine afterwards."""
    mark = secrets.token_hex(8)
    base = f"edgekiln/base-debian-12:{load_toolchain('mnn').base.digest[:12]}"
    kept = engine.image(base)
    tags: list[str] = []

    def make(name: str) -> Island:
        checkout = tmp_path / name
        listed = call(["git", "-C", str(project()), "ls-files", "--cached"]).stdout.splitlines()
        for path in (project() / line for line in listed):
            if path.is_file():
                target = checkout / path.relative_to(project())
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
        with (checkout / "images" / "Dockerfile").open("a", encoding="utf-8") as file:
            file.write(f"# {mark}\n")
        tags.extend(tags_of(checkout))
        return Island(checkout=checkout, home=tmp_path / f"{name}-home")

    yield make
    for tag in tags:
        if engine.image(tag):
            images.remove(engine, tag)
    made = engine.image(base)
    if kept and made and made["Id"] != kept["Id"]:
        called(engine, ["tag", kept["Id"], base])
        called(engine, ["rmi", made["Id"]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers."""
    place = tmp_path_factory.mktemp("model") / "tiny-llama"
    python = build_prefix(load_toolchain("mnn"), Silent())
    assert call([str(python), "-c", MAKE_MODEL, "llama", str(place)]).returncode == 0
    return place


def test_images_and_bundles_come_out_of_a_folder_and_an_empty_home(
    land: Callable[[str], Island], vendor: Path, model: Path
) -> None:
    island = land("island")
    for backend, options in OPTIONS.items():
        built = island.kiln(vendor, "images", "build", backend)
        assert built.returncode == 0, built.stderr
        words = ["--backend", backend, "--model", str(model), *options]
        place = island.home.parent / f"bundle-{backend}"
        done = island.kiln(
            vendor, "build", *words, "--executor", "docker", "--out", str(place), "--offline"
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((place / "manifest.json").read_bytes())["drift"] == []


def test_what_is_missing_is_named_all_at_once_with_its_digest(
    land: Callable[[str], Island], vendor: Path, tmp_path: Path
) -> None:
    lock = load_toolchain("qnn").lock
    wheel = next(each for each in lock.wheels if each.name == "onnx")
    deb = next(each for each in lock.debs if each.name == "libexpat1")
    poor = linked(vendor, tmp_path / "poor")
    for path in (poor / wheel.file, *poor.glob("libexpat1_*.deb")):
        path.unlink()
    island = land("poor-island")
    done = island.kiln(poor, "images", "build", "qnn")
    assert done.returncode == FetchError.exit_code
    assert "2 files are not here" in done.stderr
    assert f"{wheel.file} (sha256:{wheel.sha256}, from " in done.stderr
    assert f"libexpat1 {deb.version} (sha256:{deb.sha256}, from " in done.stderr
    assert "kiln toolchains fetch qnn --to DIR" in done.stderr

    (poor / wheel.file).write_bytes((vendor / wheel.file).read_bytes())
    wrong = poor / f"libexpat1_{deb.version}_amd64.deb"
    wrong.write_bytes(next(vendor.glob("libexpat1_*.deb")).read_bytes()[:-1] + b"?")
    done = island.kiln(poor, "images", "build", "qnn")
    assert done.returncode == DigestError.exit_code
    assert f"the package libexpat1 {deb.version} is not the one that was locked" in done.stderr
    assert deb.sha256 in done.stderr and str(wrong) in done.stderr


def linked(folder: Path, target: Path) -> Path:
    """A second name for every file of a folder."""
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (target / path.name).symlink_to(path)
    return target


def test_a_saved_base_is_loaded_where_none_can_be_made(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_toolchain("qnn").base
    ready = ensure_base(engine, base, Silent(), frozen=False)
    saved, note = vendoredbase.save(engine, base, tmp_path, Silent())
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path))
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEKILN_OFFLINE", "1")
    # As on a system without mmdebstrap.
    monkeypatch.setattr(vendoredbase, "_can_make", lambda: False)
    assert ensure_base(engine, base, Silent(), frozen=True) == ready
    # And under the name that two builds to compare give it.
    again = f"edgekiln/base-debian-12:test-{secrets.token_hex(4)}"
    try:
        assert once_more(engine, base, again, Silent()).origin == ready.origin
        assert engine.image(again)
    finally:
        images.run(engine, ["rmi", again], check=False)

    shutil.rmtree(tmp_path / "home")
    note.write_text(note.read_text().replace("bookworm", "trixie"))
    with pytest.raises(DigestError, match="is damaged"):
        ensure_base(engine, base, Silent(), frozen=True)
    saved.unlink()
    with pytest.raises(FetchError, match="the base debian-12 is not here"):
        ensure_base(engine, base, Silent(), frozen=True)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Toolchain]:
    """qnn with one package locked otherwise; nothing of it lies on this machine."""
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)
    monkeypatch.setattr("edgekiln.toolchain.debs.looked_into", list)
    toolchain = load_toolchain("qnn")

    def make(**changes: Any) -> Toolchain:
        def changed(deb: Deb) -> Deb:
            return dataclasses.replace(deb, **changes) if deb.name == "libexpat1" else deb

        debs = tuple(map(changed, toolchain.lock.debs))
        lock = dataclasses.replace(toolchain.lock, debs=debs)
        return dataclasses.replace(toolchain, lock=lock, installed=secrets.token_hex(32))

    return make


def made(engine: Engine, toolchain: Toolchain, *, frozen: bool) -> None:
    """Build an image of it; whatever came about is taken away again."""
    ready = ensure_base(engine, toolchain.base, Silent(), frozen=False)
    name = f"edgekiln/qnn:trial-{secrets.token_hex(4)}"
    try:
        images.make(engine, toolchain, ready, name, Silent(), frozen=frozen, fresh=False)
    finally:
        images.run(engine, ["rmi", name], check=False)


def test_a_package_of_other_bytes_is_refused_frozen_or_not(
    engine: Engine, other: Callable[..., Toolchain]
) -> None:
    locked = next(d for d in load_toolchain("qnn").lock.debs if d.name == "libexpat1")
    with pytest.raises(DigestError) as caught:
        made(engine, other(sha256="0" * 64), frozen=False)
    assert f"the package libexpat1 {locked.version} is not" in caught.value.what
    assert locked.sha256 in caught.value.why and "0" * 64 in caught.value.why
    assert "://" in caught.value.why, "where it came from"


def test_a_version_that_the_archive_has_dropped_is_told_as_that(
    engine: Engine, other: Callable[..., Toolchain]
) -> None:
    now = next(d for d in load_toolchain("qnn").lock.debs if d.name == "libexpat1")
    with pytest.raises(FetchError) as caught:
        made(engine, other(version="0.1-1"), frozen=True)
    assert "no longer has libexpat1 0.1-1" in caught.value.what
    assert now.version in caught.value.why and now.sha256 in caught.value.why
    assert "EDGEKILN_APT_SNAPSHOT" in caught.value.remedy


def test_a_folder_is_filled_with_what_there_is_and_the_rest_is_named(tmp_path: Path) -> None:
    toolchain = load_toolchain("qnn")
    here = next(deb for deb in toolchain.lock.debs if deb.name == "media-types")
    gone = dataclasses.replace(here, name="libexpat1", version="0.1-1")
    failures: list[tuple[str, KilnError]] = []
    made = vendordebs.fill(toolchain.base, [here, gone], tmp_path, Silent(), failures)
    assert [path.name for path in made] == [f"media-types_{here.version}_all.deb"]
    assert [name for name, _ in failures] == ["libexpat1 0.1-1"]
    told = failures[0][1]
    assert "did not give libexpat1 0.1-1" in told.what and gone.sha256 in told.why
    assert "the archive has " in told.why, "what there is in its place"


@dataclass(frozen=True)
class Snapshots:
    """A keeper of snapshots on this machine: one date, which is what the mirror has today."""

    url: str
    asked: list[str]


@pytest.fixture
def snapshots() -> Iterator[Snapshots]:
    """It sends whoever asks for the date on to this machine's own mirror."""
    form = ["apt-get", "indextargets", "--format", "$(CREATED_BY) $(REPO_URI) $(RELEASE)"]
    rows = [line.split() for line in call(form).stdout.splitlines()]
    suites = {row[2]: row[1] for row in rows if len(row) == 3 and row[0] == "Packages"}
    archives = {"debian": "bookworm", "debian-security": "bookworm-security"}
    if not set(archives.values()) <= suites.keys():
        pytest.skip("this machine's apt has no sources of Debian 12")
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            _, archive, date, rest = self.path.split("/", 3)
            there = date == "20261101T000000Z" and archive in archives
            self.send_response(302 if there else 404)
            if there:
                self.send_header("Location", suites[archives[archive]] + rest)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield Snapshots(f"http://127.0.0.1:{server.server_port}", asked)
    server.shutdown()
    server.server_close()


def test_packages_come_from_a_snapshot_where_one_is_asked_for(
    engine: Engine,
    other: Callable[..., Toolchain],
    snapshots: Snapshots,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(aptconf.SNAPSHOT, "20261101T000000Z")
    monkeypatch.setenv(aptconf.SNAPSHOT_URL, f"{snapshots.url}/{{archive}}/{{date}}/")
    with pytest.raises(DigestError) as caught:  # so that no image comes about
        made(engine, other(sha256="0" * 64), frozen=True)
    assert snapshots.url in caught.value.why
    debs = [path for path in snapshots.asked if path.endswith(".deb")]
    assert any("/libexpat1_" in path for path in debs)
    assert all("/20261101T000000Z/" in path for path in snapshots.asked)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({aptconf.SNAPSHOT: "yesterday"}, "is no date"),
        ({aptconf.SNAPSHOT: "20261101T000000Z"}, "where snapshots are kept is not"),
    ],
)
def test_half_a_snapshot_is_refused(
    told: Mapping[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(aptconf.SNAPSHOT_URL, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        aptconf.snapshot_asked()
