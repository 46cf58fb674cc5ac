"""One repository of a registry, spoken to over plain HTTPS.

Protocol: github.com/opencontainers/distribution-spec. A token is good for minutes, so it is asked
for again where it has run out; whatever may be over in a moment is tried again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from edgekiln.errors import FetchError, UsageError
from edgekiln.images.layout import INDEXES, MANIFEST, MANIFESTS, Blob, Layout, damaged
from edgekiln.progress import Progress
from edgekiln.transfer import BUSY, PassingError, Pin, Receiver, cause, note_of

if TYPE_CHECKING:
    from requests import Response

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
PAUSES = (0.5, 2.0, 5.0, 10.0, 30.0)  # seconds before each further try of one file
_TIMEOUT = (10.0, 60.0)  # seconds to connect; seconds without a byte


class UnreachedError(PassingError):
    """Nobody answers there: no such name, no such port, no way to it. Maybe in a moment."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(why)
        self.host = host


class Repository:
    """One repository of a registry. `text` is HOST/REPOSITORY, with https:// or without.

    A registry of this machine is spoken to by plain HTTP, as Docker does, unless https:// stands
    before it. Passwords are those of `docker login`, or of .netrc.
    """

    def __init__(self, text: str) -> None:
        from edgekiln.upstream.web import parse_reference

        scheme, _, rest = text.rpartition("://")
        found = parse_reference(rest.strip("/"))
        named = "/" in rest.strip("/") and _NAME.fullmatch(found.repository)
        plain = scheme in ("", "https", "http") and not (found.tag or found.digest)
        if not (named and plain and _is_host(found.host)):
            remedy = "give it as registry.example/me/edgekiln"
            raise UsageError(f"{text!r} is no repository of a registry", remedy=remedy)
        scheme = scheme or found.address.partition("://")[0]
        self.host = found.host
        self.name = f"{found.host}/{found.repository}"
        self.address = f"{scheme}://{found.host}/v2/{found.repository}"
        self._word: dict[str, str] = {}

    def ask(self, method: str, address: str, **options: Any) -> Response:
        """One answer, by name and password or a token where the registry wants one.

        Raises PassingError where nobody answers or the registry is busy, FetchError where it wants
        a password that is not here, or its certificate is not trusted.
        """
        reply = self._send(method, address, **options)
        if reply.status_code == 401:
            reply.close()
            self._log_in(reply.headers.get("WWW-Authenticate", ""))
            if seek := getattr(options.get("data"), "seek", None):
                seek(0)
            reply = self._send(method, address, **options)
        if reply.status_code in (401, 403):
            raise FetchError(
                f"{self.name} does not let this user in",
                why=f"it says {reply.status_code} {reply.reason}",
                remedy=f"docker login {self.host}, or a line of .netrc",
            )
        if reply.status_code in BUSY or reply.status_code >= 500:
            raise PassingError(f"the registry says {reply.status_code} {reply.reason}")
        return reply

    def _send(self, method: str, address: str, **options: Any) -> Response:
        import requests

        headers = {"Accept-Encoding": "identity", **options.pop("headers", {}), **self._word}
        keys = {"timeout": _TIMEOUT, "stream": True, **options}
        try:
            return requests.request(method, address, headers=headers, **keys)
        except requests.exceptions.SSLError as error:
            if "WRONG_VERSION_NUMBER" in str(error):
                raise FetchError(
                    f"{self.name} could not be reached",
                    why="what answers there speaks no HTTPS",
                    remedy="look at the port; http:// before the name is for plain HTTP",
                ) from error
            raise FetchError(
                f"{self.name} could not be reached",
                why=f"its certificate is not trusted: {cause(error)}",
                remedy="name your certificate bundle by REQUESTS_CA_BUNDLE",
            ) from error
        except requests.RequestException as error:
            if _unreached(error):
                raise UnreachedError(urlsplit(address).netloc, cause(error)) from error
            raise PassingError(cause(error)) from error

    def _log_in(self, challenge: str) -> None:
        from edgekiln.upstream.web import NotReachedError, token

        known = password(self.host)
        if challenge.lower().startswith("basic") and known:
            word = base64.b64encode(":".join(known).encode()).decode()
            self._word = {"Authorization": f"Basic {word}"}
            return
        try:
            options = {"auth": known} if known else {}
            self._word = {"Authorization": token(challenge, **options)}
        except NotReachedError as error:
            raise FetchError(
                f"{self.name} does not let this user in",
                why=str(error),
                remedy=f"docker login {self.host}, or a line of .netrc",
            ) from error

    def word(self, address: str) -> Mapping[str, str]:
        """The headers that a GET of that address needs, renewed where they have run out."""
        self.ask("HEAD", address).close()
        return self._word

    def blob(self, digest: str) -> str:
        """The address of a blob."""
        return f"{self.address}/blobs/sha256:{digest}"

    def has(self, blob: Blob) -> bool:
        """Whether the registry has a blob."""
        reply = self.ask("HEAD", self.blob(blob.digest))
        reply.close()
        return reply.status_code == 200

    def manifest(self, reference: str) -> bytes | None:
        """A manifest or an index by tag or sha256:…; None where there is none."""
        kinds = ", ".join((*INDEXES, *MANIFESTS))
        address = f"{self.address}/manifests/{reference}"
        reply = self.ask("GET", address, headers={"Accept": kinds})
        if reply.status_code == 404:
            return None
        self._expect(reply, 200)
        body = reply.content
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.startswith("sha256:") and found != reference:
            raise damaged(f"{self.name}@{reference}")
        return body

    def _expect(self, reply: Response, *codes: int) -> None:
        if reply.status_code not in codes:
            said = reply.text[:200].strip() if reply.content else reply.reason
            raise FetchError(f"{self.name} refused", why=f"it says {reply.status_code}: {said}")

    def small(self, blob: Blob) -> bytes:
        """A configuration, of the right digest."""
        reply = self.ask("GET", self.blob(blob.digest))
        self._expect(reply, 200)
        if hashlib.sha256(reply.content).hexdigest() != blob.digest:
            raise damaged(f"{self.name}@sha256:{blob.digest}")
        return reply.content

    def get_blob(self, blob: Blob, target: Path, progress: Progress) -> None:
        """Receive one blob into `target`, behind what an earlier try has left beside it.

        Raises PassingError where the connection was lost, DigestError for other bytes.
        """
        from edgekiln.digest import digest_file

        address, part = self.blob(blob.digest), part_of(target)
        receiver = Receiver(
            url=address,
            part=part,
            name=f"layer {blob.digest[:12]}",
            pin=Pin(sha256=blob.digest, size=blob.size),
            progress=progress,
            headers=lambda: self.word(address),
        )
        if not (part.is_file() and part.stat().st_size == blob.size):
            receiver.receive()
        note_of(part).unlink(missing_ok=True)
        if digest_file(part) != blob.digest:
            part.unlink()
            raise damaged(f"{self.name}@sha256:{blob.digest}", "the registry gave other bytes")
        part.replace(target)

    def put_blob(self, blob: Blob, layout: Layout) -> None:
        """Send one blob, unless it is there."""
        if self.has(blob):
            return
        begun = self.ask("POST", f"{self.address}/blobs/uploads/")
        self._expect(begun, 202)
        place = urljoin(self.address, begun.headers["Location"])
        place += ("&" if urlsplit(place).query else "?") + f"digest=sha256:{blob.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        with layout.blob(blob) as stream:
            self._expect(self.ask("PUT", place, data=stream, headers=headers), 201)

    def put_manifest(self, tag: str, body: bytes) -> None:
        """Give an image its tag, all of whose blobs are there."""
        address = f"{self.address}/manifests/{tag}"
        self._expect(self.ask("PUT", address, data=body, headers={"Content-Type": MANIFEST}), 201)


def _is_host(host: str) -> bool:
    """Whether a registry may be called so: a name, and a port if there is one."""
    parts = urlsplit(f"//{host}")
    try:
        port = parts.port
    except ValueError:  # no number, or none that a port has
        return False
    return bool(parts.hostname) and port != 0 and not re.search(r"[\s@]", host)


def _unreached(error: Exception) -> bool:
    """Whether a failure of requests was there before a connection was."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def part_of(target: Path) -> Path:
    """Where a file lies that has not arrived as a whole."""
    return target.with_name(f"{target.name}.part")


def again(
    action: Callable[[], T], what: str, progress: Progress, moved: Callable[[], int] = lambda: 0
) -> T:
    """What `action` gives, tried again after each PassingError. Raises FetchError after the last.

    A try after which `moved` gives another figure than before has brought something on: the next
    one goes on there, and the count of tries begins anew.
    """
    tries, at = 0, moved()
    while True:
        try:
            return action()
        except PassingError as failure:
            now = moved()
            tries, at = (0 if now != at else tries), now
            if tries == len(PAUSES):
                if isinstance(failure, UnreachedError):
                    raise FetchError(
                        f"{failure.host} cannot be reached",
                        why=str(failure),
                        remedy="look at the registry's name and port, and at the proxy; run it "
                        "again: what has arrived is kept",
                    ) from failure
                raise FetchError(
                    f"{what} was cut off too often",
                    why=str(failure),
                    remedy="run it again: what has arrived is kept",
                ) from failure
            pause = PAUSES[tries]
            tries += 1
            progress.note(f"{what}: {failure}; trying again in {pause:g} s")
            time.sleep(pause)


def password(host: str) -> tuple[str, str] | None:
    """Name and password as `docker login` left them in its file; requests itself reads .netrc."""
    folder = Path(os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker")))
    try:
        known = json.loads((folder / "config.json").read_bytes()).get("auths") or {}
        word = known.get(host, {}).get("auth", "")
        name, _, secret = base64.b64decode(word).decode().partition(":")
    except (OSError, ValueError, AttributeError, binascii.Error):
        return None
    return (name, secret) if name and secret else None
