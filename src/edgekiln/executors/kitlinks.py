"""A toolchain's kits as stages see them: one folder that holds each under its family's name.

In a container that folder is made of mounts, beside the Python environment; natively it is one of
links in the prefix, at a place that stays, since compilers write the paths of what they read into
what they make.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import FetchError, KilnError

if TYPE_CHECKING:
    from edgekiln.kits import Kit
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
    from edgekiln.kits import ready_all

    wanted = list(toolchains)
    with _all_told(wanted):
        ready_all(_kits(wanted), progress)


def settle_kits(toolchains: Iterable[Toolchain], progress: Progress) -> None:
    """Have the last digest of every kit, fetching what has none published; raises likewise."""
    from edgekiln.kits import settle

    wanted = list(toolchains)
    with _all_told(wanted):
        settle(_kits(wanted), progress)


def _kits(toolchains: list[Toolchain]) -> list[Kit]:
    return list({kit.name: kit for toolchain in toolchains for kit in toolchain.kits}.values())


@contextmanager
def _all_told(toolchains: list[Toolchain]) -> Iterator[None]:
    """Turn the first file that cannot be had into all of them."""
    try:
        yield
    except FetchError as error:
        named = [toolchain.asked for toolchain in toolchains if toolchain.kits]
        fetching = " and ".join(f"`kiln toolchains fetch {name} --to DIR`" for name in named)
        raise FetchError(
            f"kits of {' and '.join(named)} could not be fetched; missing: {_absent(toolchains)}",
            why=_first(error),
            remedy=f"check the network; or run {fetching} where there is one, bring DIR here and "
            "say --vendor-dir DIR",
        ) from error


def _absent(toolchains: list[Toolchain]) -> str:
    """Every file that is missing, by kit."""
    from edgekiln.kits import missing

    files: dict[str, list[str]] = {}
    for part in missing(_kits(toolchains)):
        files.setdefault(part.kit, []).append(part.file)
    return "; ".join(f"{kit} ({', '.join(names)})" for kit, names in files.items())


def _first(error: FetchError) -> str:
    """Why the first of them could not be had; an error made of others says so in its `why`."""
    return error.why if isinstance(error.__cause__, KilnError) else f"{error.what}: {error.why}"


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
