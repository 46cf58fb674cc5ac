"""Everything a toolchain is made of, as `images build NAME --dry-run` prints it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.kits import licences, parts
from edgekiln.toolchain.debs import find_debs
from edgekiln.toolchain.wheels import find_local
from edgekiln.transfer import shown
from edgekiln.user.pipconf import PipSettings, pip_settings

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain
    from edgekiln.toolchain.lock import Deb, Wheel

_BUILT = "in the image"
_STATES = (_BUILT, "in the engine")


@dataclass(frozen=True, kw_only=True)
class Needed:
    """One thing to fetch. `where` is "" for what is not on this machine; `size` 0: not told."""

    kind: str
    name: str
    size: int
    digest: str
    places: tuple[str, ...]
    where: str


def needed(toolchain: Toolchain, engine: Engine | None, *, prefix: bool = False) -> list[Needed]:
    """Base, packages, uv, wheels and the parts of kits, in the order they are fetched.

    An image that is built, or lies in the vendor folder, needs none of the first four; a native
    `prefix` is filled from no image.
    """
    done = "" if prefix else _image(toolchain, engine)
    pip = pip_settings()
    wheels = (toolchain.lock.uv, *toolchain.lock.wheels)
    local = find_local(wheels, pip)
    here = {} if done else find_debs(toolchain.lock.debs).here
    found = [_base(toolchain, done or _has_base(toolchain, engine))]
    found += [_deb(deb, done or str(here.get(deb, ""))) for deb in toolchain.lock.debs]
    found += [_wheel(w, toolchain, pip, done or str(local.get(w.file, ""))) for w in wheels]
    return [*found, *_kits(toolchain)]


def text(toolchain: Toolchain, rows: Iterable[Needed]) -> str:
    """The list, what is missing in bytes, and the licences that are not accepted yet."""
    every = list(rows)
    lines = []
    for kind, group in groupby(every, key=lambda each: each.kind):
        lines += [*_block(kind, list(group)), ""]
    lacking = [each for each in every if not each.where]
    untold = sum(not each.size for each in lacking)
    size = units.size(sum(each.size for each in lacking))
    more = f", and {untold} of a size that nobody tells" if untold else ""
    lines.append(f"{len(lacking)} of {len(every)} to fetch: {size}{more}")
    names = sorted({kit.licence for kit in toolchain.kits if kit.licence})
    for name in [name for name in names if not licences.accepted(name)]:
        licence = licences.LICENCES[name]
        lines.append(f"to accept (--accept-licence {name}): {licence.title}, {licence.address}")
    return "\n".join(lines)


def _block(kind: str, rows: Sequence[Needed]) -> list[str]:
    """All of one kind: some short lines each, since names and digests fill a line by themselves.

    Where most come from the same places, the heading names them.
    """
    shared, often = Counter(each.places for each in rows).most_common(1)[0]
    told = often > 1
    lines = [f"{kind}, from {' '.join(shared)}" if told else kind]
    for each in rows:
        size = units.size(each.size) if each.size else ""
        state = each.where if each.where in _STATES else "here" if each.where else "to fetch"
        lines.append(f"  {state:12}  {size:>8}  {each.name}")
        places = () if told and each.places == shared else each.places
        more = [each.digest, *places, *([_folder(each.where)] if state == "here" else [])]
        lines += [f"{'':26}{line}" for line in more if line]
    return lines


def _folder(where: str) -> str:
    """Where a file lies that is here; its name has been said."""
    path = Path(os.path.normpath(where))
    return f"in {path if path.is_dir() else path.parent}"


def _image(toolchain: Toolchain, engine: Engine | None) -> str:
    """Where the whole image is, if it is anywhere; "" otherwise."""
    from edgekiln import images
    from edgekiln.images import exports

    if engine is not None and images.exists(engine, toolchain):
        return _BUILT
    found = exports.find(toolchain)
    return str(found.path) if found else ""


def _has_base(toolchain: Toolchain, engine: Engine | None) -> str:
    """Where the base is: in the engine, or in the vendor folder."""
    from edgekiln.images import vendoredbase
    from edgekiln.images.base import reference_of

    base = toolchain.base
    if engine is not None and engine.image(reference_of(base)) is not None:
        return "in the engine"
    return vendoredbase.has(base, base.lock) if base.lock else ""


def _base(toolchain: Toolchain, where: str) -> Needed:
    base = toolchain.base
    image = base.lock.definition.image if base.lock else base.given
    name, _, digest = image.partition("@")
    return Needed(kind="base", name=base.name, size=0, digest=digest, places=(name,), where=where)


def _deb(deb: Deb, where: str) -> Needed:
    name, digest = f"{deb.name} {deb.version}", f"sha256:{deb.sha256}"
    places = ("the distribution's archive",)
    return Needed(
        kind="package", name=name, size=deb.size, digest=digest, places=places, where=where
    )


def _wheel(wheel: Wheel, toolchain: Toolchain, pip: PipSettings, where: str) -> Needed:
    index = shown(pip.index_url or "the Python index")
    places = [index, *map(shown, pip.extra_index_urls), *(toolchain.places if wheel.local else ())]
    return Needed(
        kind="wheel",
        name=wheel.file,
        size=wheel.size,
        digest=f"sha256:{wheel.sha256}",
        places=tuple(places),
        where=where,
    )


def _kits(toolchain: Toolchain) -> Iterator[Needed]:
    for part in parts(toolchain.kits):
        unknown = "first use: its digest is recorded then"
        yield Needed(
            kind=f"kit {part.kit}",
            name=part.file,
            size=part.size,
            digest=f"{part.trust}:{part.digest}" if part.digest else unknown,
            places=tuple(map(shown, part.places)),
            where=part.where,
        )
