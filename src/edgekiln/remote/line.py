"""Questions to another machine, and the same again after a cut: patiently, and not for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from edgekiln.errors import RemoteError
from edgekiln.remote.hosts import Host
from edgekiln.remote.link import Link
from edgekiln.remote.wire import Cut, Wire, meant

if TYPE_CHECKING:
    from paramiko import Channel

T = TypeVar("T")

# Seconds between tries: about ten minutes in all. A machine that was never reached gets the first.
PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0, 60.0, 60.0, 120.0, 180.0)
_AT_FIRST = 2
# More than the questions of a new try: what counts as having come further.
_FURTHER = 256 << 10
# What a login shell may say before our own first word.
_GREETING = 1000


class Line:
    """A conversation with one machine, made anew after each cut. One thread's own."""

    def __init__(self, link: Link, command: Callable[[], str], say: Callable[[str], None]) -> None:
        self._link, self._command, self._say = link, command, say
        self._stop = threading.Event()
        self._wire: Wire | None = None
        self._channel: Channel | None = None

    @property
    def host(self) -> Host:
        """Whom it leads to."""
        return self._link.host

    def ask(self, body: Iterable[bytes] = (), /, **message: Any) -> dict[str, Any]:
        """One question (and the bytes that belong to it), one answer.

        Raises Cut, or the error that the far side answered with.
        """
        self._open().send(message, body)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer to what was asked."""
        found = self._open().receive()
        if isinstance(found.get("error"), Mapping):
            raise meant(found["error"], self.host.name)
        return found

    def body(self, size: int) -> Iterator[bytes]:
        """The bytes behind an answer."""
        return self._open().body(size)

    def again(self, work: Callable[[], T]) -> T:
        """Do something, and again after each cut, as long as it comes further now and then."""
        return again(work, self._link, self._say, self._stop, self.close)

    def stop(self) -> None:
        """Have `again` end at the next cut, which this makes."""
        self._stop.set()
        self.close()

    def close(self) -> None:
        """Hang up. What was begun there goes on."""
        channel, self._channel, self._wire = self._channel, None, None
        if channel is not None:
            with contextlib.suppress(Exception):
                channel.close()

    def _open(self) -> Wire:
        if self._wire is None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._channel = self._link.channel(self._command())
            wire = self._link.wire(self._channel)
            _greeted(wire, self._channel, self.host)
            self._wire = wire
        return self._wire


def again(
    work: Callable[[], T],
    link: Link,
    say: Callable[[str], None],
    stop: threading.Event,
    hang_up: Callable[[], None] = lambda: None,
) -> T:
    """Do something over a link, and again after each cut. Raises RemoteError in the end."""
    tries, before = 0, link.sent + link.received
    known = before > 0
    while True:
        try:
            return work()
        except Cut as cut:
            hang_up()
            link.drop()
            if stop.is_set():
                raise KeyboardInterrupt from cut
            now = link.sent + link.received
            tries = 0 if now - before > _FURTHER else tries
            before, known = now, known or now > 0
            if tries >= (len(PAUSES) if known else _AT_FIRST):
                raise _lost(link.host, cut, known) from cut
            say(f"{link.host.name}: {_words(cut, known)}; trying again in {PAUSES[tries]:g} s")
            stop.wait(PAUSES[tries])
            tries += 1


def _words(cut: Cut, known: bool) -> str:
    return f"the connection was lost ({cut})" if known else f"cannot be reached ({cut})"


def _lost(host: Host, cut: Cut, known: bool) -> RemoteError:
    if not known:
        return RemoteError(
            f"{host.name} cannot be reached",
            why=str(cut),
            remedy="see that the machine runs and that its address and port are right",
        )
    return RemoteError(
        f"{host.name} was lost and could not be reached again",
        why=str(cut),
        remedy="what was begun there goes on; run this again and it is picked up",
    )


def _greeted(wire: Wire, channel: Channel, host: Host) -> None:
    """Wait for the far side's first word; a shell may say things before it."""
    said = []
    try:
        for _ in range(_GREETING):
            line = wire.line()
            if line.startswith(b'{"edgekiln"'):
                return
            said.append(line.decode(errors="replace"))
    except Cut:
        if channel.closed or not channel.exit_status_ready() or channel.recv_exit_status() < 0:
            raise
        said += channel.recv_stderr(1 << 16).decode(errors="replace").splitlines()
    words = [line.strip() for line in said if line.strip()]
    raise RemoteError(
        f"edgekiln did not start on {host.name}",
        why=words[-1][:300] if words else "it said nothing",
        remedy=f"remove remote/ in its EDGEKILN_HOME, then run `kiln hosts check {host.name}`",
    )
