"""A toolchain's kits as stages see them: one folder that holds each under its family's name.

In a container that folder is made of mounts, beside the Python environment; natively it is one of
links in the prefix, at a place that stays, since compilers write the paths of what they read into
what they make.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import FetchError

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain


def kits_ready(toolchain: Toolchain) -> bool:
    """Whether every kit of the toolchain is unpacked."""
    if not toolchain.kits:
        return True
    from edgekiln.kits import is_ready

    return all(map(is_ready, toolchain.kits))


def make_kits(toolchains: Iterable[Toolchain], progress: Progress) -> None:
    """Have every kit of the toolchains unpacked; see `kits.ready_all` for what it raises.

    A FetchError names everything that is still missing, sources too, and how to bring it.
    """
    wanted = list(toolchains)
    kits = {kit.name: kit for toolchain in wanted for kit in toolchain.kits}.values()
    if not kits:
        return
    from edgekiln.kits import missing, ready_all

    try:
        ready_all(kits, progress)
    except FetchError as error:
        asked = ", ".join(toolchain.asked for toolchain in wanted if toolchain.kits)
        files = ", ".join(part.file for part in missing(kits))
        raise FetchError(
            f"what {asked} needs could not be fetched; missing: {files}",
            why=f"{error.what}: {error.why}" if error.why else error.what,
            remedy="check the network; or run "
            + " and ".join(f"`kiln toolchains fetch {t.asked} --to DIR`" for t in wanted if t.kits)
            + " where there is one, bring DIR here and say --vendor-dir DIR",
        ) from error


def link_kits(toolchain: Toolchain, prefix: Path) -> Path:
    """The folder of links in `prefix`, made where it is missing; each variant has its own."""
    folder = prefix / "kits" / toolchain.digest[:12]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".links-", dir=folder.parent))
        for kit in toolchain.kits:
            (fresh / kit.family).symlink_to(kit.path)
        fresh.chmod(0o755)
        try:
            fresh.rename(folder)
        except OSError:  # another stage was first
            for link in fresh.iterdir():
                link.unlink()
            fresh.rmdir()
    return folder
