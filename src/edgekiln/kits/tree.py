"""A folder's name by its content: the one that git would give a tree of these files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def tree_id(folder: Path) -> str:
    """40 hex digits over the names, modes, links and bytes of all below; times do not count.

    `git add --all --force && git write-tree` in the folder gives the same, where no folder in
    it is empty (git knows none).
    """
    found = _tree(folder)
    return (found or _named(b"tree", b"")).hex()


def _tree(folder: Path) -> bytes | None:
    """The tree's name; None for a folder without any file."""
    rows = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_symlink():
                target = os.fsencode(os.readlink(entry.path))  # noqa: PTH115 - scandir's own path
                rows.append((name, b"120000", _named(b"blob", target)))
            elif entry.is_dir():
                inner = _tree(Path(entry.path))
                if inner is not None:
                    rows.append((name + b"/", b"40000", inner))
            else:
                mode = b"100755" if entry.stat().st_mode & 0o100 else b"100644"
                rows.append((name, mode, _file(Path(entry.path))))
    if not rows:
        return None
    lines = (
        mode + b" " + name.rstrip(b"/") + b"\0" + digest for name, mode, digest in sorted(rows)
    )
    return _named(b"tree", b"".join(lines))


def _file(path: Path) -> bytes:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def _named(kind: bytes, body: bytes) -> bytes:
    text = b"%s %d\0" % (kind, len(body)) + body
    return hashlib.sha1(text, usedforsecurity=False).digest()
