"""Simple indexes and folders of wheels, as pip is told of them: which files they list."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from edgekiln.calls import call
from edgekiln.digest import digest_file
from edgekiln.toolchain.lock import Wheel, normal
from edgekiln.toolchain.wheels import Links
from edgekiln.transfer import Pin, shown
from edgekiln.upstream import CHANGED, GONE, NOT_REACHED, OK, Answer
from edgekiln.upstream.web import NotReachedError, ask_file, pip_options, request
from edgekiln.user.pipconf import PipSettings, pip_command

_ACCEPT = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.01"
)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A file as an index lists it. `sha256` and `size` are "" and 0 where it does not tell them."""

    file: str
    url: str
    sha256: str = ""
    size: int = 0
    requires_python: str = ""
    yanked: str = ""  # the reason, or "yes"


class Index:
    """An index, or a folder or page of links. One that does not answer is not asked again."""

    def __init__(self, address: str, pip: PipSettings, *, flat: bool = False) -> None:
        self.address, self.pip, self.flat = address, pip, flat
        self._guard = threading.Lock()
        self.dead = ""
        self._pages: dict[str, list[Listed]] = {}

    def files(self, project: str) -> list[Listed]:
        """What it lists of a project. Raises NotReachedError where it does not answer."""
        name = "" if self.flat else normal(project)
        with self._guard:
            if self.dead:
                raise NotReachedError(self.dead)
            if name in self._pages:
                return self._pages[name]
        try:
            found = self._read(name)
        except NotReachedError as error:
            with self._guard:
                self.dead = str(error)
            raise
        with self._guard:
            self._pages[name] = found
        return found

    def _read(self, name: str) -> list[Listed]:
        if (folder := _folder(self.address)) is not None:
            return _in_folder(folder, name, self.flat)
        page = self.address if self.flat else f"{self.address.rstrip('/')}/{name}/"
        reply = request("GET", page, headers={"Accept": _ACCEPT}, **pip_options(page, self.pip))
        if reply.status_code in (403, 404, 410):  # some answer 403 for what they do not have
            reply.close()
            return []
        if not reply.ok:
            reply.close()
            raise NotReachedError(f"the index says {reply.status_code} {reply.reason}")
        if "json" in reply.headers.get("Content-Type", ""):
            return _from_json(reply.url, reply.content)
        return _from_html(reply.url, reply.content.decode("utf-8", "replace"))


def indexes(pip: PipSettings, further: Iterable[str] = ()) -> list[Index]:
    """Every place pip would look into, then those a toolchain names besides."""
    flat = [Index(place, pip, flat=True) for place in pip.find_links]
    simple = [] if pip.no_index else [pip.index_url or default_index(), *pip.extra_index_urls]
    named = [*simple, *further]
    return [*flat, *(Index(place, pip) for place in dict.fromkeys(named) if place)]


@lru_cache(maxsize=1)
def default_index() -> str:
    """The index pip takes where it was told of none: pip itself says which; "" without a pip."""
    command = pip_command()
    if command is None:
        return ""
    said = " ".join(call([*command, "install", "--help"]).stdout.split())
    found = re.search(r"Base URL of the Python Package Index \(default (\S+?)\)", said)
    return found[1] if found else ""


def ask_wheel(wheel: Wheel, places: Iterable[Index]) -> list[Answer]:
    """What each index says of a locked wheel.

    One that does not list it counts only where none does: no index has to have everything.
    """
    answers = [_ask(wheel, index) for index in places]
    there = any(answer.state in (OK, CHANGED) for answer in answers)
    return [answer for answer in answers if not (there and answer.state == GONE)]


def _ask(wheel: Wheel, index: Index) -> Answer:
    place = shown(index.address)
    try:
        files = index.files(wheel.name)
    except NotReachedError as error:
        return Answer(place=place, state=NOT_REACHED, why=str(error))
    found = next((each for each in files if each.file == wheel.file), None)
    if found is None:
        return Answer(place=place, state=GONE, why="it does not list this file")
    sha256 = _digest(found)
    if sha256 and sha256 != wheel.sha256:
        return Answer(place=place, state=CHANGED, why=f"sha256 {sha256}, pinned is {wheel.sha256}")
    pin = Pin(sha256=wheel.sha256, size=wheel.size or found.size)
    told = ask_file(found.url, pin, wheel.file, **pip_options(found.url, index.pip))
    notes = [told.why]
    notes += [] if sha256 else ["its index tells no digest"]
    notes += [f"withdrawn by its makers ({found.yanked})"] if found.yanked else []
    return Answer(place=place, state=told.state, why="; ".join(filter(None, notes)))


def _digest(found: Listed) -> str:
    """The sha256 an index tells, or that of a file of this machine."""
    if found.sha256 or _folder(found.url) is None:
        return found.sha256
    path = Path(url2pathname(urlsplit(found.url).path))
    return digest_file(path) if path.is_file() else ""


def _folder(address: str) -> Path | None:
    """The folder or file of an address on this machine; None for any other address."""
    if address.startswith("file:"):
        return Path(url2pathname(urlsplit(address).path))
    return None if "://" in address else Path(address).expanduser().absolute()


def _in_folder(folder: Path, name: str, flat: bool) -> list[Listed]:
    if flat and folder.is_dir():
        wheels = sorted(folder.glob("*.whl"))
        sizes = [path.stat().st_size for path in wheels]
        pairs = zip(wheels, sizes, strict=True)
        return [Listed(file=path.name, url=path.as_uri(), size=size) for path, size in pairs]
    page = folder if flat else folder / name / "index.html"
    if not folder.exists():
        raise NotReachedError("no such folder")
    if not page.is_file():
        return []
    return _from_html(page.as_uri(), page.read_text(encoding="utf-8", errors="replace"))


def _from_json(page: str, body: bytes) -> list[Listed]:
    """PEP 691."""
    try:
        data: Any = json.loads(body)
        return [
            Listed(
                file=str(each["filename"]),
                url=urljoin(page, each["url"]),
                sha256=each.get("hashes", {}).get("sha256", ""),
                size=int(each.get("size") or 0),
                requires_python=each.get("requires-python") or "",
                yanked=_reason(each.get("yanked", False)),
            )
            for each in data["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotReachedError(f"its page cannot be read ({type(error).__name__})") from error


def _reason(yanked: Any) -> str:
    return yanked if isinstance(yanked, str) and yanked else "yes" if yanked else ""


def _from_html(page: str, text: str) -> list[Listed]:
    """PEP 503, with what PEP 592 and 700 added."""
    links = Links()
    links.feed(text)
    found = []
    for attributes in links.found:
        url = urljoin(page, attributes["href"] or "")
        parts = urlsplit(url)
        told = re.search(r"sha256=([0-9a-f]{64})", parts.fragment)
        yanked = "data-yanked" in attributes
        found.append(
            Listed(
                file=unquote(parts.path).rpartition("/")[2],
                url=url.partition("#")[0],
                sha256=told[1] if told else "",
                requires_python=attributes.get("data-requires-python") or "",
                yanked=_reason(attributes["data-yanked"] or True) if yanked else "",
            )
        )
    return found
