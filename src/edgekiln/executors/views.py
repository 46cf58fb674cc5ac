"""Input folders as containers can be given them.

A folder may be a farm of links: the Hugging Face cache keeps a model's files as
snapshots/COMMIT/NAME -> ../../blobs/DIGEST. Mounted as it is, its links would point nowhere
inside the container. Such a folder is given as a skeleton of empty files, with each real file
mounted over its place: nothing is copied, and the file systems need not be the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgekiln.digest import walk


def places(target: str, source: Path, skeleton: Path) -> Iterator[tuple[str, Path]]:
    """What to mount where, so that `source` is whole at `target`.

    `skeleton` is a path for a folder to be made, if one is needed.
    """
    source = source.resolve()
    if not source.is_dir() or not leads_out(source):
        yield target, source
        return
    skeleton.mkdir(parents=True)
    yield target, skeleton
    for file in walk(source):
        place = skeleton / file.relative
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        yield f"{target}/{file.relative}", file.path.resolve()


def leads_out(folder: Path) -> bool:
    """Whether a link in the (resolved) folder would not hold if the folder lay elsewhere."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not _holds(path, folder):
                return True
    return False


def _holds(link: Path, folder: Path) -> bool:
    """Whether a link's own words stay in the folder, step by step: one that goes out and comes
    back by the folder's name would not hold either."""
    target = link.readlink()
    depth = len(link.relative_to(folder).parts) - 1
    for part in target.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return not target.is_absolute()
