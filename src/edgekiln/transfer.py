"""One file over HTTP into a part file, gone on with where an earlier try was cut off."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from edgekiln.errors import FetchError
from edgekiln.progress import Progress

if TYPE_CHECKING:
    from requests import Response

TIMEOUT = (10.0, 30.0)  # seconds to connect; seconds without a byte
CHUNK = 1 << 16  # as much as a cut may lose of what had arrived
BUSY = (408, 425, 429)  # codes that ask to come back later, as those from 500 on do


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What is known of a file beforehand. With no digest it is taken as it comes (first use)."""

    sha256: str = ""
    sha1: str = ""
    size: int = 0


FIRST_USE = Pin()


class PassingError(Exception):
    """Something that may be over in a moment."""


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A URL, the part file its bytes go into, and what is known of the whole."""

    url: str
    part: Path
    name: str
    pin: Pin
    progress: Progress
    # What else to send, asked for at each try: a registry's word is good for minutes only.
    headers: Callable[[], Mapping[str, str]] = dict

    def receive(self) -> None:
        """Receive what is missing; PassingError where a new try may help, else FetchError."""
        import requests

        have = self._resumable()
        try:
            headers = self._headers(have)
            with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
                start = self._start(reply, have)
                if start is not None:
                    self._write(reply, start)
        except requests.exceptions.SSLError as error:
            raise FetchError(
                f"{shown(self.url)} could not be fetched",
                why=f"its certificate is not trusted: {cause(error)}",
                remedy="name your certificate bundle by REQUESTS_CA_BUNDLE",
            ) from error
        except (requests.exceptions.MissingSchema, requests.exceptions.InvalidURL) as error:
            raise FetchError(f"{shown(self.url)} is not an address", why=str(error)) from error
        except requests.RequestException as error:
            raise PassingError(cause(error)) from error

    def _resumable(self) -> int:
        """How many bytes of the part can be kept.

        A pinned digest finds any mixture out, so bytes from another mirror are as good. Without
        one only bytes of the same URL, with an ETag to hold on to, are gone on from.
        """
        size = self.part.stat().st_size if self.part.is_file() else 0
        pinned = bool(self.pin.sha256 or self.pin.sha1)
        same = self._note().get("url") == self.url and bool(self._etag())
        return size if (pinned or same) and not (self.pin.size and size >= self.pin.size) else 0

    def _headers(self, have: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", **self.headers()}
        if have:
            headers["Range"] = f"bytes={have}-"
        # Without it a server whose file has changed would send the end of another file.
        if have and self._note().get("url") == self.url and self._etag():
            headers["If-Range"] = self._etag()
        return headers

    def _note(self) -> dict[str, str]:
        try:
            note = json.loads(note_of(self.part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _etag(self) -> str:
        """The strong ETag that the part's bytes had; If-Range takes no weak one."""
        etag = self._note().get("etag", "")
        return "" if etag.startswith("W/") else etag

    def _start(self, reply: Response, have: int) -> int | None:
        """At which byte the reply's body begins; None where nothing is left to receive."""
        if reply.status_code == 416 and have:
            self._past_the_end(reply, have)
            return None
        if reply.status_code in BUSY or reply.status_code >= 500:
            raise PassingError(f"the server says {reply.status_code} {reply.reason}")
        if reply.status_code not in (200, 206):
            raise FetchError(
                f"{shown(reply.url)} could not be fetched",
                why=f"the server says {reply.status_code} {reply.reason}",
                remedy=offer(self.name),
            )
        return 0 if reply.status_code == 200 else self._range_start(reply, have)

    def _past_the_end(self, reply: Response, have: int) -> None:
        """Nothing is left to receive, unless the part is of another file: then it goes."""
        total = re.fullmatch(r"bytes \*/(\d+)", reply.headers.get("Content-Range", ""))
        if total is None or int(total[1]) != have:
            self.part.unlink()
            raise PassingError("the part that was here does not fit the file")

    def _range_start(self, reply: Response, have: int) -> int:
        begins = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
        if begins is None or int(begins[1]) > have:
            self.part.unlink(missing_ok=True)
            raise PassingError("the server sent another range than it was asked for")
        return int(begins[1])

    def _write(self, reply: Response, start: int) -> None:
        """Put the body behind the first `start` bytes; one that ends early can be gone on with."""
        length = reply.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else self.pin.size
        note = {"url": self.url, "etag": reply.headers.get("ETag", "")}
        note_of(self.part).write_text(json.dumps(note), encoding="utf-8")
        with self.part.open("r+b" if start else "wb") as file:
            done = start
            if start:
                file.seek(start)
                file.truncate()
            for chunk in reply.iter_content(CHUNK):
                done += file.write(chunk)
                self.progress.update(done, total or None, self.name)
        if total and done < total:
            raise PassingError(f"cut off after {done} of {total} bytes")


def note_of(part: Path) -> Path:
    """Beside a part: which URL and which version of the file (its ETag) the bytes are of."""
    return part.with_name(f"{part.name}.json")


def offer(name: str) -> str:
    """The way that is left when no place gives a file."""
    return f"check the network, or put {name} into a folder and name it by EDGEKILN_VENDOR"


def shown(place: str) -> str:
    """A place as it may be shown: without a password in its address."""
    return re.sub(r"//[^/@]*@", "//", unquote(place))


def cause(error: BaseException) -> str:
    """One line from what lies deepest under an exception of requests."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    if isinstance(error, socket.gaierror):
        return f"its server's name cannot be looked up ({error.strerror})"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
