"""Kits come whole or not at all, from servers that cut, lie and change their minds."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from edgekiln import kits
from edgekiln.errors import (
    DigestError,
    DiskError,
    FetchError,
    LicenceError,
    ToolchainError,
    UsageError,
)
from edgekiln.home import home, project
from edgekiln.kits import Kit, firstuse, licences, making
from edgekiln.kits.definition import Archive, Source, read_kit
from edgekiln.progress import Silent
from tests.unit.kitmaking import Told, archive_kit, pinned, sha256, tarred, zipped
from tests.unit.servers import Site, serving

BODY = zipped({"ndk-1/bin/clang": b"c" * 300_000, "ndk-1/props": os.urandom(200_000)})
HOLDS = ("bin/clang", "props")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries, and no settings of the user's."""
    monkeypatch.setattr(making, "RETRIES", (0.0, 0.0))
    for name in ("EDGEKILN_VENDOR", "EDGEKILN_MIRRORS", "EDGEKILN_ACCEPT_LICENCES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site(files={"/ndk.zip": BODY})) as site:
        yield site


@pytest.fixture
def kit(site: Site) -> Kit:
    archive = pinned("ndk.zip", BODY, f"{site.url}/ndk.zip", size=len(BODY), strip=1)
    return archive_kit(archive, holds=HOLDS)


def first_use(site: Site, name: str = "ndk.zip") -> Kit:
    archive = Archive(file=name, places=(f"{site.url}/{name}",), trust="first-use", strip=1)
    return archive_kit(archive, holds=HOLDS)


def in_kits() -> list[str]:
    """What lies below home()/kits."""
    return sorted(p.name for p in (home() / "kits").glob("*")) if home().exists() else []


def test_a_kit_is_fetched_unpacked_and_then_left_alone(site: Site, kit: Kit) -> None:
    told = Told()
    assert not kits.is_ready(kit) and [part.file for part in kits.missing([kit])] == ["ndk.zip"]
    path = kits.ready(kit, told)
    assert path == kit.path == home() / "kits" / f"tools-{kit.digest[:12]}"
    assert (path / "bin/clang").read_bytes() == b"c" * 300_000
    assert kits.is_ready(kit) and not kits.missing([kit])
    assert {what for *_, what in told.updates} >= {"ndk.zip", "unpacking ndk.zip"}
    kits.ready(kit, Silent())
    assert len(site.asked) == 1
    assert not list((home() / "downloads/kits").glob("ndk.zip*"))  # what is unpacked may go


def test_a_broken_download_is_gone_on_with(site: Site, kit: Kit) -> None:
    site.cuts = [150_000]
    told = Told()
    kits.ready(kit, told)
    first, second = site.gets()
    assert first == "" and 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 150_000
    assert "trying again" in told.notes[0]


def test_wrong_bytes_are_refused_and_nothing_is_unpacked(site: Site, kit: Kit) -> None:
    site.files["/ndk.zip"] = BODY[:-1] + b"!"
    with pytest.raises(DigestError) as caught:
        kits.ready(kit, Silent())
    assert sha256(BODY) in caught.value.why
    assert in_kits() == [] and not kits.is_ready(kit)


def test_googles_sha1_is_what_counts_where_nothing_else_is_published(site: Site) -> None:
    sha1 = hashlib.sha1(BODY).hexdigest()
    archive = Archive(file="ndk.zip", places=(f"{site.url}/ndk.zip",), sha1=sha1, strip=1)
    (part,) = kits.parts([archive_kit(archive)])
    assert (part.trust, part.digest) == ("sha1", sha1)
    kits.ready(archive_kit(archive), Silent())
    wrong = dataclasses.replace(archive, sha1="0" * 40)
    with pytest.raises(DigestError):
        kits.ready(archive_kit(wrong, name="other"), Silent())


def test_places_are_tried_in_order_and_the_users_mirrors_before_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files |= {"/bad/ndk.zip": b"wrong", "/mirror/ndk.zip": BODY}
    places = ("http://127.0.0.1:9/ndk.zip", f"{site.url}/bad/ndk.zip", f"{site.url}/ndk.zip")
    told = Told()
    kits.ready(archive_kit(pinned("ndk.zip", BODY, *places, strip=1), name="one"), told)
    assert [path for _, path, _ in site.asked] == ["/bad/ndk.zip", "/ndk.zip"]
    assert len([note for note in told.notes if "trying again" not in note]) == 2
    monkeypatch.setenv("EDGEKILN_MIRRORS", f"{site.url}/mirror/")
    kits.ready(archive_kit(pinned("ndk.zip", BODY, *places, strip=1), name="two"), Silent())
    assert site.asked[-1][1] == "/mirror/ndk.zip"


def test_no_network_names_every_missing_file_and_what_to_do(tmp_path: Path) -> None:
    archives = [pinned(f"{n}.zip", BODY, f"http://127.0.0.1:9/{n}.zip") for n in "abc"]
    two = [archive_kit(*archives[:2], name="one"), archive_kit(archives[2], name="two")]
    with pytest.raises(FetchError, match=r"3 files could not be fetched: a.zip, b.zip, c.zip") as e:
        kits.ready_all(two, Silent())
    assert "--vendor-dir" in e.value.remedy and "toolchains fetch" in e.value.remedy
    assert in_kits() == []


class TestVendorFolder:
    """A folder is looked into first, and nothing in it is believed."""

    @pytest.fixture
    def vendor(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
        (tmp_path / "vendor").mkdir()
        return tmp_path / "vendor"

    def test_a_whole_one_needs_no_network(self, vendor: Path) -> None:
        (vendor / "ndk.zip").write_bytes(BODY)
        kit = archive_kit(pinned("ndk.zip", BODY, "http://127.0.0.1:9/ndk.zip", strip=1))
        assert kits.missing([kit]) == []
        kits.ready(kit, Silent())
        assert [p.name for p in vendor.iterdir()] == ["ndk.zip"]  # used where it lies
        assert not list((home() / "downloads/kits").glob("*.zip"))

    def test_one_that_may_only_be_read_is_enough(self, vendor: Path) -> None:
        (vendor / "ndk.zip").write_bytes(BODY)
        (vendor / "ndk.zip").chmod(0o444)
        vendor.chmod(0o555)
        try:
            kits.ready(archive_kit(pinned("ndk.zip", BODY, "http://127.0.0.1:9/x")), Silent())
        finally:
            vendor.chmod(0o755)

    def test_an_incomplete_one_names_what_it_lacks(self, vendor: Path) -> None:
        (vendor / "a.zip").write_bytes(BODY)
        archives = [pinned(f"{n}.zip", BODY, f"http://127.0.0.1:9/{n}.zip") for n in "abc"]
        kit = archive_kit(*archives)
        assert [part.file for part in kits.missing([kit])] == ["b.zip", "c.zip"]
        with pytest.raises(FetchError, match=r"2 files could not be fetched: b.zip, c.zip"):
            kits.ready(kit, Silent())

    def test_wrong_bytes_in_it_are_passed_over(self, vendor: Path, site: Site, kit: Kit) -> None:
        (vendor / "ndk.zip").write_bytes(b"other")
        assert [part.file for part in kits.missing([kit])] == ["ndk.zip"]
        told = Told()
        kits.ready(kit, told)
        assert str(vendor) in told.notes[0] and "another file" in told.notes[0]

    def test_its_list_holds_first_use_to_what_filled_it(self, vendor: Path, site: Site) -> None:
        (vendor / "ndk.zip").write_bytes(BODY)
        firstuse.list_in(vendor, {"ndk.zip": sha256(BODY), "x": "0" * 64})
        kit = first_use(site)
        site.files["/ndk.zip"] = zipped({"ndk-1/bin/clang": b"other", "ndk-1/props": b""})
        kits.ready(kit, Silent())
        assert site.asked == []
        assert firstuse.known("ndk.zip") and kit.settled

    def test_a_file_that_is_not_as_listed_is_not_taken(self, vendor: Path) -> None:
        (vendor / "ndk.zip").write_bytes(zipped({"ndk-1/evil": b"x"}))
        firstuse.list_in(vendor, {"ndk.zip": sha256(BODY)})
        archive = Archive(file="ndk.zip", places=("http://127.0.0.1:9/x",), trust="first-use")
        with pytest.raises(DigestError):
            kits.ready(archive_kit(archive), Silent())
        assert firstuse.known("ndk.zip") is None


class TestFirstUse:
    """What nobody publishes a digest of is held to what came first."""

    def test_the_first_download_is_written_down_and_held(self, site: Site) -> None:
        kit = first_use(site)
        assert not kit.settled and kits.parts([kit])[0].digest == ""
        before = kit.digest
        kits.ready(kit, Silent())
        known = firstuse.known("ndk.zip")
        assert known and (known.sha256, known.size) == (sha256(BODY), len(BODY))
        assert known.place == f"{site.url}/ndk.zip"
        assert kit.settled and kit.digest != before
        (part,) = kits.parts([kit])
        assert (part.trust, part.digest, part.size) == ("first-use", sha256(BODY), len(BODY))

    def test_a_change_upstream_is_refused_and_told(self, site: Site) -> None:
        kit = first_use(site)
        kits.ready(kit, Silent())
        shutil.rmtree(kit.path)
        site.files["/ndk.zip"] = zipped({"ndk-1/bin/clang": b"evil", "ndk-1/props": b""})
        with pytest.raises(DigestError, match="not the file that was first used here") as caught:
            kits.ready(kit, Silent())
        assert sha256(BODY)[:16] in caught.value.why
        assert "first-use.json" in caught.value.remedy
        assert not kits.is_ready(kit)

    def test_settling_fetches_so_that_the_digest_is_the_last_one(self, site: Site) -> None:
        kit = first_use(site)
        kits.settle([kit], Silent())
        settled = kit.digest
        assert kit.settled and not kits.is_ready(kit)
        kits.ready(kit, Silent())
        assert kit.digest == settled and len(site.asked) == 1

    def test_a_page_with_an_excuse_is_not_written_down(self, site: Site) -> None:
        site.files["/ndk.zip"] = b"<html>try again later</html>"
        kit = first_use(site)
        with pytest.raises(DigestError, match="damaged, or no archive"):
            kits.ready(kit, Silent())
        assert firstuse.known("ndk.zip") is None
        site.files["/ndk.zip"] = BODY
        kits.ready(kit, Silent())

    def test_a_damaged_record_is_told(self, site: Site) -> None:
        firstuse.write_json(firstuse.record_file(), {})
        firstuse.record_file().write_text("{")
        with pytest.raises(ToolchainError, match=r"first-use.json is damaged"):
            first_use(site).settled  # noqa: B018 - a property that reads the record


class TestLicences:
    """Asked for once, recorded, or given by option; never assumed."""

    @pytest.fixture
    def sdk(self, site: Site) -> Kit:
        archive = pinned("ndk.zip", BODY, f"{site.url}/ndk.zip", strip=1)
        return archive_kit(archive, licence="android-sdk")

    def terminal(self, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        monkeypatch.setattr(sys, "stderr", Terminal())

    def test_nothing_is_fetched_before_it_is_accepted(self, site: Site, sdk: Kit) -> None:
        with pytest.raises(LicenceError) as caught:
            kits.ready(sdk, Silent())
        assert "--accept-licence android-sdk" in caught.value.remedy
        assert "https://developer.android.com/studio/terms" in caught.value.why
        assert site.asked == [] and caught.value.exit_code == 17

    def test_the_option_is_enough_and_is_recorded(
        self, site: Site, sdk: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "android-sdk")
        kits.ready(sdk, Silent())
        monkeypatch.delenv("EDGEKILN_ACCEPT_LICENCES")
        entry = json.loads(licences.record_file().read_text())["android-sdk"]
        assert entry["how"] == "option" and licences.accepted("android-sdk")

    def test_without_a_terminal_nobody_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        with pytest.raises(LicenceError):
            licences.settle(["android-sdk"], whose="the NDK")

    @pytest.mark.parametrize(("answer", "yes"), [("y\n", True), ("Yes\n", True), ("\n", False)])
    def test_at_a_terminal_the_answer_counts(
        self, monkeypatch: pytest.MonkeyPatch, answer: str, yes: bool
    ) -> None:
        self.terminal(monkeypatch, answer)
        if yes:
            licences.settle(["android-sdk"], whose="the NDK")
            self.terminal(monkeypatch, "n\n")
            licences.settle(["android-sdk"], whose="the NDK")  # asked once
        else:
            with pytest.raises(LicenceError, match="has to be accepted") as caught:
                licences.settle(["android-sdk"], whose="the NDK")
            assert caught.value.why == "you did not accept it"
        assert licences.accepted("android-sdk") is yes

    def test_one_question_is_about_all_that_the_licence_covers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        covered = [kits.load_kit(name) for name in ("ndk-r27c", "gradle-8.5", "android-sdk")]
        self.terminal(monkeypatch, "n\ny\n")
        with pytest.raises(LicenceError, match=r"for ndk-r27c, android-sdk$"):
            licences.settle_for(covered)
        assert sys.stdin.read() == "y\n", "asked once only"
        licences.settle_for(covered[1:2])

    def test_one_licence_is_not_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "android-sdk")
        with pytest.raises(LicenceError, match="Preview"):
            licences.require(["android-sdk-preview"], whose="the NDK")

    def test_an_unknown_name_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "andriod-sdk")
        with pytest.raises(UsageError) as caught:
            licences.accepted("android-sdk")
        assert "android-sdk" in caught.value.remedy


def test_a_kit_that_lacks_what_it_should_hold_is_not_kept(site: Site, kit: Kit) -> None:
    wrong = Kit(dataclasses.replace(kit.definition, holds=("bin/gcc",)))
    with pytest.raises(ToolchainError, match="holds no bin/gcc"):
        kits.ready(wrong, Silent())
    assert in_kits() == []


def test_what_climbs_out_leaves_no_kit(site: Site) -> None:
    body = tarred({"t/a": b"x", "../../evil": b"x"})
    site.files["/t.tar.gz"] = body
    kit = archive_kit(pinned("t.tar.gz", body, f"{site.url}/t.tar.gz"))
    with pytest.raises(ToolchainError, match="outside of its folder"):
        kits.ready(kit, Silent())
    assert in_kits() == [] and not list(home().rglob("evil"))


def test_a_plain_file_is_put_there_and_may_be_run(site: Site) -> None:
    site.files["/tool-init"] = b"#!/bin/sh\n"
    archive = pinned("tool-init", b"#!/bin/sh\n", f"{site.url}/tool-init", into="bin")
    path = kits.ready(archive_kit(archive), Silent())
    assert (path / "bin/tool-init").stat().st_mode & 0o777 == 0o755


class Interrupted(Silent):
    """Stops the work in the middle of unpacking, as Ctrl-C does."""

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        if what.startswith("unpacking"):
            raise KeyboardInterrupt


def test_an_interrupted_unpack_leaves_nothing_under_the_kits_name(site: Site, kit: Kit) -> None:
    with pytest.raises(KeyboardInterrupt):
        kits.ready(kit, Interrupted())
    assert in_kits() == []
    kits.ready(kit, Silent())
    assert len(site.asked) == 1  # the download was kept


def test_what_a_killed_one_left_is_cleared_away(site: Site, kit: Kit) -> None:
    left = home() / "kits" / f".{kit.path.name}-killed" / "kit"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    kits.ready(kit, Silent())
    assert in_kits() == [kit.path.name, f"{kit.path.name}.json"]


def unpack_slowly(kit: Kit, notes: str) -> None:
    """In a process of its own: what it was told goes into a file."""
    told = Told()
    kits.ready(kit, told)
    done = [what for *_, what in told.updates if what.startswith("unpacking")]
    with Path(notes).open("a", encoding="utf-8") as file:
        file.write("unpacked\n" if done else "waited\n")


def test_two_at_once_unpack_once(site: Site, kit: Kit, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    spawn = multiprocessing.get_context("spawn")
    every = [spawn.Process(target=unpack_slowly, args=(kit, str(notes))) for _ in range(3)]
    for process in every:
        process.start()
    for process in every:
        process.join()
    assert [process.exitcode for process in every] == [0, 0, 0]
    assert sorted(notes.read_text().split()) == ["unpacked", "waited", "waited"]
    assert len(site.asked) == 1


def test_too_small_a_disk_is_told_before_the_first_byte(
    site: Site, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SimpleNamespace(total=1 << 20, used=0, free=len(BODY))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(DiskError, match=r"are needed at .*, 500\.2 kB are free") as caught:
        kits.ready(kit, Silent())
    assert kit.name in caught.value.why
    assert site.asked == []


def test_kits_that_nobody_asks_for_can_be_removed(kit: Kit) -> None:
    path = kits.ready(kit, Silent())
    own = kits.load_kit("ndk-r27c").path
    own.mkdir()
    assert making.unused() == [path]
    making.remove(path)
    assert in_kits() == [own.name]


def test_a_change_in_a_ready_kit_is_found(kit: Kit) -> None:
    path = kits.ready(kit, Silent())
    making.verify(kit)
    (path / "props").write_bytes(b"other")
    with pytest.raises(DigestError, match="not what was unpacked"):
        making.verify(kit)


def test_a_digest_is_of_content_and_place_not_of_origin_or_words(kit: Kit) -> None:
    (archive,) = kit.archives

    def digest(**more: object) -> str:
        changed = dataclasses.replace(archive, **more)  # type: ignore[arg-type]
        return archive_kit(changed, holds=HOLDS).digest

    assert digest(places=("elsewhere",), size=0) == kit.digest
    others = [digest(sha256="0" * 64), digest(strip=0), digest(into="x"), digest(only=("bin",))]
    assert len({kit.digest, *others}) == 5


@pytest.mark.parametrize("name", kits.list_kits())
def test_shipped_kits_are_whole(name: str) -> None:
    kit = kits.load_kit(name)
    assert kit.summary and kit.definition.holds and kit.version
    for archive in kit.archives:
        assert all(place.startswith("https://") for place in archive.places)
        assert all(place.rpartition("/")[2] == archive.file for place in archive.places)
    if "dl.google.com" in str(kit.archives):
        assert kit.licence.startswith("android-sdk")
    text = (project() / "toolchains/kits" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


def test_the_write_ups_ndk_is_there_beside_the_default() -> None:
    named = {name: kits.load_kit(name) for name in kits.list_kits() if name.startswith("ndk-")}
    assert named["ndk-r27-beta1"].version == "27.0.11718014"
    assert named["ndk-r27-beta1"].licence == "android-sdk-preview"
    assert named["ndk-r27c"].version == "27.2.12479018"
    assert {kit.family for kit in named.values()} == {"ndk"}


GOOD = {
    "name": "x",
    "family": "x",
    "summary": "s",
    "archives": [{"file": "x.zip", "places": ["https://h/x.zip"], "sha256": "a" * 64}],
}
COMMIT = {"repository": "https://h/x", "commit": "a" * 40}


def archive(**changes: object) -> dict[str, object]:
    return {**GOOD, "archives": [{**GOOD["archives"][0], **changes}]}  # type: ignore[dict-item]


def source(**changes: object) -> dict[str, object]:
    return {"name": "x", "family": "x", "summary": "s", "source": {**COMMIT, **changes}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({**GOOD, "licens": "x"}, "licens is not known"),
        ({**GOOD, "name": "y"}, "name is y"),
        ({**GOOD, "archives": []}, "either archives or a source"),
        ({**GOOD, "source": COMMIT}, "either archives or a source"),
        (archive(sha256=""), "names no digest"),
        (archive(sha1="b" * 40), "sha256 and sha1"),
        (archive(sha256="abc"), "sha256 of x.zip is 'abc'"),
        (archive(sha256="", trust="blind"), "trust is blind"),
        (archive(file="../x.zip"), "plain name"),
        (archive(places=[]), "needs a plain name and a place"),
        (archive(into="../elsewhere"), "not below the kit"),
        ({**GOOD, "holds": ["/etc/passwd"]}, "not below the kit"),
        (source(commit="main"), "commit is 'main'"),
        (source(commit=""), "no commit"),
        (source(submodules={"../x": COMMIT}), "not below the kit"),
        (source(submodules={"x": {**COMMIT, "commit": "v1"}}), "commit of x is 'v1'"),
    ],
)
def test_a_kits_yaml_is_read_strictly(tmp_path: Path, data: object, says: str) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ToolchainError) as caught:
        read_kit(tmp_path / "x.yaml")
    assert says in caught.value.what


def test_a_good_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(GOOD))
    assert read_kit(tmp_path / "x.yaml").archives[0].sha256 == "a" * 64
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(source()))
    assert isinstance(read_kit(tmp_path / "x.yaml").source, Source)


def test_an_unknown_kit_is_told_with_the_nearest() -> None:
    with pytest.raises(ToolchainError, match="no kit ndk-r27d") as caught:
        kits.load_kit("ndk-r27d")
    assert "ndk-r2" in caught.value.remedy
