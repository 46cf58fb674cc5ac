"""Bad input, full disks, killed builds: the real command line, on a model of two layers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builds.kit import (
    LENIENT,
    NOBODY,
    Kiln,
    alive,
    call,
    nobodys_python,
    open_folder,
    three_lines,
    until,
)
from tests.unit import tinymodel

NATIVE = ("build", "--backend", "mnn", "--executor", "native")
STAGES = ["configure", "export", "prove", "reference"]


# -- models that cannot be built: refused before anything is made


def broken(folder: Path, how: str) -> Path:
    """A model directory with one thing wrong."""
    if how == "missing":
        return folder / "nowhere"
    if how == "empty":
        folder.mkdir()
        return folder
    tinymodel.make(folder, **({"model_type": "lamma"} if how == "family" else {}))
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    if how == "tokenizer":
        (folder / "tokenizer.json").unlink()
    if how == "pointer":
        weights.write_text(tinymodel.POINTER)
    return folder


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("missing", "nowhere"),
        ("empty", "is empty"),
        ("truncated", "model.safetensors"),
        ("family", "lamma"),
        ("tokenizer", "tokenizer"),
        ("pointer", "lfs"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_at_once(
    kiln: Kiln, tmp_path: Path, how: str, word: str
) -> None:
    done = kiln(*NATIVE, "--model", str(broken(tmp_path / "model", how)))
    lines = three_lines(done)
    assert done.returncode == 3, done.stderr
    assert word in " ".join(lines).lower()
    assert any(line.startswith("do: ") for line in lines), lines
    assert not kiln.home.joinpath("logs").exists(), "no stage was begun"


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--quant-bit", "5"], "quant_bit"),
        (["--quant-block", "7"], "quant_block"),
        (["--preset", "precison"], "precision"),
        (["--executor", "dokcer"], "docker"),
        (["--memory-limit", "lots"], "--memory-limit"),
    ],
)
def test_a_bad_option_is_named(kiln: Kiln, tiny: Path, words: list[str], word: str) -> None:
    done = kiln("build", "--backend", "mnn", "--model", str(tiny), *words)
    assert done.returncode == 2, done.stderr
    assert word in " ".join(three_lines(done))


def test_an_error_is_an_event_too(kiln: Kiln, tmp_path: Path) -> None:
    done = kiln(*NATIVE, "--model", str(broken(tmp_path / "model", "empty")), "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[-1]["event"], events[-1]["kind"]) == ("error", "model")
    assert events[-1]["exit_code"] == done.returncode == 3


# -- places that cannot be written


def test_a_home_that_may_not_be_written_is_named() -> None:
    with open_folder() as root:
        tinymodel.make(root / "model")
        (root / "out").mkdir()
        os.chown(root / "out", NOBODY, NOBODY)
        words = [*NATIVE, "--quant-block", "0", "--model", str(root / "model")]
        env = {"EDGEKILN_HOME": str(root / "home"), "HOME": str(root)}
        command, full = nobodys_python("-m", "edgekiln", *words, **env)
        done = call(command, full, root / "out")
        lines = three_lines(done)
        assert done.returncode == 12, done.stderr
        assert str(root / "home") in lines[0]
        assert "EDGEKILN_HOME" in lines[-1]


def test_a_store_of_another_user_is_named() -> None:
    with open_folder() as root:
        tinymodel.make(root / "model")
        for name in ("out", "home/store/v1/objects", "home/store/v1/doing", "home/store/v1/locks"):
            (root / name).mkdir(parents=True)
        os.chown(root / "out", NOBODY, NOBODY)
        words = [*NATIVE, "--quant-block", "0", "--model", str(root / "model")]
        env = {"EDGEKILN_HOME": str(root / "home"), "HOME": str(root)}
        command, full = nobodys_python("-m", "edgekiln", *words, **env)
        done = call(command, full, root / "out")
        assert done.returncode == 12, done.stderr
        assert str(root / "home") in three_lines(done)[0]


def test_a_place_that_may_not_be_written_is_named_before_the_work() -> None:
    with open_folder() as root:
        tinymodel.make(root / "model")
        (root / "home").mkdir()
        os.chown(root / "home", NOBODY, NOBODY)
        words = [*NATIVE, "--quant-block", "0", "--model", str(root / "model")]
        env = {"EDGEKILN_HOME": str(root / "home"), "HOME": str(root / "home")}
        command, full = nobodys_python("-m", "edgekiln", *words, "--out", str(root / "o"), **env)
        done = call(command, full, root)
        lines = three_lines(done)
        assert done.returncode == 12, done.stderr
        assert str(root / "o") in lines[0] and "--out" in lines[-1]
        assert not (root / "home" / "logs").exists(), "no stage was begun"


# -- full disks


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def leave(self, free: int) -> None:
        """Fill it until `free` bytes are left."""
        self._ballast.unlink(missing_ok=True)
        size = max(shutil.disk_usage(self.place).free - free, 0)
        self._ballast.write_bytes(bytes(size))

    def clear(self) -> None:
        """Make room."""
        self._ballast.unlink()


@pytest.fixture
def small_disk(kiln: Kiln, tmp_path: Path) -> Iterator[SmallDisk]:
    """The store, logs and outputs on a file system of 16 MiB."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if call(mount, os.environ).returncode != 0:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        for name in ("store", "logs", "build"):
            (place / name).mkdir()
        (kiln.home / "store").symlink_to(place / "store")
        (kiln.home / "logs").symlink_to(place / "logs")
        (kiln.here / "build").symlink_to(place / "build")
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_will_not_do_is_refused_before_the_work(
    kiln: Kiln, small_disk: SmallDisk, tiny: Path
) -> None:
    done = kiln(*NATIVE, "--model", str(tiny), *LENIENT)
    assert done.returncode == 11, done.stderr
    assert "are needed at" in three_lines(done)[0]
    assert kiln.finished() == [] and kiln.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 40_000, 1_200_000, 1_300_000], ids=lambda n: f"{n} bytes left")
def test_a_disk_that_fills_up_is_named_and_nothing_cut_is_kept(
    kiln: Kiln, small_disk: SmallDisk, tiny: Path, free: int
) -> None:
    small_disk.leave(free)
    words = (*NATIVE, "--model", str(tiny), *LENIENT, "--force")
    done = kiln(*words)
    assert done.returncode == 11, done.stderr
    assert "disk is full" in three_lines(done)[0]
    small_disk.clear()
    kept = kiln.finished()
    done = kiln(*words)
    assert done.returncode == 0, done.stderr
    assert kiln.finished() == STAGES and kiln.left() == []
    assert sum(f"{name}: cached" in done.stderr for name in STAGES) == len(kept)


@pytest.mark.slow
def test_a_bundle_that_does_not_fit_is_not_left_half(
    kiln: Kiln, small_disk: SmallDisk, tiny: Path
) -> None:
    for name in ("store", "logs"):
        (kiln.home / name).unlink()
    small_disk.leave(150_000)
    words = (*NATIVE, "--model", str(tiny), *LENIENT, "--force")
    done = kiln(*words)
    assert done.returncode == 11, done.stderr
    assert "disk is full" in three_lines(done)[0]
    assert not list((small_disk.place / "build").rglob("*llm.mnn*"))
    assert kiln.finished() == STAGES, "the stages were not at fault"
    small_disk.clear()
    assert kiln(*words).returncode == 0
    assert len(list((small_disk.place / "build").rglob("llm.mnn.weight"))) == 1


# -- builds that are killed, and builds side by side


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(kiln: Kiln, tiny: Path) -> None:
    words = (*NATIVE, "--model", str(tiny), *LENIENT)
    # Side by side a kill would be likely to hit both: with little memory they take turns.
    build = kiln.begin(*words, "--memory-limit", "1g")
    pids: set[int] = set()

    def in_the_second() -> bool:
        from edgekiln.executors.guard import descendants

        pids.update(descendants(build.pid))
        began = [work for work in kiln.left() if (work / "scratch").exists()]
        return len(list(kiln.home.glob("store/v1/objects/*/*/entry.json"))) == 1 and bool(began)

    until(in_the_second, "the second stage runs", seconds=120)
    build.kill()
    build.communicate()
    until(lambda: not any(map(alive, pids)), "nothing of it runs")
    assert len(kiln.finished()) == 1 and len(kiln.left()) == 1

    done = kiln(*words)
    assert done.returncode == 0, done.stderr
    assert kiln.left() == [] and kiln.finished() == STAGES
    assert sum(f"{name}: cached" in done.stderr for name in STAGES) == 1


@pytest.mark.slow
@pytest.mark.parametrize("same_place", [True, False])
def test_two_builds_side_by_side_do_each_others_work_once(
    kiln: Kiln, tiny: Path, same_place: bool
) -> None:
    words = (*NATIVE, "--model", str(tiny), *LENIENT)
    places = ["one", "one" if same_place else "two"]
    builds = [kiln.begin(*words, "--out", place) for place in places]
    said = [build.communicate() for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    ran = [err.count(f"{name}: done") for _, err in said for name in STAGES]
    assert sum(ran) == len(STAGES), "each stage ran once, in one of them"
    assert kiln.finished() == STAGES and kiln.left() == []
    trees = [
        {p.relative_to(kiln.here / place): p.read_bytes() for p in _files(kiln.here / place)}
        for place in places
    ]
    assert trees[0] == trees[1] and len(trees[0]) > 4
    assert sorted(p.name for p in kiln.here.iterdir()) == sorted(set(places))


def _files(place: Path) -> list[Path]:
    return [p for p in place.rglob("*") if p.is_file() and p.parent != place]


@pytest.mark.slow
def test_a_stopped_build_says_so_and_leaves_nothing(kiln: Kiln, tiny: Path) -> None:
    build = kiln.begin(*NATIVE, "--model", str(tiny), *LENIENT)
    until(lambda: bool(kiln.left()), "a stage runs", seconds=60)
    build.send_signal(signal.SIGINT)
    _, said = build.communicate(timeout=60)
    assert build.returncode == 130
    assert "finished stages are kept" in said and "Traceback" not in said
    assert kiln.left() == []


@pytest.mark.slow
def test_an_output_damaged_in_the_store_is_made_again(kiln: Kiln, tiny: Path) -> None:
    words = (*NATIVE, "--model", str(tiny), *LENIENT)
    assert kiln(*words).returncode == 0
    (weights,) = kiln.home.glob("store/v1/objects/*/*/out/mnn/llm.mnn.weight")
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    shutil.rmtree(kiln.here / "build")
    done = kiln(*words)
    assert done.returncode == 0, done.stderr
    assert "export: done" in done.stderr and "reference: cached" in done.stderr
    assert weights.read_bytes() == whole, "the same bytes again"
