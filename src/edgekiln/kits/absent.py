"""What an offline build would have to ask a network for: all of it, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgekiln import offline
from edgekiln.digest import digest_file
from edgekiln.errors import DigestError
from edgekiln.fetch import vendored
from edgekiln.kits import is_ready, shown
from edgekiln.kits.shown import Needed
from edgekiln.toolchain.debs import find_debs

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.executors.base import Executor
    from edgekiln.toolchain import Toolchain

_NOT_IN_PREFIXES = ("base", "package")


def refuse_build(executor: Executor, toolchains: Iterable[Toolchain]) -> None:
    """As `refuse`, for all that a build still has to make ready: images or prefixes, and kits."""
    if not offline.enabled():
        return
    from edgekiln.engine import find_engine

    lacking = [each for each in toolchains if not executor.ready(each)]
    if executor.name == "docker":
        refuse(lacking, find_engine())
    elif executor.name == "native":
        refuse(lacking, None)


def refuse(toolchains: Iterable[Toolchain], engine: Engine | None, *, kits: bool = True) -> None:
    """Offline: raise FetchError that names every file these toolchains lack, with its digest.

    With an `engine` images are meant, without one prefixes, which have no base and no packages.
    Raises DigestError for a file that is there in other bytes.
    """
    if not offline.enabled():
        return
    every = list(toolchains)
    lacking = {row.name: row for each in every for row in _lacking(each, engine, kits=kits)}
    if not lacking:
        return
    rows = list(lacking.values())
    for row in rows:
        _refuse_other(row)
    for each in every:
        debs = [deb for deb in each.lock.debs if f"{deb.name} {deb.version}" in lacking]
        find_debs(debs).refuse(debs)
    names = ",".join(dict.fromkeys(each.asked for each in every))
    raise offline.missing(
        f"{_count(rows)} not here, and --offline asks nobody",
        "; ".join(map(_told, rows)),
        f"on a machine with a network: kiln toolchains fetch {names} --to DIR; then --vendor-dir "
        "DIR here",
    )


def _lacking(toolchain: Toolchain, engine: Engine | None, *, kits: bool) -> Iterator[Needed]:
    done = all(map(is_ready, toolchain.kits))
    for row in shown.needed(toolchain, engine, prefix=engine is None):
        if row.where or (engine is None and row.kind in _NOT_IN_PREFIXES):
            continue
        if not (row.kind.startswith("kit ") and (done or not kits)):
            yield row


def _refuse_other(row: Needed) -> None:
    """Raise DigestError where the vendor folder has a file of that name in other bytes."""
    path = vendored(row.name)
    pinned = row.digest.partition(":")[2]
    if path is None or not row.digest.startswith("sha256:"):
        return
    found = digest_file(path)
    if found != pinned:
        raise DigestError(
            f"{row.name} is not the {row.kind} that was locked",
            why=f"sha256 is {found}, locked is {pinned}; it came from {path}",
            remedy="remove it, and fill the folder again",
        )


def _count(rows: Sequence[Needed]) -> str:
    return f"{rows[0].name} is" if len(rows) == 1 else f"{len(rows)} files are"


def _told(row: Needed) -> str:
    places = " or ".join(row.places)
    return f"{row.name} ({row.digest}, from {places})" if places else f"{row.name} ({row.digest})"
