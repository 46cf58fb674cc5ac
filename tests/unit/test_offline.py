"""Packages of the distribution by digest, and what is said when nobody may be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln import offline
from edgekiln.errors import DigestError, FetchError, KilnError, UsageError
from edgekiln.fetch import fetch
from edgekiln.images import exports
from edgekiln.kits import absent, ownpackages, vendordebs
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from edgekiln.toolchain.debs import file_name, find_debs, names_of
from edgekiln.toolchain.lock import Deb
from edgekiln.toolchain.places import answering
from edgekiln.toolchain.swapped import swapped
from edgekiln.transfer import Pin
from edgekiln.user.aptconf import SNAPSHOT, SNAPSHOT_URL, apt_settings
from edgekiln.user.pipconf import PipSettings
from tests.unit.servers import Handler, Site, serving

BODY = b"!<arch>\n a package"
DEB = Deb(name="bsdutils", version="1:2.38.1-5", sha256=hashlib.sha256(BODY).hexdigest())
AS_APT, AS_POOL = "bsdutils_1%3a2.38.1-5_amd64.deb", "bsdutils_2.38.1-5_amd64.deb"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be asked, and there is no vendor folder."""
    monkeypatch.setenv(offline.VARIABLE, "1")
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    """A server with one file."""
    with serving(Site(files={"/tool.zip": BODY}), Handler) as site:
        yield site


@pytest.mark.parametrize("name", [AS_APT, AS_POOL])
def test_a_package_is_found_as_apt_or_as_an_archive_names_it(tmp_path: Path, name: str) -> None:
    assert name in names_of(DEB)
    (tmp_path / name).write_bytes(BODY)
    found = find_debs([DEB], [tmp_path])
    assert found.here == {DEB: tmp_path / name} and not found.wrong
    assert file_name(DEB, tmp_path / name) == AS_APT


def test_other_bytes_are_passed_over_while_the_next_folder_has_the_right_ones(
    tmp_path: Path,
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    for folder, body in ((bad, BODY + b"?"), (good, BODY)):
        folder.mkdir()
        (folder / AS_APT).write_bytes(body)
    assert find_debs([DEB], [bad, good]).here == {DEB: good / AS_APT}
    found = find_debs([DEB], [bad])
    with pytest.raises(DigestError) as caught:
        found.refuse([DEB])
    wrong = hashlib.sha256(BODY + b"?").hexdigest()
    assert wrong in caught.value.why and DEB.sha256 in caught.value.why
    assert str(bad / AS_APT) in caught.value.why
    found.refuse([replace(DEB, name="another")])


def test_a_package_of_another_version_is_not_taken_for_the_locked_one(tmp_path: Path) -> None:
    (tmp_path / "bsdutils_1%3a2.38.1-6_amd64.deb").write_bytes(BODY)
    assert find_debs([DEB], [tmp_path]).here == {}


def test_two_versions_of_one_package_are_both_brought(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(b"later").hexdigest()
    later = replace(DEB, version="1:2.38.1-6", sha256=sha256)
    mirror, vendor = tmp_path / "mirror", tmp_path / "v"
    for folder in (mirror, vendor):
        folder.mkdir()
    (mirror / AS_APT).write_bytes(BODY)
    (mirror / names_of(later)[0]).write_bytes(b"later")
    monkeypatch.setenv("EDGEKILN_MIRRORS", str(mirror))
    failures: list[tuple[str, KilnError]] = []
    base = load_toolchain("qnn").base
    made = vendordebs.fill(base, [DEB, later], vendor, Silent(), failures)
    assert made == [vendor / AS_APT, vendor / names_of(later)[0]]
    assert {path.name for path in vendor.iterdir()} == {AS_APT, names_of(later)[0]}
    assert failures == []


def test_what_apt_install_refuses_is_told_with_both_digests_and_the_place(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    line = f"apt-install: wrong bsdutils 1:2.38.1-5 {'b' * 64} {'a' * 64} http://mirror/debian"
    log.write_text(f"#6 1.2 Fetched 3 kB\n#6 1.3 {line}\n#6 ERROR: exit code 1\n")
    told = swapped(log)
    assert isinstance(told, DigestError) and "bsdutils 1:2.38.1-5" in told.what
    assert "a" * 64 in told.why and "b" * 64 in told.why and "http://mirror/debian" in told.why


def test_dropped_versions_are_told_only_where_nothing_else_will_do(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    gone = [
        f"#6 1 apt-install: gone one 1-1 {'a' * 64} http://mirror/debian 1-2 {'b' * 64}",
        f"#6 1 apt-install: gone two 7 {'c' * 64}",
    ]
    log.write_text("\n".join([*gone, "#6 2 apt-install: taking what the release has now"]))
    assert swapped(log) is None
    log.write_text("\n".join([*gone, "#6 2 apt-install: the locked versions cannot be installed"]))
    told = swapped(log)
    assert isinstance(told, FetchError)
    assert told.what == "http://mirror/debian no longer has one 1-1, two 7"
    assert "1-2" in told.why and "a" * 64 in told.why and "b" * 64 in told.why


def test_a_file_is_named_with_digest_and_place_and_nobody_is_asked(
    alone: None, site: Site, tmp_path: Path
) -> None:
    place, sha256 = f"{site.url}/tool.zip", hashlib.sha256(BODY).hexdigest()
    with pytest.raises(FetchError) as caught:
        fetch([place], tmp_path / "tool.zip", pin=Pin(sha256=sha256))
    assert "tool.zip is not here" in caught.value.what
    assert sha256 in caught.value.why and place in caught.value.why
    assert answering([site.url], PipSettings()) == []
    assert site.asked == []
    (tmp_path / "near").mkdir()
    (tmp_path / "near/tool.zip").write_bytes(BODY)
    got = fetch([place, str(tmp_path / "near")], tmp_path / "tool.zip", pin=Pin(sha256=sha256))
    assert got.path.read_bytes() == BODY and site.asked == []


def test_an_export_at_hand_is_no_prefix(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path))
    toolchain = load_toolchain("tvm")
    export = exports.folder() / exports.export_name(toolchain)
    export.mkdir(parents=True)
    (export / "index.json").write_text("{}")
    assert exports.find(toolchain)
    with pytest.raises(FetchError) as caught:
        absent.refuse([toolchain], None)
    assert toolchain.lock.uv.file in caught.value.why


@pytest.mark.parametrize("told", ["1", "true", "Yes", "on"])
def test_the_variable_has_the_usual_words(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(offline.VARIABLE, told)
    assert offline.enabled()
    monkeypatch.setenv(offline.VARIABLE, "0")
    assert not offline.enabled()


def test_a_snapshot_takes_the_place_of_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SNAPSHOT, "20261101T000000Z")
    monkeypatch.setenv(SNAPSHOT_URL, "http://kept.example/{archive}/{date}/")
    lines = apt_settings("debian", "bookworm", {}, None).sources.splitlines()
    kept = "http://kept.example/{}/20261101T000000Z/"
    assert lines == [
        f"deb [check-valid-until=no] {kept.format('debian')} bookworm main",
        f"deb [check-valid-until=no] {kept.format('debian')} bookworm-updates main",
        f"deb [check-valid-until=no] {kept.format('debian-security')} bookworm-security main",
    ]
    ubuntu = apt_settings("ubuntu", "jammy", {}, None).sources
    assert ubuntu.count(kept.format("ubuntu")) == 3 and "jammy-security main universe" in ubuntu


def test_edgekilns_own_packages_are_those_of_the_python_that_is_named() -> None:
    old, new = (
        {each.requirement for each in ownpackages.pinned(ownpackages._environment(python))}
        for python in ("3.10", "3.12")
    )
    assert any(line.startswith("exceptiongroup==") for line in old - new)
    assert not any(line.startswith(("pywin32", "colorama")) for line in old | new)
    assert {line.partition("==")[0] for line in new} <= {line.partition("==")[0] for line in old}


@pytest.mark.parametrize("python", ["3.9", "2.7", "three"])
def test_a_python_that_edgekiln_does_not_run_on_is_refused(python: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not run on that"):
        ownpackages.bring(tmp_path, (python,), Silent())
