"""Images held against what the lock says that they came to, and built twice to see whether they do.

The lock has an image's digests by what it was made of: what is installed, the files of images/, and
the base. Its listing, file by file, is too large for a lock; it lies in EDGEKILN_HOME/images where
the image was built, and can be carried elsewhere by hand or in a vendor folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import images
from edgekiln.engine import fixedtimes
from edgekiln.errors import DifferenceError, UsageError
from edgekiln.home import home
from edgekiln.images import content
from edgekiln.images.base import once_more
from edgekiln.images.content import Difference, Listing
from edgekiln.images.exports import streamed
from edgekiln.report import Reporter, Task
from edgekiln.toolchain import folder
from edgekiln.toolchain.lock import ImageDigests, Lock, read_lock, write_lock
from edgekiln.verify.look import diffoscope, first_byte

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain

_SHOWN = 20
_LOOKED_INTO = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image as it is. `manifest` is "" where the builder does not fix times: `why` says it."""

    digests: ImageDigests
    listing: Listing
    why: str = ""


def look(engine: Engine, toolchain: Toolchain, image: str, base: str) -> Found:
    """Read all of an image that stands on `base` (its origin)."""
    with streamed(engine, image) as stream:
        listing = content.of_tar(stream)
    why = fixedtimes.why_not(engine)
    known = engine.image(image) or {}
    return Found(
        digests=ImageDigests(
            installed=toolchain.installed,
            recipe=images.recipe_digest(toolchain),
            base=base,
            content=content.digest(listing),
            # In containerd's store an image's id is its manifest's digest.
            manifest="" if why else str(known.get("Id", "")),
        ),
        listing=listing,
        why=why,
    )


def recorded(toolchain: Toolchain, found: ImageDigests) -> ImageDigests | None:
    """What the lock has of an image made of the very same things; None where it has nothing."""
    return toolchain.lock.image_of(found.installed, found.recipe, found.base)


def hold(toolchain: Toolchain, found: Found, reporter: Reporter) -> None:
    """Hold an image against the lock, and tell.

    Raises DifferenceError where the lock has other digests, with the files that differ as far as
    the recorded listing is at hand.
    """
    known = recorded(toolchain, found.digests)
    if known is None:
        reporter.result("recorded", None, _nothing_recorded(toolchain))
        return
    if known.content != found.digests.content:
        raise _other_content(toolchain, known, found, reporter)
    keep(toolchain, found)
    if known.manifest and found.digests.manifest not in ("", known.manifest):
        raise DifferenceError(
            f"{images.tag(toolchain)} has another manifest than the lock has",
            why=f"it is {found.digests.manifest}, recorded is {known.manifest}; every file is the "
            "same: labels, times or history are not",
            remedy=f"kiln verify images {toolchain.name} builds it anew, and twice",
        )
    reporter.result("recorded", asdict(known), "as the lock has it")


def _nothing_recorded(toolchain: Toolchain) -> str:
    old = len(toolchain.lock.images)
    told = f"{toolchain.name}.lock.json has no digests of this image"
    if old:
        told += f" ({old} of images of another base, or that older files of images/ made)"
    return f"{told}; --record writes them there"


def _other_content(
    toolchain: Toolchain, known: ImageDigests, found: Found, reporter: Reporter
) -> DifferenceError:
    """The error for other files than recorded; which they are is told before."""
    what = f"{images.tag(toolchain)} is not the image that its lock tells of"
    why = f"its content is sha256 {found.digests.content}, recorded is {known.content}"
    path = listing_file(toolchain, known.content)
    if path is None:
        name = listing_name(toolchain, known.content)
        keep(toolchain, found)
        return DifferenceError(
            what,
            why=f"{why}; which files differ cannot be told without {name}",
            remedy=f"copy that file into {home() / 'images'} or a vendor folder, from a machine "
            f"where `kiln images build {toolchain.name} --repro` says: as the lock has it",
        )
    changes = content.differences(content.read(path, known.content), found.listing)
    tell(changes, reporter)
    return DifferenceError(
        what,
        why=f"{why}; {len(changes)} names differ, the first is {changes[0].name}",
        remedy=f"kiln verify images {toolchain.name} tells whether two builds here are the same",
    )


def tell(changes: Sequence[Difference], reporter: Reporter) -> None:
    """The names that differ, as far as a person reads."""
    for change in changes[:_SHOWN]:
        reporter.result("differs", asdict(change), f"differs: {change.text}")
    if len(changes) > _SHOWN:
        reporter.result("more", len(changes), f"… and {len(changes) - _SHOWN} more names")


def listing_name(toolchain: Toolchain, digest: str) -> str:
    """What the file is called that lists an image of this content."""
    return f"{images.file_name(toolchain)}-{digest[:12]}.list.zst"


def listing_file(toolchain: Toolchain, digest: str) -> Path | None:
    """That file where it is at hand: in EDGEKILN_HOME/images, or the vendor folder."""
    from edgekiln.fetch import vendored

    name = listing_name(toolchain, digest)
    own = home() / "images" / name
    return own if own.is_file() else vendored(name)


def keep(toolchain: Toolchain, found: Found) -> Path:
    """Write the image's listing beside the user's other things; returns the file."""
    path = home() / "images" / listing_name(toolchain, found.digests.content)
    if not path.is_file():
        content.write(found.listing, path)
    return path


def record(toolchain: Toolchain, found: Found, drift: Sequence[str]) -> Path:
    """Write an image's digests into the lock, and its listing beside; returns the lock's file.

    A manifest that another builder's record has stays, where the content is the same. Records of
    what no longer is, are dropped. Raises UsageError for an image that is not as locked.
    """
    refuse_unlocked(toolchain, drift)
    path = folder() / f"{toolchain.name}.lock.json"
    lock = read_lock(Lock, path, remedy=f"kiln toolchains lock {toolchain.name}")
    mine, now = found.digests, recorded(toolchain, found.digests)
    if not mine.manifest and now and now.content == mine.content:
        mine = replace(mine, manifest=now.manifest)
    current = (mine.installed, mine.recipe)
    others = [i for i in lock.images if (i.installed, i.recipe) == current and i.base != mine.base]
    every = sorted([*others, mine], key=lambda image: image.base)
    write_lock(replace(lock, images=tuple(every)), path)
    keep(toolchain, found)
    return path


def refuse_unlocked(toolchain: Toolchain, drift: Sequence[str]) -> None:
    """Raise UsageError for an image that holds something else than its lock, or on another base."""
    remedy = "build it from what was locked: a folder of `kiln toolchains fetch`, a snapshot; or "
    if drift:
        raise UsageError(
            f"digests of {toolchain.name} are not recorded: it is newer than its lock",
            why="; ".join(drift[:3]),
            remedy=f"{remedy}kiln toolchains lock {toolchain.name}",
        )
    if toolchain.base.lock is None:
        raise UsageError(
            f"digests of {toolchain.name} on {toolchain.base.given} are not recorded",
            why="the lock is of the base that its YAML names",
            remedy="leave --base or --record out",
        )


@dataclass(frozen=True, kw_only=True)
class Twice:
    """What two builds came to: the first of them, and the packages newer than locked."""

    found: Found
    drift: tuple[str, ...]


def twice(engine: Engine, toolchain: Toolchain, reporter: Reporter, *, frozen: bool) -> Twice:
    """Build the image two times from nothing, the base too, and compare.

    Nothing is taken from the builder's cache, and both images are gone afterwards. Raises
    DifferenceError where the two are not the same, with what differs told before.
    """
    names = [f"edgekiln/{toolchain.name}:verify-{os.getpid()}-{number}" for number in (1, 2)]
    bases = [f"edgekiln/base-{toolchain.base.name}:verify-{os.getpid()}-{n}" for n in (1, 2)]
    try:
        drift: list[str] = []
        found: list[Found] = []
        for name, base in zip(names, bases, strict=True):
            task = Task(reporter, f"build {len(found) + 1} of 2", "steps")
            ready = once_more(engine, toolchain.base, base, task)
            drift = images.make(engine, toolchain, ready, name, task, frozen=frozen, fresh=True)
            task.update(0, None, "reading")
            found.append(look(engine, toolchain, name, ready.origin))
        first, second = found
        if changes := content.differences(first.listing, second.listing):
            tell(changes, reporter)
            _tell_bytes(engine, names, changes, reporter)
            why = f"{len(changes)} names differ, the first is {changes[0].name}"
            raise DifferenceError(f"two builds of {toolchain.name} differ", why=why)
        if first.digests.manifest != second.digests.manifest:
            raise DifferenceError(
                f"two builds of {toolchain.name} have the same files and different manifests",
                why=f"{first.digests.manifest}, and {second.digests.manifest}",
            )
        return Twice(found=first, drift=tuple(drift))
    finally:
        for name in (*names, *bases):
            images.run(engine, ["rmi", "--force", name], check=False)


def _tell_bytes(
    engine: Engine, names: Sequence[str], changes: Sequence[Difference], reporter: Reporter
) -> None:
    """The first bytes of the first files whose contents differ, and diffoscope's view of one."""
    wanted = [change.name for change in changes if change.contents][:_LOOKED_INTO]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="edgekiln-differ-") as scratch:
        sides = []
        for number, name in enumerate(names):
            place = Path(scratch, str(number))
            place.mkdir()
            with streamed(engine, name) as stream:
                sides.append(content.take(stream, wanted, place))
        for file in wanted:
            one, two = (side[file] for side in sides)
            if byte := first_byte(one, two):
                reporter.result("first-byte", {"file": file, **asdict(byte)}, f"{file} {byte.text}")
        lines = diffoscope(*(side[wanted[0]] for side in sides))
        reporter.result("diffoscope", lines, "\n".join(lines))
