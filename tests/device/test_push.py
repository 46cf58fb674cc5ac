"""Push: only what changed, whole, and never a file of somebody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekiln.build import open_store
from edgekiln.device.adb import choose
from edgekiln.device.payload import Item, read_payload
from edgekiln.device.push import LIST, Pushed, push
from edgekiln.digest import digest_file
from edgekiln.errors import DeviceError, DigestError, DiskError, UsageError
from edgekiln.progress import Silent
from edgekiln.report import Task
from tests.device.conftest import LIBRARIES, make_qnn, qnn_files
from tests.device.standin import TMP, Phone
from tests.unit.kit import Heard

PLACE = f"{TMP}/edgekiln/tiny-qnn-sm8750"
WEIGHTS = "models/weight_sharing_model_1_of_1.serialized.bin"


def send(bundle: Path, *, place: str = "", extra: Sequence[Item] = ()) -> Pushed:
    """Push a bundle to the phone."""
    with open_store() as store:
        payload = read_payload(bundle, store.index)
    return push(choose(), payload, Silent(), place=place or payload.place, extra=extra)


def files(phone: Phone, place: str = PLACE) -> dict[str, bytes]:
    """What lies on the phone, but for the list of it."""
    root = phone.path(place)
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != LIST}


def test_every_file_arrives_and_programs_may_run(phone: Phone, qnn_bundle: Path) -> None:
    done = send(qnn_bundle)
    there = files(phone)
    assert done.place == PLACE
    assert "README.md" not in there
    assert {n: (qnn_bundle / n).read_bytes() for n in there} == there
    assert set(there) == set(qnn_files()) - {"README.md"} == set(done.new)
    assert os.access(phone.path(PLACE) / "genie-t2t-run", os.X_OK)


def test_how_far_it_is_is_told_in_bytes(phone: Phone, qnn_bundle: Path) -> None:
    heard = Heard()
    with open_store() as store:
        payload = read_payload(qnn_bundle, store.index)
    push(choose(), payload, Task(heard, "push"), place=payload.place)
    total = sum(item.size for item in payload.items)
    amounts = [done for _, done, _ in heard.progress]
    assert heard.progress[-1] == ("push", total, total)
    assert amounts == sorted(amounts) and len(set(amounts)) > 2


def test_a_second_time_nothing_is_sent(phone: Phone, qnn_bundle: Path) -> None:
    send(qnn_bundle)
    phone.sent.clear()
    done = send(qnn_bundle)
    assert (done.new, done.sent, phone.sent) == ((), 0, [])
    assert len(done.same) == len(files(phone))


def test_one_changed_file_is_sent_alone(phone: Phone, tmp_path: Path) -> None:
    same = os.urandom(1 << 20)
    send(make_qnn(tmp_path, **{WEIGHTS: same}))
    phone.sent.clear()
    done = send(make_qnn(tmp_path, **{WEIGHTS: same, "tokenizer.json": b'{"new": 1}'}))
    assert done.new == ("tokenizer.json",)
    assert [p for p in phone.sent if LIST not in p] == [f"{PLACE}/tokenizer.json"]
    assert files(phone)["tokenizer.json"] == b'{"new": 1}'


def test_a_file_that_was_changed_on_the_phone_is_sent_again(phone: Phone, qnn_bundle: Path) -> None:
    send(qnn_bundle)
    (phone.path(PLACE) / "tokenizer.json").write_bytes(b"broken")
    assert send(qnn_bundle).new == ("tokenizer.json",)
    assert files(phone)["tokenizer.json"] == b"{}"


def test_a_push_that_was_cut_goes_on_where_it_was(
    phone: Phone, qnn_bundle: Path, adb: Callable[..., str]
) -> None:
    size = (qnn_bundle / WEIGHTS).stat().st_size
    phone.cut_after = size // 2
    with pytest.raises(DeviceError):
        send(qnn_bundle)
    assert phone.cut_after is None, "it was cut"
    before = set(files(phone))
    assert before and WEIGHTS not in before
    adb("disconnect", phone.serial)
    adb("connect", phone.serial)
    phone.sent.clear()
    done = send(qnn_bundle)
    assert set(done.same) == before
    assert set(done.new) == set(files(phone)) - before
    assert not {f"{PLACE}/{name}" for name in before} & set(phone.sent)
    assert files(phone)[WEIGHTS] == (qnn_bundle / WEIGHTS).read_bytes()


def test_files_of_an_older_version_go_and_no_others(phone: Phone, tmp_path: Path) -> None:
    send(make_qnn(tmp_path, **{"old/a.bin": b"a", "old/b.bin": b"b"}))
    place = phone.path(PLACE)
    (place / "mine.txt").write_text("the user's own")
    (place / "old" / "b.bin").write_text("changed by the user")
    done = send(make_qnn(tmp_path))
    assert done.removed == ("old/a.bin",)
    assert done.kept == ("old/b.bin",)
    assert not (place / "old" / "a.bin").exists()
    assert (place / "old" / "b.bin").read_text() == "changed by the user"
    assert (place / "mine.txt").read_text() == "the user's own"


def test_folders_that_are_empty_without_them_go_too(phone: Phone, tmp_path: Path) -> None:
    send(make_qnn(tmp_path, **{"old/deep/a.bin": b"a"}))
    send(make_qnn(tmp_path))
    assert not (phone.path(PLACE) / "old").exists()


def test_a_strangers_file_in_the_way_is_left_alone(phone: Phone, qnn_bundle: Path) -> None:
    place = phone.path(PLACE)
    place.mkdir(parents=True)
    (place / "tokenizer.json").write_text("another program's")
    with pytest.raises(UsageError, match=r"tokenizer\.json is on the phone already"):
        send(qnn_bundle)
    assert files(phone) == {"tokenizer.json": b"another program's"}


def test_a_strangers_file_of_the_same_bytes_is_taken_as_it_is_and_never_removed(
    phone: Phone, tmp_path: Path
) -> None:
    place = phone.path(PLACE)
    place.mkdir(parents=True)
    (place / "shared.bin").write_bytes(b"same")
    assert "shared.bin" in send(make_qnn(tmp_path, **{"shared.bin": b"same"})).same
    assert send(make_qnn(tmp_path)).kept == ("shared.bin",)
    assert (place / "shared.bin").exists()


def test_libraries_beside_the_bundle_stay_when_it_changes(phone: Phone, tmp_path: Path) -> None:
    library = tmp_path / "libGenie.so"
    library.write_bytes(b"library")
    item = Item(name=library.name, source=library, size=7, sha256=digest_file(library))
    without = dict.fromkeys(LIBRARIES)
    send(make_qnn(tmp_path, **without, **{WEIGHTS: b"same"}), extra=[item])
    done = send(make_qnn(tmp_path, **without, **{WEIGHTS: b"same", "tokenizer.json": b"[]"}))
    assert done.new == ("tokenizer.json",)
    assert files(phone)["libGenie.so"] == b"library"


def test_a_phone_without_room_is_refused_before_the_first_byte(
    phone: Phone, qnn_bundle: Path
) -> None:
    phone.free(1000)
    with pytest.raises(DiskError, match=r"1\.0 MB free"):
        send(qnn_bundle)
    assert files(phone) == {}


def test_a_phone_that_fills_up_on_the_way_says_so(phone: Phone, qnn_bundle: Path) -> None:
    phone.quota = 1 << 20
    with pytest.raises(DiskError, match="the phone is full"):
        send(qnn_bundle)
    phone.quota = None
    assert WEIGHTS in send(qnn_bundle).new


def test_bytes_that_arrive_wrong_are_found(phone: Phone, qnn_bundle: Path) -> None:
    real = "/usr/bin/sha256sum" if Path("/usr/bin/sha256sum").exists() else "sha256sum"
    phone.program("sha256sum", f'{real} "$@" | sed "s/^0/1/;t;s/^./0/"\n')
    with pytest.raises(DigestError, match="did not arrive whole"):
        send(qnn_bundle)


def test_a_phone_with_nothing_but_toyboxs_md5sum(phone: Phone, qnn_bundle: Path) -> None:
    phone.program("sha256sum", "exit 127\n")
    phone.program("md5sum", "exit 127\n")
    phone.program("toybox", '[ "$1" = md5sum ] || exit 127\nshift\nexec /usr/bin/md5sum "$@"\n')
    assert len(send(qnn_bundle).new) == len(files(phone))
    assert send(qnn_bundle).new == ()


def test_a_bundle_that_was_changed_since_is_not_pushed(phone: Phone, qnn_bundle: Path) -> None:
    (qnn_bundle / "tokenizer.json").write_bytes(b"edited")
    with pytest.raises(DigestError, match="not the file that was built"):
        send(qnn_bundle)
    (qnn_bundle / "tokenizer.json").unlink()
    with pytest.raises(DigestError, match="missing"):
        send(qnn_bundle)


def test_a_file_that_stays_here_tells_of_a_damaged_bundle_too(
    phone: Phone, qnn_bundle: Path
) -> None:
    (qnn_bundle / "README.md").write_text("other")
    with pytest.raises(DigestError, match=r"README\.md is not the file that was built"):
        send(qnn_bundle)
    assert not files(phone)


def test_names_with_blanks_quotes_and_umlauts(phone: Phone, tmp_path: Path) -> None:
    names = ["a b.bin", "it's.bin", 'sub dir/"q".bin', "grün/größe.bin", "$HOME.bin", "-n.bin"]
    send(make_qnn(tmp_path, **{name: name.encode() for name in names}))
    assert all(files(phone)[name] == name.encode() for name in names)
    assert send(make_qnn(tmp_path)).removed == tuple(sorted(names))


def test_many_files_are_asked_for_in_lines_the_shell_can_take(phone: Phone, tmp_path: Path) -> None:
    names = {f"parts/{'x' * 80}-{i:03}.bin": b"%d" % i for i in range(60)}
    send(make_qnn(tmp_path, **names))
    assert all(len(line) < 6000 for line in phone.lines)
    assert set(names) <= set(files(phone))


def test_the_list_on_the_phone_says_what_was_put_there(phone: Phone, qnn_bundle: Path) -> None:
    send(qnn_bundle, place=f"{TMP}/elsewhere")
    listed = json.loads((phone.path(f"{TMP}/elsewhere") / LIST).read_text())
    assert set(listed["files"]) == set(files(phone, f"{TMP}/elsewhere"))
    assert (listed["model"], listed["backend"]) == ("tiny", "qnn")
