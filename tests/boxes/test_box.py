"""The box itself: it is as rented ones are, and edgekiln sets itself up in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekiln.engine import Engine
from tests.boxes import kit
from tests.boxes.conftest import Rent
from tests.boxes.kit import Wanted

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_edgekiln_sets_itself_up_without_a_network(
    engine: Engine, plain_image: str, vendor: Path
) -> None:
    wanted = Wanted(vendor=vendor, network="none", user=kit.RENTER)
    with kit.rented(engine, plain_image, wanted) as box:
        done = box.kiln("toolchains", "list")
    assert done.returncode == 0, done.stderr
    assert "mnn" in done.stdout and "setting up .venv" in done.stderr


def test_nothing_of_a_machine_is_to_be_had(rent: Rent) -> None:
    box = rent(memory="2g")
    for words in (("mount", "-t", "tmpfs", "x", "/mnt"), ("unshare", "--net", "true")):
        assert box.run(*words).returncode != 0, words
    assert "docker" not in box.must("ls", "/usr/bin")
    assert box.must("id", "-u") == "0"


def test_a_box_is_as_large_as_it_was_asked_for(rent: Rent) -> None:
    box = rent(disk="1g", masked=("/proc/meminfo",), read_only_home=True, user=kit.RENTER)
    free = int(box.must("stat", "--file-system", "--format=%b", kit.DATA)) * 4096
    assert free == 1 << 30
    assert box.must("cat", "/proc/meminfo") == ""
    assert "Read-only" in box.run("touch", f"/home/{kit.RENTER}/x").stderr
    assert box.must("id", "-un") == kit.RENTER


def test_what_is_brought_in_is_the_users_and_comes_out_again(rent: Rent, tmp_path: Path) -> None:
    box = rent(user=kit.RENTER)
    note = tmp_path / "note.json"
    note.write_text(json.dumps([1]))
    box.copy_in(note, "/home/renter/note.json")
    assert box.must("stat", "--format=%U", "/home/renter/note.json") == kit.RENTER
    assert json.loads(box.copy_out("/home/renter/note.json", tmp_path / "out").read_text()) == [1]
