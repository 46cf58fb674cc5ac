"""One holder at a time, between processes: an advisory lock file that dies with its holder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock at `path`; `on_wait` is called once if somebody else has it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether some living process holds the lock at `path`."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(str(path)).acquire(timeout=0):
            return False
    except Timeout:
        return True
