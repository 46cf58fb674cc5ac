"""A base that is made of packages, broken off half-way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import USERS_HOME

MAKE = """
import tempfile
from pathlib import Path
from edgekiln.images import base
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
lock = load_toolchain("qnn").base.lock
with tempfile.TemporaryDirectory(dir="{place}") as scratch:
    base.bootstrap(lock.definition, Path(scratch), Silent())
"""


def _below(place: Path) -> list[str]:
    """What is mounted below a folder, as anybody on this machine sees it."""
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(place) in line]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mmdebstrap needs root")
def test_a_base_that_is_broken_off_leaves_no_mounts_and_no_files(tmp_path: Path) -> None:
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed: bases come from a registry or a folder here")
    env = {**os.environ, "EDGEKILN_HOME": str(USERS_HOME)}
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKE.format(place=tmp_path)], env=env, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/mmdebstrap.*/usr")) and maker.poll() is None:
        assert time.monotonic() < deadline, "no package was unpacked"
        time.sleep(0.1)
    maker.send_signal(signal.SIGINT)  # to it alone, as `kill` sends it
    assert maker.wait(timeout=60) != 0
    assert _below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
