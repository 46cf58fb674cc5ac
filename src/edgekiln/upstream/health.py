"""Every thing that toolchains pin, asked for at each place it is to be had from, side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgekiln import kits
from edgekiln.errors import FetchError, KilnError, UpstreamError
from edgekiln.kits import Kit, gitsource
from edgekiln.progress import Progress, Silent
from edgekiln.report import table
from edgekiln.toolchain import Base, Toolchain
from edgekiln.toolchain.lock import Deb, Wheel
from edgekiln.toolchain.wheels import find_local, vendor
from edgekiln.upstream import CHANGED, GONE, NOT_REACHED, OK, Answer, Found, Thing
from edgekiln.upstream import debs as archive
from edgekiln.upstream.commits import ask_commit
from edgekiln.upstream.index import Index, ask_wheel, indexes
from edgekiln.upstream.web import ask_file, ask_image
from edgekiln.user.pipconf import PipSettings

_SIDE_BY_SIDE = 12
Ask = Callable[[], list[Found]]


def health(toolchains: Sequence[Toolchain], pip: PipSettings, progress: Progress) -> list[Found]:
    """What every upstream of these toolchains says, in the order the locks have things."""
    asks = list(_asks(toolchains, pip))
    total, done, guard = sum(count for count, _ in asks), 0, threading.Lock()

    def one(asked: tuple[int, Ask]) -> list[Found]:
        nonlocal done
        found = asked[1]()
        with guard:
            done += asked[0]
            progress.update(done, total, found[-1].thing.name if found else "")
        return found

    progress.update(0, total, "asking")
    with ThreadPoolExecutor(max_workers=_SIDE_BY_SIDE) as pool:
        return [found for each in pool.map(one, asks) for found in each]


def _asks(toolchains: Sequence[Toolchain], pip: PipSettings) -> Iterator[tuple[int, Ask]]:
    """(how many things, what asks for them); what several toolchains share is asked for once."""
    seen: set[Thing] = set()
    bases = {each.base.name: each.base for each in toolchains}
    for base in bases.values():
        own = [each for each in toolchains if each.base.name == base.name]
        yield from _base_asks(base, own)
    known: dict[str, Index] = {}
    for toolchain in toolchains:
        there = [known.setdefault(i.address, i) for i in indexes(pip, toolchain.places)]
        for wheel in (*toolchain.lock.wheels, toolchain.lock.uv):
            thing = _wheel_thing(wheel)
            if thing not in seen:
                seen.add(thing)
                yield 1, _asking(thing, lambda w=wheel, t=there: _wheel(w, t, pip))  # type: ignore[misc]
    for kit in {kit.name: kit for each in toolchains for kit in each.kits}.values():
        yield from _kit_asks(kit)


def _asking(thing: Thing, ask: Callable[[], Sequence[Answer]]) -> Ask:
    def run() -> list[Found]:
        try:
            answers = tuple(ask())
        except KilnError as error:
            answers = (Answer(place="", state=NOT_REACHED, why=error.short),)
        return [Found(thing=thing, answers=answers)]

    return run


def _base_asks(base: Base, toolchains: Iterable[Toolchain]) -> Iterator[tuple[int, Ask]]:
    """The base's image, and the packages of its release: the locked ones of toolchains on it."""
    if base.lock is None:
        yield 1, _asking(_image_thing(base.given), lambda: [ask_image(base.given)])
        return
    image, bootstrapped = base.lock.definition.image, base.lock.debs
    # Packages that toolchains add; those of the base are one of the ways to get the image.
    own = [t for t in toolchains if t.lock.base_sha256 == base.digest]
    locked = {_deb_thing(deb): deb for t in own for deb in t.lock.debs}

    def ask() -> list[Found]:
        named = {deb.name for deb in (*locked.values(), *bootstrapped)}
        try:
            view = archive.view(base, named, Silent())
        except KilnError as error:
            silent = Answer(place="apt", state=NOT_REACHED, why=error.short)
            made, told = silent, dict.fromkeys(locked, silent)
        else:
            made = _bootstrap(view, bootstrapped)
            told = {thing: view.ask(deb) for thing, deb in locked.items()}
        first = Found(thing=_image_thing(image), answers=(ask_image(image), made))
        return [first, *(Found(thing=t, answers=(a,)) for t, a in told.items())]

    yield 1 + len(locked), ask


def _bootstrap(view: archive.View, locked: Sequence[Deb]) -> Answer:
    """Whether the base could still be made of the very packages that are locked."""
    told = [(deb, view.ask(deb)) for deb in locked]
    for state in (CHANGED, GONE):
        if lost := [f"{deb.name} {deb.version}" for deb, answer in told if answer.state == state]:
            more = f" and {len(lost) - 2} more" if len(lost) > 2 else ""
            why = f"of its {len(locked)} packages: {', '.join(lost[:2])}{more}"
            return Answer(place=view.place, state=state, why=why)
    return Answer(place=view.place, state=OK)


def _wheel(wheel: Wheel, there: Sequence[Index], pip: PipSettings) -> list[Answer]:
    answers = ask_wheel(wheel, there)
    mine = find_local([wheel], PipSettings()).get(wheel.file) if vendor() else None
    return [*([Answer(place=str(mine), state=OK)] if mine else []), *answers]


def _kit_asks(kit: Kit) -> Iterator[tuple[int, Ask]]:
    for archive_of in kit.archives:
        pin = kits.pin_of(archive_of)
        digest = f"sha256:{pin.sha256}" if pin.sha256 else f"sha1:{pin.sha1}" if pin.sha1 else ""
        thing = Thing(kind="archive", name=archive_of.file, version=kit.version, digest=digest)

        def ask(archive_of: Any = archive_of, pin: Any = pin) -> list[Answer]:
            return [ask_file(place, pin, archive_of.file) for place in archive_of.places]

        yield 1, _asking(thing, ask)
    for each in gitsource.listed(kit.source) if kit.source else ():
        name = kit.name if each.path == "." else f"{kit.name}/{each.path}"
        told = Thing(kind="commit", name=name, version=kit.version, digest=each.commit)
        yield 1, _asking(told, lambda each=each: [ask_commit(each)])  # type: ignore[misc]


def _image_thing(reference: str) -> Thing:
    name, _, digest = reference.partition("@")
    head, _, tag = name.rpartition(":")
    named = head if head and "/" not in tag else name
    return Thing(kind="image", name=named, version=tag if named == head else "", digest=digest)


def _wheel_thing(wheel: Wheel) -> Thing:
    digest = f"sha256:{wheel.sha256}"
    return Thing(kind="wheel", name=wheel.name, version=wheel.version, digest=digest)


def _deb_thing(deb: Deb) -> Thing:
    return Thing(kind="deb", name=deb.name, version=deb.version, digest=f"sha256:{deb.sha256}")


def shown(found: Sequence[Found]) -> str:
    """A table: the good in one line each, the rest with every place that was asked."""
    rows = []
    for each in found:
        good = next((a for a in each.answers if a.state == OK), None)
        told = [good] if good else list(each.answers) or [_nowhere()]
        told += [a for a in each.answers if good and _worth_a_word(each.thing, a)]
        thing = each.thing
        who = (thing.kind, thing.name, thing.version)
        rows += [(*who, answer.state, answer.place, answer.why) for answer in told]
    return table(rows, ("kind", "name", "version", "state", "place", "why"))


def _worth_a_word(thing: Thing, answer: Answer) -> bool:
    """Whether a place is told of although another is good; an index need not have everything."""
    return answer.state != OK and (answer.state == CHANGED or thing.kind != "wheel")


def _nowhere() -> Answer:
    return Answer(place="", state=NOT_REACHED, why="no place is known to ask")


def plain(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [
        {**vars(each.thing), "state": each.state, "places": [vars(a) for a in each.answers]}
        for each in found
    ]


def counts(found: Sequence[Found]) -> str:
    """One line: how many are what."""
    states = [each.state for each in found]
    told = [f"{states.count(s)} {s}" for s in (OK, CHANGED, GONE, NOT_REACHED) if s in states]
    return f"{len(found)} things: {', '.join(told)}" if found else "nothing is pinned"


def refuse(found: Sequence[Found]) -> None:
    """Raise UpstreamError for what is gone or changed; FetchError for what nobody answered about.

    The first counts more: what was not reached may be there.
    """
    lost = [each for each in found if each.state in (GONE, CHANGED)]
    silent = [each for each in found if each.state == NOT_REACHED]
    if lost:
        raise UpstreamError(
            f"{len(lost)} pinned {'things are' if len(lost) > 1 else 'thing is'} gone or changed",
            why=_few(lost),
            remedy="kiln toolchains lock NAME takes what there is now; what lies in a folder "
            "filled by `kiln toolchains fetch` goes on working",
        )
    if silent:
        raise FetchError(
            f"{len(silent)} pinned {'things were' if len(silent) > 1 else 'thing was'} not reached",
            why=_few(silent),
            remedy="check the network and the proxy, and ask again",
        )


def _few(found: Sequence[Found]) -> str:
    named = ", ".join(f"{f.thing.name} {f.thing.version}".strip() for f in found[:3])
    return named + (f" and {len(found) - 3} more" if len(found) > 3 else "")
