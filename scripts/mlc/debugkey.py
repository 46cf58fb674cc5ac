"""Stage: a keystore with a fresh debug key, by Java's keytool.

No input, no parameter. Output: `key` with debug.keystore, opened as every debug keystore of
Android is. Kept in the store, it is the same for every later build: updates install over.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import apksign
from stagekit import Stage, main


def run(stage: Stage) -> None:
    """Make it."""
    out = stage.output("key")
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        apksign.make_debug_keystore(out / "debug.keystore", Path(scratch))
    stage.note("made a debug key: apps signed with it install over each other")


if __name__ == "__main__":
    main(run)
