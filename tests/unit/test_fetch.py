"""Single files come whole or not at all, from servers that cut, lie and change their minds."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln.errors import AccessError, DigestError, DiskError, FetchError
from edgekiln.fetch import Pin, fetch, vendored
from edgekiln.transfer import CHUNK
from tests.unit.servers import Site, serving

BODY = bytes(range(256)) * 4096  # 1 MiB
PIN = Pin(sha256=hashlib.sha256(BODY).hexdigest(), size=len(BODY))
AT_ONCE = (0.0, 0.0, 0.0)


class Told:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float | None]] = []
        self.notes: list[str] = []

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        self.updates.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site(files={"/x.zip": BODY})) as site:
        yield site


def left(folder: Path) -> list[str]:
    """What lies in a folder, without locks."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def went_on(site: Site, *cuts: int) -> bool:
    """Whether each GET after the first asked for what followed the cut before it.

    Of the last piece that arrived less than a chunk may be lost.
    """
    first, *later = site.gets()
    starts = [int(span.removeprefix("bytes=").removesuffix("-")) for span in later]
    near = [cut - 2 * CHUNK < start <= cut for cut, start in zip(cuts, starts, strict=True)]
    return first == "" and all(near)


def test_a_file_arrives_whole_and_progress_is_told(site: Site, tmp_path: Path) -> None:
    told = Told()
    got = fetch([f"{site.url}/x.zip"], tmp_path / "deep" / "x.zip", pin=PIN, progress=told)
    assert got.path.read_bytes() == BODY
    assert (got.sha256, got.size, got.place) == (PIN.sha256, PIN.size, f"{site.url}/x.zip")
    assert list(told.updates[-1]) == [len(BODY), len(BODY)]
    assert left(got.path.parent) == ["x.zip"]


def test_what_is_there_already_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(BODY)
    assert fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN).size == len(BODY)
    assert site.asked == []


def test_a_damaged_file_of_that_name_is_replaced(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(BODY[:-1])
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN)
    assert (tmp_path / "x.zip").read_bytes() == BODY


@pytest.mark.parametrize("lengths", [True, False])
def test_a_cut_connection_is_gone_on_with_from_where_it_was_cut(
    site: Site, tmp_path: Path, lengths: bool
) -> None:
    site.cuts, site.lengths = [400_000, 300_000], lengths
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=AT_ONCE)
    assert (tmp_path / "x.zip").read_bytes() == BODY
    assert went_on(site, 400_000, 700_000)


def test_a_later_run_goes_on_from_what_an_earlier_one_left(site: Site, tmp_path: Path) -> None:
    site.cuts = [500_000]
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=())
    assert left(tmp_path) == ["x.zip.part", "x.zip.part.json"]
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=())
    assert went_on(site, 500_000)
    assert left(tmp_path) == ["x.zip"]


def test_a_server_that_ignores_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.cuts, site.ranges = [400_000], False
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=AT_ONCE)
    assert (tmp_path / "x.zip").read_bytes() == BODY
    assert went_on(site, 400_000)


def test_without_a_digest_the_end_of_another_file_is_not_joined_on(
    site: Site, tmp_path: Path
) -> None:
    site.cuts = [400_000]
    with pytest.raises(FetchError):
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", retries=())
    site.files["/x.zip"] = changed = BODY[::-1]
    got = fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", retries=())
    assert got.path.read_bytes() == changed
    assert went_on(site, 400_000)


def test_without_digest_and_etag_nothing_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.cuts, site.etags = [400_000], False
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", retries=AT_ONCE)
    assert site.gets() == ["", ""]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(BODY + b"more")
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=Pin(sha256=PIN.sha256), retries=AT_ONCE)
    assert (tmp_path / "x.zip").read_bytes() == BODY


def test_a_part_that_is_whole_needs_only_its_name(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(BODY)
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=Pin(sha256=PIN.sha256), retries=())
    assert (tmp_path / "x.zip").read_bytes() == BODY
    assert site.gets() == [f"bytes={len(BODY)}-"]


def test_wrong_bytes_are_refused_and_none_of_them_kept(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = BODY[:-1] + b"!"
    with pytest.raises(DigestError, match="another file") as caught:
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=AT_ONCE)
    assert PIN.sha256 in caught.value.why
    assert left(tmp_path) == []
    assert len(site.asked) == 1


def test_a_page_that_answers_instead_of_the_file_is_shown(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = b"<html>\n<title>Sign in</title>"
    with pytest.raises(DigestError) as caught:
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN)
    assert "29 bytes, expected 1048576" in caught.value.why
    assert "it begins: <html> <title>Sign in</title>" in caught.value.why


def test_an_empty_answer_is_no_file_even_on_first_use(site: Site, tmp_path: Path) -> None:
    site.files["/x.zip"] = b""
    with pytest.raises(DigestError, match="another file"):
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip")
    assert left(tmp_path) == []


def test_googles_sha1_is_checked_too(site: Site, tmp_path: Path) -> None:
    right = hashlib.sha1(BODY).hexdigest()
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=Pin(sha1=right))
    with pytest.raises(DigestError, match="another file"):
        fetch([f"{site.url}/x.zip"], tmp_path / "y.zip", pin=Pin(sha1="0" * 40))


def test_a_busy_server_is_asked_again_and_the_user_told(site: Site, tmp_path: Path) -> None:
    site.statuses, told = [503, 429], Told()
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, progress=told, retries=AT_ONCE)
    assert [note.split(";")[0] for note in told.notes] == [
        "x.zip: the server says 503 Service Unavailable",
        "x.zip: the server says 429 Too Many Requests",
    ]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final_for_that_place(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(FetchError) as caught:
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=AT_ONCE)
    assert f"the server says {status}" in caught.value.why
    assert "EDGEKILN_VENDOR" in caught.value.remedy
    assert len(site.asked) == 1


def test_the_next_place_is_tried_after_no_answer_wrong_bytes_and_a_refusal(
    site: Site, tmp_path: Path
) -> None:
    site.files["/wrong/x.zip"] = b"wrong"
    places = ["http://127.0.0.1:9/x.zip", f"{site.url}/wrong/x.zip", f"{site.url}/gone/x.zip"]
    told = Told()
    got = fetch(
        [*places, f"{site.url}/x.zip"],
        tmp_path / "x.zip",
        pin=PIN,
        progress=told,
        retries=(),
    )
    assert got.place == f"{site.url}/x.zip"
    assert len(told.notes) == 3


def test_when_all_places_fail_wrong_bytes_are_what_is_told(site: Site, tmp_path: Path) -> None:
    site.files["/wrong/x.zip"] = b"wrong"
    places = [f"{site.url}/wrong/x.zip", "http://127.0.0.1:9/x.zip"]
    with pytest.raises(DigestError) as caught:
        fetch(places, tmp_path / "x.zip", pin=PIN, retries=())
    assert "2 places tried" in caught.value.why


def test_half_a_file_from_one_mirror_is_gone_on_with_at_another(site: Site, tmp_path: Path) -> None:
    site.files["/mirror/x.zip"] = BODY
    site.cuts = [300_000]
    places = [f"{site.url}/x.zip", f"{site.url}/mirror/x.zip"]
    fetch(places, tmp_path / "x.zip", pin=PIN, retries=())
    assert went_on(site, 300_000)


def test_folders_files_and_file_addresses_are_places_too(tmp_path: Path) -> None:
    (tmp_path / "have").mkdir()
    source = tmp_path / "have" / "x.zip"
    source.write_bytes(BODY)
    for i, place in enumerate([str(source.parent), str(source), source.as_uri()]):
        fetch([place], tmp_path / f"{i}" / "x.zip", pin=PIN)
        assert (tmp_path / f"{i}" / "x.zip").read_bytes() == BODY
    assert source.read_bytes() == BODY


def test_the_vendor_folder_comes_first(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
    (tmp_path / "vendor").mkdir()
    assert vendored("x.zip") is None
    (tmp_path / "vendor" / "x.zip").write_bytes(BODY)
    assert vendored("x.zip") == tmp_path / "vendor" / "x.zip"
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN)
    assert site.asked == []


def test_a_wrong_file_in_the_vendor_folder_does_not_stop_the_fetch(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "x.zip").write_bytes(b"old")
    fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN)
    assert (tmp_path / "x.zip").read_bytes() == BODY
    assert (tmp_path / "vendor" / "x.zip").read_bytes() == b"old"


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    site.redirects["/latest"] = "/x.zip"
    fetch([f"{site.url}/latest"], tmp_path / "x.zip", pin=PIN)
    assert (tmp_path / "x.zip").read_bytes() == BODY


def test_the_users_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Site(files={"http://files.invalid/x.zip": BODY})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        fetch(["http://files.invalid/x.zip"], tmp_path / "x.zip", pin=PIN, retries=())
    assert proxy.gets() == [""]


def test_a_password_in_an_address_is_not_shown(site: Site, tmp_path: Path) -> None:
    address = site.url.replace("http://", "http://me:secret@")
    with pytest.raises(FetchError) as caught:
        fetch([f"{address}/none.zip"], tmp_path / "x.zip", pin=PIN, retries=())
    assert "secret" not in "".join(caught.value.lines())


def test_two_at_once_fetch_one_file_once(site: Site, tmp_path: Path) -> None:
    def get() -> None:
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN)

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x.zip").read_bytes() == BODY
    assert len(site.asked) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="the disk is full"):
        fetch([f"{site.url}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=())


def test_a_folder_that_cannot_be_written_is_an_access_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError):
        fetch([f"{site.url}/x.zip"], tmp_path / "file" / "x.zip", pin=PIN)


def test_nothing_that_listens_is_a_fetch_error_with_a_way_out(tmp_path: Path) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    port = server.server_address[1]
    server.server_close()
    with pytest.raises(FetchError) as caught:
        fetch([f"http://127.0.0.1:{port}/x.zip"], tmp_path / "x.zip", pin=PIN, retries=(0.0,))
    assert "refused" in caught.value.why
