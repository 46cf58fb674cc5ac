"""Paths of an image in a folder of this machine: read as if that folder were the root.

A member's path may lead through links that the image itself holds (/lib is one to /usr/lib), and
an image from elsewhere may hold links that lead out. So no link is ever followed by the system:
each part of a path is looked at, and a link's target is read from the folder on.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from edgekiln.errors import ImageError

_RINGS = 40  # as many links as Linux follows in one path


class Inside:
    """A folder that is a root. Nobody else may change it meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Path] = {}

    def place(self, name: str) -> Path | None:
        """Where a member lies; the folders around it are made. None for the root itself.

        Raises ImageError for a path that leads out, or through what is no folder.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise ImageError(
                f"an image holds {name!r}, which leads out of it",
                why="it would write outside of its folder",
                remedy="do not use it: no honest image holds such a path",
            )
        if not parts:
            return None
        folder = "/".join(parts[:-1])
        found = self._known.get(folder)
        if found is None:
            found = self._known[folder] = self._resolved(parts[:-1], name)
        return found / parts[-1]

    def _resolved(self, parts: list[str], name: str) -> Path:
        """The real folder of that path below the root, made where it is missing."""
        left, at, links = parts[::-1], self.root, 0
        while left:
            part = left.pop()
            if part == "..":  # of a link; above the root there is the root
                at = at.parent if at != self.root else at
                continue
            step = at / part
            try:
                mode = step.lstat().st_mode
            except FileNotFoundError:
                step.mkdir(mode=0o755)
                at = step
                continue
            if stat.S_ISLNK(mode):
                links += 1
                if links > _RINGS:
                    raise ImageError(f"{name} leads through a ring of links")
                target = str(step.readlink())
                at = self.root if target.startswith("/") else at
                left += [each for each in target.split("/")[::-1] if each not in ("", ".")]
            elif stat.S_ISDIR(mode):
                at = step
            else:
                raise ImageError(f"{name} leads through {part}, which is no folder")
        return at

    def folder(self, place: Path) -> None:
        """Make a folder, or keep the one that is there; what else is there goes."""
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            place.mkdir()
            return
        if not stat.S_ISDIR(mode):
            self.remove(place)
            place.mkdir()

    def remove(self, place: Path) -> None:
        """Take away what is there, if anything is; a link and never what it leads to."""
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(place)
        else:
            place.unlink()
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._known.clear()  # some path may have led through it
