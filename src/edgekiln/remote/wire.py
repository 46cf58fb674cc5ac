"""Messages between two machines: a line of JSON each, and bytes behind it where it says so.

Home asks, the far side answers; while it works on an answer it sends `{"beat": true}` now and
then, so that silence means a lost connection and nothing else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edgekiln.errors import KilnError, StageError

CHUNK = 1 << 16
_LONGEST = 256 << 20  # of a message, in bytes: the files of a very large tree fit


class Cut(Exception):  # noqa: N818 - it is what happened, and may be over in a moment
    """The connection is gone, or has been silent for too long."""


class Wire:
    """One conversation. `read(n)` gives at most n bytes, none at its end; both may raise Cut."""

    def __init__(self, read: Callable[[int], bytes], write: Callable[[bytes], None]) -> None:
        self._read, self._write = read, write
        self._ahead = bytearray()
        self._guard = threading.Lock()

    def send(self, message: Mapping[str, Any], body: Iterable[bytes] = ()) -> None:
        """Send a message, and the bytes it announces, with nothing in between."""
        with self._guard:
            self._write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
            for piece in body:
                self._write(piece)

    def receive(self) -> dict[str, Any]:
        """The next message that is no beat."""
        while True:
            try:
                message = json.loads(self.line())
            except ValueError as error:
                raise Cut("what arrives is no message") from error
            if not isinstance(message, dict):
                raise Cut("what arrives is no message")
            if "beat" not in message:
                return message

    def line(self) -> bytes:
        """The next line, whatever it is; raises Cut where none comes any more."""
        searched = 0
        while (end := self._ahead.find(b"\n", searched)) < 0:
            searched = len(self._ahead)
            if searched > _LONGEST:
                raise Cut("what arrives is no message")
            self._more()
        line = bytes(self._ahead[:end])
        del self._ahead[: end + 1]
        return line

    def body(self, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes, in pieces as they arrive."""
        while size:
            if not self._ahead:
                self._more()
            piece = bytes(self._ahead[:size])
            del self._ahead[: len(piece)]
            size -= len(piece)
            yield piece

    def _more(self) -> None:
        got = self._read(CHUNK)
        if not got:
            raise Cut("it was closed")
        self._ahead += got


def told(error: KilnError) -> dict[str, str]:
    """An error as a message."""
    return {"kind": error.kind, "what": error.what, "why": error.why, "remedy": error.remedy}


def meant(error: Mapping[str, str], where: str) -> KilnError:
    """The error that a message tells of, raised on `where`."""
    kinds = {kind.kind: kind for kind in KilnError.__subclasses__()}
    made = kinds.get(error["kind"], StageError)
    return made(f"on {where}: {error['what']}", why=error["why"], remedy=error["remedy"])
