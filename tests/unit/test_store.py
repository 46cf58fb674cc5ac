"""The store: whole entries only, damage is seen, leftovers go."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekiln.errors import AccessError
from edgekiln.store import Store

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store, key: str = KEY, text: str = "made") -> Path:
    """Commit an entry with one folder and one file as outputs."""
    work = store.workspace(key)
    (work / "out" / "model").mkdir()
    (work / "out" / "model" / "weights").write_text(text)
    (work / "out" / "report.json").write_text("{}")
    (work / "scratch").mkdir()
    return store.commit(key, work, {"stage": "export"}).path


def test_nothing_is_found_before_commit(store: Store) -> None:
    work = store.workspace(KEY)
    (work / "out" / "x").write_text("half")
    assert store.find(KEY) is None


def test_a_committed_entry_is_found_with_its_outputs(store: Store) -> None:
    fill(store)
    entry = store.find(KEY)
    assert entry is not None
    assert (entry.output("model") / "weights").read_text() == "made"
    assert entry.size == len("made") + len("{}")
    assert entry.meta["stage"] == "export"
    assert not (entry.path / "scratch").exists()


def test_equal_outputs_have_equal_digests_under_different_keys(store: Store) -> None:
    fill(store)
    fill(store, "cd" * 32)
    first, second = store.find(KEY), store.find("cd" * 32)
    assert first and second
    assert first.output_digest("model") == second.output_digest("model")


def test_a_damaged_output_is_not_taken_for_whole(store: Store) -> None:
    path = fill(store) / "out" / "model" / "weights"
    path.chmod(0o600)
    path.write_text("mode")
    assert store.find(KEY) is None


def test_a_missing_output_is_not_taken_for_whole(store: Store) -> None:
    (fill(store) / "out" / "report.json").unlink()
    assert store.find(KEY) is None


def test_a_touched_output_with_the_same_bytes_is_still_good(store: Store) -> None:
    os.utime(fill(store) / "out" / "report.json")
    assert store.find(KEY) is not None


def test_a_damaged_entry_can_be_made_again(store: Store) -> None:
    (fill(store) / "out" / "report.json").unlink()
    fill(store)
    assert store.find(KEY) is not None


def test_outputs_are_read_only(store: Store) -> None:
    path = fill(store) / "out" / "model" / "weights"
    assert not path.stat().st_mode & 0o222


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX systems")
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_modes_do_not_depend_on_the_umask(store: Store, tmp_path: Path, umask: int) -> None:
    kit = tmp_path / "kit"
    kit.touch(mode=0o600)
    before = os.umask(umask)
    try:
        work = store.workspace(KEY)
        (work / "out" / "model" / "bin").mkdir(parents=True)
        (work / "out" / "model" / "bin" / "run").touch(mode=0o777)
        (work / "out" / "model" / "weights").write_text("made")
        (work / "out" / "model" / "linked").symlink_to(kit)
        out = store.commit(KEY, work, {}).path / "out"
    finally:
        os.umask(before)
    modes = {p.name: p.lstat().st_mode & 0o777 for p in out.rglob("*") if not p.is_symlink()}
    assert modes == {"model": 0o755, "bin": 0o755, "run": 0o555, "weights": 0o444}
    assert kit.stat().st_mode & 0o777 == 0o600, "a link's target is not the stage's"


def test_sweep_removes_what_a_killed_build_left(store: Store, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from edgekiln.store import Store\n"
        f"s = Store(Path({str(tmp_path / 'store')!r}))\n"
        f"with s.building({KEY!r}, lambda: None):\n"
        f"    s.workspace({KEY!r}); print('in', flush=True); time.sleep(60)\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "in\n"
    store.sweep()
    assert len(list((store.root / "doing").iterdir())) == 1, "a living build's folder went"
    assert store.running_elsewhere() == 1
    builder.kill()
    builder.wait()
    builder.stdout.close()
    assert store.running_elsewhere() == 0
    store.sweep()
    assert not list((store.root / "doing").iterdir())


def _hold(root: Path, seconds: float) -> None:
    with Store(root).building(KEY, lambda: None):
        (root / "held").write_text("")
        time.sleep(seconds)


def test_one_builder_a_key(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "store"
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(root, 0.5))
    other.start()
    while not (root / "held").exists():
        time.sleep(0.01)
    waited: list[bool] = []
    with store.building(KEY, lambda: waited.append(True)):
        assert not other.is_alive() or waited
    other.join()
    assert waited == [True]


def test_remove_takes_the_entry(store: Store) -> None:
    fill(store)
    (entry,) = store.entries()
    assert store.remove(entry)
    assert store.find(KEY) is None


def test_finding_an_entry_keeps_it_from_the_next_gc(store: Store) -> None:
    old = time.time() - 10 * 86400
    os.utime(fill(store) / "entry.json", (old, old))
    (entry,) = store.entries()
    assert store.last_used(entry) == pytest.approx(old, abs=1)
    store.find(KEY)
    assert store.last_used(entry) > old + 86400


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError) as caught:
        Store(tmp_path / "file")
    assert "EDGEKILN_HOME" in caught.value.remedy
