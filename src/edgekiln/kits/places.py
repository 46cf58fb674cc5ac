"""What the file system that kits are unpacked onto can hold: names that differ in case, links."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekiln.errors import AccessError, ToolchainError

_REMEDY = "set EDGEKILN_HOME to a folder on a Linux file system (on Windows: inside WSL 2)"


class Names:
    """The names that were unpacked, where the file system takes `Aa` and `aA` for one."""

    def __init__(self, folder: Path) -> None:
        self._seen: dict[str, str] | None = {} if folds(folder) else None

    def check(self, path: str) -> None:
        """Raise ToolchainError for a path that would overwrite another: Linux's own headers do."""
        if self._seen is None:
            return
        other = self._seen.setdefault(path.casefold(), path)
        if other != path:
            raise ToolchainError(
                f"{path} and {other} are one file here",
                why="this file system does not tell upper and lower case apart",
                remedy=_REMEDY,
            )


def folds(folder: Path) -> bool:
    """Whether names that differ in case only are one name in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".case-", dir=folder.parent) as scratch:
        (Path(scratch) / "name").touch()
        return (Path(scratch) / "NAME").exists()


def link(place: Path, target: str) -> None:
    """Make a symbolic link. Raises AccessError where this user or system makes none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(target)
    except OSError as error:
        raise AccessError(
            f"{place} cannot be made a link",
            why=error.strerror or str(error),
            remedy=_REMEDY,
        ) from error
