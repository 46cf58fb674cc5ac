"""Paths as container engines want to hear them, for each kind of host."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest

from edgekiln.engine.paths import engine_path
from edgekiln.errors import UsageError


def test_linux_and_macos_paths_are_left_alone() -> None:
    assert engine_path(PurePosixPath("/Users/li/models"), "docker") == "/Users/li/models"
    assert engine_path(PurePosixPath("/mnt/c/models"), "podman") == "/mnt/c/models"


def test_docker_desktop_takes_drive_paths_as_they_are() -> None:
    path = PureWindowsPath(r"C:\Users\li\My models")
    assert engine_path(path, "docker") == r"C:\Users\li\My models"


def test_a_podman_machine_sees_drives_under_mnt() -> None:
    path = PureWindowsPath(r"D:\models\Qwen3")
    assert engine_path(path, "podman") == "/mnt/d/models/Qwen3"


@pytest.mark.parametrize("path", [r"\\server\share\models", r"models\x", r"\models"])
def test_what_has_no_drive_letter_is_refused(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        engine_path(PureWindowsPath(path), "docker")
    assert "drive" in caught.value.remedy
