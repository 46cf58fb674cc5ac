"""A path of this machine as its container engine wants to hear it."""

from __future__ import annotations

from pathlib import PurePath, PureWindowsPath

from edgekiln.errors import UsageError


def engine_path(path: PurePath, kind: str) -> str:
    """`path` for a bind mount by an engine of `kind` ('docker' or 'podman').

    Linux and macOS share their paths with the engine as they are. On Windows Docker Desktop
    takes drive paths as Windows writes them; a Podman machine sees drive C: at /mnt/c. A network
    share reaches neither.
    """
    if not isinstance(path, PureWindowsPath):
        return str(path)
    drive = path.drive
    if len(drive) != 2 or not path.is_absolute():
        raise UsageError(
            f"{path} cannot be shared with the container engine",
            why="only folders on a drive with a letter can be mounted",
            remedy="copy it to a local drive, or give the share a drive letter",
        )
    if kind == "podman":
        return "/".join(("/mnt", drive[0].lower(), *path.parts[1:]))
    return str(path)
