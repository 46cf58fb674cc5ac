"""Everything a toolchain is made of, as `images build NAME --dry-run` prints it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.kits import licences, parts
from edgekiln.report import table
from edgekiln.toolchain.wheels import find_local
from edgekiln.transfer import shown
from edgekiln.user.pipconf import PipSettings, pip_settings

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain
    from edgekiln.toolchain.lock import Deb, Wheel

_HEAD = ("", "what", "size", "digest", "from", "")


@dataclass(frozen=True, kw_only=True)
class Needed:
    """One thing to fetch. `where` is "" for what is not on this machine; `size` 0: not told."""

    kind: str
    name: str
    size: int
    digest: str
    source: str
    where: str


def needed(toolchain: Toolchain, engine: Engine | None) -> list[Needed]:
    """Base, packages, uv, wheels and the parts of kits, in the order they are fetched.

    An image that is built, or lies in the vendor folder, needs none of the first four.
    """
    done = _image(toolchain, engine)
    pip = pip_settings()
    wheels = (toolchain.lock.uv, *toolchain.lock.wheels)
    local = find_local(wheels, pip)
    found = [_base(toolchain, done), *(_deb(deb, done) for deb in toolchain.lock.debs)]
    found += [_wheel(w, toolchain, pip, done or str(local.get(w.file, ""))) for w in wheels]
    return [*found, *_kits(toolchain)]


def text(toolchain: Toolchain, rows: Iterable[Needed]) -> str:
    """The table, what is missing in bytes, and the licences that are not accepted yet."""
    every = list(rows)
    lines = [table([_row(each) for each in every], _HEAD), ""]
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


def _row(each: Needed) -> tuple[str, ...]:
    size = units.size(each.size) if each.size else ""
    return each.kind, each.name, size, each.digest, each.source, each.where or "to fetch"


def _image(toolchain: Toolchain, engine: Engine | None) -> str:
    """Where the whole image is, if it is anywhere; "" otherwise."""
    from edgekiln import images
    from edgekiln.fetch import vendored

    if engine is not None and images.exists(engine, toolchain):
        return "in the image"
    path = vendored(images.archive_name(toolchain))
    return str(path) if path else ""


def _base(toolchain: Toolchain, where: str) -> Needed:
    base = toolchain.base
    image = base.lock.definition.image if base.lock else base.given
    name, _, digest = image.partition("@")
    return Needed(kind="base", name=base.name, size=0, digest=digest, source=name, where=where)


def _deb(deb: Deb, where: str) -> Needed:
    name, digest = f"{deb.name} {deb.version}", f"sha256:{deb.sha256}"
    source = "the distribution's archive"
    return Needed(
        kind="package", name=name, size=deb.size, digest=digest, source=source, where=where
    )


def _wheel(wheel: Wheel, toolchain: Toolchain, pip: PipSettings, where: str) -> Needed:
    index = shown(pip.index_url or "the Python index")
    places = [index, *map(shown, pip.extra_index_urls), *(toolchain.places if wheel.local else ())]
    return Needed(
        kind="wheel",
        name=wheel.file,
        size=wheel.size,
        digest=f"sha256:{wheel.sha256}",
        source=" ".join(places),
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
            source=" ".join(map(shown, part.places)),
            where=part.where,
        )
