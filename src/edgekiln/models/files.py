"""Single files of a model directory: there, readable, not empty, and not a Git-LFS pointer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekiln.errors import AccessError, ModelError

_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024  # the Git-LFS specification's own bound


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the system says about `path` into an error with a remedy."""
    try:
        yield
    except PermissionError as error:
        raise AccessError(
            f"cannot read {error.filename or path}",
            why="permission denied",
            remedy="let your user read the model's folder and its files (chmod -R u+rX)",
        ) from error
    except OSError as error:
        raise AccessError(
            f"cannot read {error.filename or path}",
            why=error.strerror or str(error),
            remedy="see that your user may read it",
        ) from error


def check(path: Path) -> Path:
    """The same path, when it is a file with content of its own."""
    with readable(path):
        if not path.is_file():
            raise ModelError(
                f"{path} is missing",
                remedy="get the model again, all of its files",
            )
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    if not size:
        raise ModelError(f"{path} is empty", why="it has 0 bytes", remedy="get that file again")
    if start == _POINTER and size <= _LARGEST_POINTER:
        raise ModelError(
            f"{path} is a Git-LFS pointer",
            why="the repository was cloned without its large files",
            remedy=f"install git-lfs, then run: git -C {path.parent} lfs pull",
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A checked file's JSON mapping."""
    check(path)
    try:
        with readable(path):
            value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(
            f"{path} is not valid JSON", why=str(error), remedy="get that file again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} is not a JSON mapping",
            why=f"found {type(value).__name__}",
            remedy="get that file again",
        )
    return value


def check_json_ends(path: Path) -> Path:
    """A large JSON mapping that begins and ends as one: finds a file cut short without parsing."""
    check(path)
    with readable(path), path.open("rb") as file:
        start = file.read(64).lstrip()[:1]
        file.seek(max(0, path.stat().st_size - 64))
        end = file.read().rstrip()[-1:]
    if (start, end) != (b"{", b"}"):
        raise ModelError(
            f"{path} is damaged",
            why="it does not begin and end as a JSON mapping",
            remedy="get that file again",
        )
    return path
