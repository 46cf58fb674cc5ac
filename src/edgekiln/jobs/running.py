"""The process of a job: a `kiln` that no closed terminal ends, and that leaves its exit code.

    python running.py FOLDER LOCK WORD...

LOCK is a descriptor on which the job's lock is held; it is let go of when this process ends,
however it does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from edgekiln.executors import owners
from edgekiln.jobs import STOPPED, write


def main(arguments: Sequence[str]) -> int:
    """Run a command line as a job, and write down how it ended."""
    place, words = Path(arguments[0]), list(arguments[2:])
    os.set_inheritable(int(arguments[1]), False)  # a child that is left behind is not the job
    _heed_signals()
    write(place / "process.json", {"process": owners.this_process()})
    code = 1
    try:
        code = _run(words)
    finally:
        write(place / "ended.json", {"exit_code": code, "time": time.time()})
    return code


def _heed_signals() -> None:
    """A terminal that goes away is nothing; what cancels a job does so from the first moment on."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _run(words: Sequence[str]) -> int:
    from edgekiln.__main__ import main as kiln

    try:
        kiln(words)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
