"""Packages of the distribution for a vendor folder: a toolchain's, and those its base is made of.

Each is wanted as it was locked. They are taken from where this machine has them, then from the
addresses that EDGEKILN_MIRRORS names, then from what apt was told: mirror or snapshot.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekiln.errors import FetchError, KilnError
from edgekiln.fetch import fetch
from edgekiln.kits.making import mirrors
from edgekiln.progress import Progress
from edgekiln.toolchain import Base
from edgekiln.toolchain.debs import Found, file_name, find_debs, looked_into, names_of, refusal
from edgekiln.toolchain.lock import Deb
from edgekiln.toolchain.wheels import put
from edgekiln.transfer import Pin
from edgekiln.upstream import CHANGED
from edgekiln.upstream.debs import View, bring

_BRINGING = ".debs"


def fill(
    base: Base,
    debs: Sequence[Deb],
    folder: Path,
    progress: Progress,
    failures: list[tuple[str, KilnError]],
) -> list[Path]:
    """Have the packages in the folder; those that cannot be had are put to `failures`."""
    found = _gathered(debs, folder)
    lacking = [deb for deb in debs if deb not in found.here]
    _from_mirrors(lacking, folder, progress)
    here = find_debs(lacking, [folder]).here
    lacking = [deb for deb in lacking if deb not in here]
    if lacking:
        progress.update(0, None, f"{len(lacking)} packages of the distribution")
        try:
            failures += _by_apt(base, lacking, folder, progress)
        except KilnError as error:
            failures += [(f"{deb.name} {deb.version}", error) for deb in lacking]
    return list(find_debs(debs, [folder]).here.values())


def _gathered(debs: Sequence[Deb], folder: Path) -> Found:
    """What is in the folder, together with what lies elsewhere on this machine."""
    places = [folder, folder / _BRINGING, *looked_into()]
    found = find_debs(debs, [place for place in places if place.is_dir()])
    for deb in debs:
        path = found.here.get(deb)
        if path is not None and path.parent != folder:
            target = folder / file_name(deb, path)
            target.unlink(missing_ok=True)
            put(path, target)
    return found


def _from_mirrors(debs: Sequence[Deb], folder: Path, progress: Progress) -> None:
    """Those that an address of EDGEKILN_MIRRORS has, by their files' names."""
    for deb in debs:
        for name in names_of(deb):
            places = mirrors(name)
            if not places:
                return
            pin = Pin(sha256=deb.sha256, size=deb.size)
            try:
                fetch(places, folder / name, pin=pin, progress=progress, retries=())
                break
            except KilnError:
                continue  # apt is asked next


def _by_apt(
    base: Base, debs: Sequence[Deb], folder: Path, progress: Progress
) -> Iterator[tuple[str, KilnError]]:
    """Let apt bring them; yields what is not served any more, or is served in other bytes."""
    scratch = folder / _BRINGING
    scratch.mkdir(exist_ok=True)
    seen = bring(base, debs, scratch, progress)
    found = find_debs(debs, [scratch])
    for deb in debs:
        if path := found.here.get(deb):
            path.replace(folder / file_name(deb, path))
            continue
        yield f"{deb.name} {deb.version}", _lacking(deb, seen, found)
    shutil.rmtree(scratch, ignore_errors=True)


def _lacking(deb: Deb, seen: View, found: Found) -> KilnError:
    """Why a package did not come: dropped, of other bytes, or cut off on the way."""
    told, served = seen.ask(deb), seen.served(deb)
    wrong = next((each for each in found.wrong if each.deb == deb), None)
    if told.state == CHANGED:
        return refusal(deb, found=served[0].sha256, place=told.place)
    why = told.why or (f"what came has sha256 {wrong.sha256}" if wrong else "it did not arrive")
    return FetchError(
        f"{told.place} did not give {deb.name} {deb.version}",
        why=f"{why}; locked is sha256 {deb.sha256}",
        remedy="a snapshot of the archive may have it (EDGEKILN_APT_SNAPSHOT); "
        "or lock the packages of today: kiln toolchains lock",
    )
