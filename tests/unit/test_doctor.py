"""Doctor: refusals before the work, with the figures."""

from __future__ import annotations

from pathlib import Path

from edgekiln.doctor import check_disk, check_memory, existing, usable_cpus, usable_memory
from edgekiln.errors import DiskError, OutOfMemoryError


def test_enough_memory_is_fine() -> None:
    assert check_memory(1 << 30, 2 << 30, "stage export").ok


def test_too_little_memory_is_refused_with_both_figures() -> None:
    check = check_memory(16 * 10**9, 2 * 10**9, "stage export")
    assert isinstance(check.error, OutOfMemoryError)
    assert "16.0 GB" in check.error.what and "2.0 GB" in check.error.what


def test_needs_on_one_disk_are_added_up(tmp_path: Path) -> None:
    places = [(tmp_path / "a", 1, "the store"), (tmp_path / "b" / "c", 2, "the bundle")]
    (check,) = check_disk(places)
    assert check.ok
    assert "3 B needed for the store, the bundle" in check.found


def test_a_disk_that_would_fill_is_refused(tmp_path: Path) -> None:
    (check,) = check_disk([(tmp_path, 1 << 60, "the store")])
    assert isinstance(check.error, DiskError)


def test_existing_is_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert existing(tmp_path / "x" / "y") == tmp_path


def test_this_machine_has_something() -> None:
    assert usable_cpus() >= 1
    assert usable_memory() >= 256 << 20
