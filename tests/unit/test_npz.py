"""Arrays in a file whose bytes depend on the arrays alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).parents[2] / "scripts"
MAKE = """
import sys
from pathlib import Path
import npz
import numpy as np
rows = np.arange(3000, dtype=np.float32).reshape(3, -1)
npz.write(Path(sys.argv[1]), rows=rows, turned=rows.T[:5], ids=np.ones(3))
"""
# Python 3.10.13 with numpy 1.23.5, and 3.11.2 and 3.11.7 with 2.4.6, all wrote this.
SHA256 = "96cc083045dbc5c12ac43b9e488cc141ff5d67760f1ed82ebf2a4847c07e1162"


def made(file: Path) -> bytes:
    """The file that a program of this Python writes, as stages do."""
    words = [sys.executable, "-c", MAKE, str(file)]
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file.read_bytes()


def test_numpy_reads_what_was_written(tmp_path: Path) -> None:
    made(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert sorted(found) == ["ids", "rows", "turned"]
        assert found["rows"].dtype == np.float32 and found["rows"].shape == (3, 1000)
        assert (found["turned"] == found["rows"].T[:5]).all()


def test_the_bytes_are_those_of_every_other_python(tmp_path: Path) -> None:
    assert hashlib.sha256(made(tmp_path / "a.npz")).hexdigest() == SHA256


def test_nothing_of_the_moment_or_the_user_is_in_it(tmp_path: Path) -> None:
    made(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        members = archive.infolist()
    assert [m.filename for m in members] == ["rows.npy", "turned.npy", "ids.npy"]
    assert {(m.date_time, m.extra, m.external_attr >> 16) for m in members} == {
        ((1980, 1, 1, 0, 0, 0), b"", 0o644)
    }
