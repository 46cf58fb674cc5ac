"""What upstreams say of pinned things: real servers, registries, indexes and repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln.kits.gitsource import Repository
from edgekiln.toolchain.lock import Wheel
from edgekiln.transfer import Pin
from edgekiln.upstream import CHANGED, GONE, NOT_REACHED, OK, Answer, verdict, web
from edgekiln.upstream.commits import ask_commit
from edgekiln.upstream.index import Index, ask_wheel, indexes
from edgekiln.upstream.web import ask_file, ask_image, parse_reference
from edgekiln.user.pipconf import PipSettings
from tests.unit.kitmaking import Repo
from tests.unit.servers import Handler, Site, serving

BODY = b"an archive's bytes" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
NOBODY_THERE = "http://127.0.0.1:9"  # the discard port: nobody listens
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PAUSE", 0.0)
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site(files={"/a.zip": BODY})) as site:
        yield site


def asked(site: Site, path: str = "/a.zip", **pin: str | int) -> tuple[str, str]:
    told = ask_file(site.url + path, Pin(**pin), "a.zip")  # type: ignore[arg-type]
    return told.state, told.why


def test_a_file_of_the_right_size_is_there_and_is_not_downloaded(site: Site) -> None:
    assert asked(site, size=len(BODY), sha256=SHA256) == (OK, "")
    assert [method for method, *_ in site.asked] == ["HEAD"]


def test_a_file_of_another_size_has_changed(site: Site) -> None:
    assert asked(site, size=7) == (CHANGED, f"{len(BODY)} bytes, pinned are 7")


def test_a_file_without_a_pinned_size_says_that_none_was_compared(site: Site) -> None:
    assert asked(site) == (OK, "no size is pinned")


def test_a_file_that_is_not_there_is_gone(site: Site) -> None:
    assert asked(site, "/b.zip") == (GONE, "the server says 404 Not Found")


def test_a_server_that_nobody_answers_for_is_not_reached() -> None:
    told = ask_file(f"{NOBODY_THERE}/a.zip", Pin(size=1), "a.zip")
    assert (told.state, "refused" in told.why) == (NOT_REACHED, True)


@pytest.mark.parametrize("status", [401, 403, 500, 503, 429])
def test_a_server_that_will_not_say_is_not_taken_for_one_that_has_none(
    site: Site, status: int
) -> None:
    site.statuses = [status] * 4
    state, why = asked(site, size=len(BODY))
    assert (state, str(status) in why) == (NOT_REACHED, True)


def test_a_busy_server_is_asked_once_more(site: Site) -> None:
    site.statuses = [503]
    assert asked(site, size=len(BODY)) == (OK, "")


def test_a_server_that_refuses_head_is_asked_for_the_first_byte(site: Site) -> None:
    class NoHead(Handler):
        def do_HEAD(self) -> None:  # noqa: N802
            self.reply(405, b"")

        def do_GET(self) -> None:  # noqa: N802
            spans.append(self.headers.get("Range", ""))
            told = {"Content-Range": f"bytes 0-0/{len(BODY)}"}
            self.reply(206, BODY[:1], **told)

    spans: list[str] = []
    with serving(Site(), NoHead) as other:
        assert asked(other, size=len(BODY)) == (OK, "")
        assert asked(other, size=len(BODY) + 1)[0] == CHANGED
    assert spans == ["bytes=0-0"] * 2


@pytest.mark.parametrize(
    "header", ["X-Checksum-Sha256", "X-Checksum-Sha1", "Repr-Digest", "Digest"]
)
@pytest.mark.parametrize("other", [False, True])
def test_a_digest_that_a_server_tells_is_compared(header: str, other: bool) -> None:
    now = b"other" if other else BODY
    raw = hashlib.sha256(now)
    told = {
        "X-Checksum-Sha256": raw.hexdigest().upper(),
        "X-Checksum-Sha1": hashlib.sha1(now).hexdigest(),
        "Repr-Digest": f"sha-256=:{base64.b64encode(raw.digest()).decode()}:",
        "Digest": f"SHA-256={base64.b64encode(raw.digest()).decode()}",
    }[header]

    class Telling(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.reply(200, BODY, **{header: told})

    with serving(Site(), Telling) as site:
        pin = {"sha1": hashlib.sha1(BODY).hexdigest()} if "Sha1" in header else {"sha256": SHA256}
        state, why = asked(site, size=len(BODY), **pin)
    assert (state, "pinned is" in why) == ((CHANGED, True) if other else (OK, False))


def test_a_page_in_the_place_of_a_file_is_no_file() -> None:
    class SignIn(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.reply(200, b"<html>sign in", **{"Content-Type": "text/html; charset=utf-8"})

    with serving(Site(), SignIn) as site:
        assert asked(site) == (CHANGED, "a page came in its place")


def test_a_folder_of_this_machine_is_held_against_the_digest(tmp_path: Path) -> None:
    pin = Pin(sha256=SHA256)
    assert ask_file(str(tmp_path), pin, "a.zip").state == GONE
    (tmp_path / "a.zip").write_bytes(BODY)
    assert ask_file(str(tmp_path), pin, "a.zip").state == OK
    (tmp_path / "a.zip").write_bytes(BODY[:-1] + b"?")
    assert ask_file((tmp_path / "a.zip").as_uri(), pin, "a.zip").state == CHANGED


def test_passwords_of_addresses_are_not_shown() -> None:
    place = NOBODY_THERE.replace("//", "//me:secret@")
    assert "secret" not in str(ask_file(f"{place}/a.zip", Pin(), "a.zip"))


@pytest.mark.parametrize(
    ("states", "comes_to"),
    [
        ([GONE, OK], OK),
        ([CHANGED, OK], OK),
        ([GONE, NOT_REACHED], NOT_REACHED),
        ([GONE, CHANGED, NOT_REACHED], CHANGED),
        ([GONE, GONE], GONE),
        ([], NOT_REACHED),
    ],
)
def test_one_good_place_is_enough_and_a_silent_one_proves_nothing(
    states: list[str], comes_to: str
) -> None:
    assert verdict(states) == comes_to


MANIFEST = json.dumps({"schemaVersion": 2}).encode()
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


class Registry(Handler):
    """As much of the registry's protocol as a pull begins with, behind a token."""

    tells = True

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.split("?")[0]
        self.site.asked.append((self.command, self.path, self.headers.get("Accept", "")))
        if path == "/token":
            return self.reply(200, b'{"token": "t0"}')
        if self.headers.get("Authorization") != "Bearer t0":
            realm = f'Bearer realm="{self.site.url}/token",service="me",scope="repository:a/b:pull"'
            return self.reply(401, b"{}", **{"WWW-Authenticate": realm})
        if "application/vnd.oci.image.index.v1+json" not in self.headers.get("Accept", ""):
            return self.reply(404, b"")
        body = self.site.files.get(path.rpartition("/")[2])
        if body is None:
            return self.reply(404, b"{}")
        told = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.reply(200, body, **({"Docker-Content-Digest": told} if self.tells else {}))


@pytest.fixture
def registry() -> Iterator[Site]:
    with serving(Site(files={DIGEST: MANIFEST, "1": MANIFEST}), Registry) as site:
        yield site


def image(site: Site, *, tag: str = "1", digest: str = DIGEST) -> Answer:
    return ask_image(f"{site.url.removeprefix('http://')}/a/b:{tag}@{digest}")


def test_an_image_is_asked_for_by_digest_without_its_layers(registry: Site) -> None:
    assert (image(registry).state, image(registry).why) == (OK, "")
    assert ("GET", "/token?service=me&scope=repository%3Aa%2Fb%3Apull", "*/*") in registry.asked
    asked = {path for method, path, _ in registry.asked if method == "HEAD"}
    assert asked == {f"/v2/a/b/manifests/{DIGEST}", "/v2/a/b/manifests/1"}


def test_an_image_whose_tag_was_moved_is_still_there(registry: Site) -> None:
    registry.files["1"] = b"{}"
    told = image(registry)
    assert (told.state, told.why.startswith("the tag 1 is at sha256:44136f")) == (OK, True)


def test_an_image_whose_tag_was_deleted_is_told_of(registry: Site) -> None:
    del registry.files["1"]
    assert image(registry).why == "the tag 1 is gone"


def test_a_deleted_image_is_gone(registry: Site) -> None:
    del registry.files[DIGEST]
    assert image(registry).state == GONE


@pytest.mark.parametrize("tells", [True, False])
def test_a_registry_that_gives_another_manifest_is_found_out(registry: Site, tells: bool) -> None:
    Registry.tells = tells
    try:
        assert image(registry).state == OK
        registry.files[DIGEST] = b"{}"
        assert image(registry).state == CHANGED
    finally:
        Registry.tells = True


def test_a_registry_that_wants_a_password_is_not_one_without_the_image(site: Site) -> None:
    site.statuses = [401]
    assert image(site).state == NOT_REACHED


def test_a_registry_that_is_not_there_is_not_reached() -> None:
    assert ask_image(f"127.0.0.1:9/a/b@{DIGEST}").state == NOT_REACHED


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("debian:12@sha256:ab", "https://registry-1.docker.io/v2/library/debian/manifests"),
        ("nvidia/cuda@sha256:ab", "https://registry-1.docker.io/v2/nvidia/cuda/manifests"),
        ("docker.io/x", "https://registry-1.docker.io/v2/library/x/manifests"),
        ("r.example:5000/x/y:1", "https://r.example:5000/v2/x/y/manifests"),
        ("localhost/x:1", "http://localhost/v2/x/manifests"),
    ],
)
def test_images_are_named_as_docker_names_them(text: str, address: str) -> None:
    assert parse_reference(text).address == address


FILE = "some_thing-1.0+cpu-py3-none-any.whl"


def wheel(**more: str | int) -> Wheel:
    known = {"name": "Some_Thing", "version": "1.0+cpu", "file": FILE, "sha256": SHA256}
    return Wheel(**{**known, "size": len(BODY), **more})  # type: ignore[arg-type]


class JsonIndex(Handler):
    """PEP 691."""

    def do_GET(self) -> None:  # noqa: N802
        if self.path != "/simple/some-thing/":
            return super().do_GET()
        self.site.asked.append((self.command, self.path, ""))
        entry = {
            "filename": FILE,
            "url": "../../files/" + FILE.replace("+", "%2B"),
            "hashes": {"sha256": hashlib.sha256(self.site.files["listed"]).hexdigest()},
            "yanked": "broken" if "yanked" in self.site.files else False,
        }
        kind = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
        self.reply(200, json.dumps({"files": [entry]}).encode(), **kind)


@pytest.fixture(params=["json", "html"])
def index(request: pytest.FixtureRequest) -> Iterator[Site]:
    """An index of one wheel, in both forms; its files are beside it."""
    quoted = f"/files/{FILE}".replace("+", "%2B")
    page = f'<a href="../..{quoted}#sha256={SHA256}">x</a>'.encode()
    files = {quoted: BODY, "listed": BODY, "/simple/some-thing/": page}
    with serving(Site(files=files), JsonIndex if request.param == "json" else Handler) as site:
        yield site


def told(wheel: Wheel, *places: Index) -> list[tuple[str, str]]:
    return [(answer.state, answer.why) for answer in ask_wheel(wheel, places)]


def simple(site: Site) -> Index:
    return Index(f"{site.url}/simple/", PipSettings())


def test_a_wheel_is_found_on_its_page_and_its_file_is_not_downloaded(index: Site) -> None:
    assert told(wheel(), simple(index)) == [(OK, "")]
    files = [method for method, path, _ in index.asked if path.startswith("/files/")]
    assert files == ["HEAD"]


def test_a_wheel_with_other_bytes_under_its_name_has_changed(index: Site) -> None:
    [(state, why)] = told(wheel(sha256="0" * 64), simple(index))
    assert (state, why) == (CHANGED, f"sha256 {SHA256}, pinned is {'0' * 64}")


def test_a_wheel_that_is_listed_and_gone_from_its_place_is_gone(index: Site) -> None:
    del index.files[f"/files/{FILE}".replace("+", "%2B")]
    assert told(wheel(), simple(index)) == [(GONE, "the server says 404 Not Found")]


def test_a_wheel_that_no_index_lists_is_gone(index: Site) -> None:
    nothing = [(GONE, "it does not list this file")]
    assert told(wheel(name="other"), simple(index)) == nothing
    assert told(wheel(file="some_thing-2-py3-none-any.whl"), simple(index)) == nothing


def test_an_index_need_not_have_what_another_has(index: Site) -> None:
    with serving(Site()) as empty:
        assert told(wheel(), simple(empty), simple(index)) == [(OK, "")]
        assert told(wheel(), simple(empty))[0][0] == GONE


def test_an_index_that_does_not_answer_is_asked_once(index: Site) -> None:
    silent = Index(NOBODY_THERE, PipSettings())
    states = [state for state, _ in told(wheel(name="other"), silent, simple(index))]
    assert states == [NOT_REACHED, GONE]
    assert silent.dead
    assert verdict(states) == NOT_REACHED


def test_a_wheel_that_its_makers_withdrew_is_told_of() -> None:
    quoted = f"/files/{FILE}".replace("+", "%2B")
    files = {quoted: BODY, "listed": BODY, "yanked": b""}
    with serving(Site(files=files), JsonIndex) as site:
        assert told(wheel(), simple(site)) == [(OK, "withdrawn by its makers (broken)")]


def test_folders_and_file_indexes_are_looked_into(tmp_path: Path) -> None:
    flat, page = tmp_path / "flat", tmp_path / "simple" / "some-thing"
    flat.mkdir()
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="../../flat/{FILE.replace("+", "%2B")}">x</a>')
    pip = PipSettings(find_links=(str(flat),), index_url=(tmp_path / "simple").as_uri())
    assert {state for state, _ in told(wheel(), *indexes(pip))} == {GONE}
    (flat / FILE).write_bytes(BODY)
    assert told(wheel(), *indexes(pip)) == [(OK, ""), (OK, "")]
    (flat / FILE).write_bytes(b"?" + BODY[1:])
    assert {state for state, _ in told(wheel(), *indexes(pip))} == {CHANGED}


def test_without_an_index_none_is_asked(tmp_path: Path) -> None:
    pip = PipSettings(find_links=(str(tmp_path),), no_index=True, index_url="http://x.example")
    assert [index.address for index in indexes(pip)] == [str(tmp_path)]


@needs_git
def test_a_commit_is_asked_for_at_a_repository(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "code")
    first = repo.commit({"a": b"1" * 100})
    repo.commit({"a": b"2"})
    repo.git("config", "uploadpack.allowAnySHA1InWant", "true")
    for filters in ("true", "false"):
        repo.git("config", "uploadpack.allowFilter", filters)
        here = Repository(path=".", repository=repo.path.as_uri(), commit=first)
        assert ask_commit(here).state == OK
    lost = Repository(path=".", repository=repo.path.as_uri(), commit="1" * 40)
    assert ask_commit(lost).state == GONE


@needs_git
def test_a_repository_that_was_removed_is_gone_and_one_out_of_reach_is_not(tmp_path: Path) -> None:
    none = Repository(path=".", repository=(tmp_path / "none").as_uri(), commit="1" * 40)
    assert ask_commit(none).state == GONE
    silent = Repository(path=".", repository=f"{NOBODY_THERE}/a", commit="1" * 40)
    assert ask_commit(silent).state == NOT_REACHED
    with serving(Site()) as site:
        absent = Repository(path=".", repository=f"{site.url}/a", commit="1" * 40)
        assert ask_commit(absent).state == GONE
