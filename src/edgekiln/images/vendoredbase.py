"""Bases in a vendor folder: as the locked packages they are made of, and as an image saved whole.

The packages are held against the lock, so they count more; making a base of them takes Debian or
Ubuntu, and root. The saved image is held against the folder's SHA256SUMS only.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import images, offline
from edgekiln.digest import digest_file
from edgekiln.errors import ImageError
from edgekiln.fetch import vendored
from edgekiln.kits import firstuse
from edgekiln.progress import Progress
from edgekiln.toolchain import Base
from edgekiln.toolchain.debs import find_debs
from edgekiln.toolchain.lock import BaseLock

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.images.base import ReadyBase


def archive_name(base: Base) -> str:
    """How a saved base is called in a vendor folder; beside it NAME.json says where it is from."""
    return f"edgekiln-base-{base.name}-{base.digest[:12]}.tar"


def from_folder(
    engine: Engine, base: Base, lock: BaseLock, reference: str, progress: Progress
) -> ReadyBase | None:
    """The base out of the vendor folder; None where that has neither its packages nor the image."""
    from edgekiln.images.base import from_packages
    from edgekiln.toolchain.wheels import vendor

    if not vendor():
        return None
    here = find_debs(lock.debs, vendor()).here
    if len(here) == len(lock.debs) and _can_make():
        progress.note(f"making {lock.definition.summary} from the vendor folder's packages")
        debs = {deb.name: path for deb, path in here.items()}
        return from_packages(engine, base, lock, reference, progress, debs=debs)
    saved = vendored(archive_name(base))
    return _loaded(engine, base, saved, reference, progress) if saved else None


def has(base: Base, lock: BaseLock) -> str:
    """Where on this machine the base could be had from without a network; "" where nowhere."""
    from edgekiln.toolchain.wheels import vendor

    if saved := vendored(archive_name(base)):
        return str(saved)
    complete = vendor() and len(find_debs(lock.debs, vendor()).here) == len(lock.debs)
    return str(vendor()[0]) if complete and _can_make() else ""


def refuse_offline(base: Base, lock: BaseLock) -> None:
    """Offline: raise FetchError that says what of the base the vendor folder lacks."""
    if not offline.enabled():
        return
    found = find_debs(lock.debs)
    lacking = [deb for deb in lock.debs if deb not in found.here]
    found.refuse(lacking)
    names = ", ".join(f"{deb.name} {deb.version}" for deb in lacking)
    why = f"of its packages these are missing: {names}" if lacking else _why_not()
    raise offline.missing(
        f"the base {base.name} is not here, and --offline asks nobody for it", why
    )


def save(engine: Engine, base: Base, folder: Path, progress: Progress) -> list[Path]:
    """Put the base's image into a folder, where the engine has it; returns the files."""
    from edgekiln.images.base import kept_file, reference_of

    target, record = folder / archive_name(base), kept_file(base)
    reference = reference_of(base)
    note = target.with_name(f"{target.name}.json")
    if not target.is_file() or not note.is_file():
        if not record.is_file() or not engine.image(reference):
            progress.note(f"{reference} is not in the engine: no image of the base is saved")
            return []
        progress.update(0, None, f"saving {target.name}")
        fresh = target.with_name(f".{target.name}.part-{os.getpid()}")
        try:
            images.run(engine, ["save", "--output", str(fresh), reference])
            fresh.chmod(0o644)
            shutil.copyfile(record, note)
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    firstuse.list_in(folder, {path.name: digest_file(path) for path in (target, note)})
    return [target, note]


def _can_make() -> bool:
    """Whether mmdebstrap can make a base here."""
    linux = sys.platform == "linux" and bool(shutil.which("mmdebstrap"))
    return linux and os.geteuid() == 0


def _why_not() -> str:
    return "its packages are here, but making it of them takes mmdebstrap and root; no saved image"


def _loaded(
    engine: Engine, base: Base, saved: Path, reference: str, progress: Progress
) -> ReadyBase:
    """The saved image in the engine. Raises DigestError for a damaged file, ImageError."""
    from edgekiln.images.base import ReadyBase, reference_of

    note = saved.with_name(f"{saved.name}.json")
    for path in (saved, note):
        if not firstuse.listed(saved.parent, path.name):
            why = f"{firstuse.SUMS} beside it does not list it"
            raise ImageError(f"{path} cannot be checked", why=why, remedy="fill the folder again")
        firstuse.check_listed(path)
    progress.update(0, None, f"loading {saved.name}")
    images.run(engine, ["load", "--input", str(saved)])
    own = reference_of(base)
    if engine.image(own) is None:
        raise ImageError(f"{saved} does not hold {own}", remedy="fill the folder again")
    if reference != own:
        images.run(engine, ["tag", own, reference])
    told = json.loads(note.read_bytes())
    return ReadyBase(**{**told, "reference": reference, "drift": tuple(told["drift"])})
