"""Files and images of registries, asked for over HTTP without being downloaded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from edgekiln import offline
from edgekiln.fetch import differs, on_this_machine
from edgekiln.transfer import BUSY, Pin, cause, shown
from edgekiln.upstream import CHANGED, GONE, NOT_REACHED, OK, Answer
from edgekiln.user.pipconf import PipSettings

if TYPE_CHECKING:
    from requests import Response

TIMEOUT = (5.0, 20.0)  # seconds to connect; seconds without a byte
_PAUSE = 1.0  # before the one further try of a server that is busy
_GONE = (404, 410)
_HUB = "registry-1.docker.io"
# The kinds of manifest that a digest may name: an index of platforms, or one image.
_MANIFESTS = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)


class NotReachedError(Exception):
    """Nobody answered, or with something that says nothing about the thing asked for."""


def pip_options(address: str, pip: PipSettings) -> dict[str, Any]:
    """What requests has to be told for an address of a Python index: pip's proxy and trust."""
    proxies = {
        "http": pip.proxies.get("HTTP_PROXY") or pip.proxies.get("ALL_PROXY"),
        "https": pip.proxies.get("HTTPS_PROXY") or pip.proxies.get("ALL_PROXY"),
    }
    host = urlsplit(address).hostname or ""
    trusted = any(host == name.partition(":")[0] for name in pip.trusted_hosts)
    verify: bool | str = False if trusted else (pip.cert or True)
    return {"proxies": {k: v for k, v in proxies.items() if v}, "verify": verify}


def request(
    method: str, address: str, *, headers: Mapping[str, str] | None = None, **options: Any
) -> Response:
    """One answer with its headers; a body is read by whoever wants it.

    A server that is busy is asked once more. Raises NotReachedError where nobody answers, or the
    answer is about the asking (busy, broken, a proxy's) and not about the thing.
    """
    import requests

    if offline.enabled():
        raise NotReachedError("--offline asks nobody")
    sent = {"Accept-Encoding": "identity", **(headers or {})}
    keys = {"timeout": TIMEOUT, "allow_redirects": True, "stream": True, **options}
    for pause in (_PAUSE, None):
        try:
            reply = requests.request(method, address, headers=sent, **keys)
        except requests.RequestException as error:
            raise NotReachedError(cause(error)) from error
        busy = reply.status_code in (*BUSY, 407) or reply.status_code >= 500
        if not busy or reply.status_code == 501:
            return reply
        reply.close()
        if pause is not None:
            time.sleep(pause)
    raise NotReachedError(f"the server says {reply.status_code} {reply.reason}".strip())


def ask_file(place: str, pin: Pin, name: str, **options: Any) -> Answer:
    """Whether a place has a file, and whether size and digest (where it tells one) still fit."""
    local = on_this_machine(place, name)
    if local is not None:
        return _ask_local(local, place, pin)
    try:
        reply = _told(place, options)
    except NotReachedError as error:
        return Answer(place=shown(place), state=NOT_REACHED, why=str(error))
    return Answer(place=shown(place), **_judged(reply, pin))


def _told(place: str, options: Mapping[str, Any]) -> Response:
    """A server's word on a file: by HEAD, or by its first byte where HEAD does not tell."""
    reply = request("HEAD", place, **options)
    reply.close()
    if reply.status_code in _GONE or (reply.ok and told_size(reply)):
        return reply
    # Some servers refuse HEAD, or sign addresses for GET only.
    reply = request("GET", place, headers={"Range": "bytes=0-0"}, **options)
    reply.close()
    return reply


def _judged(reply: Response, pin: Pin) -> dict[str, str]:
    """state and why, out of an answer's headers."""
    if not reply.ok:
        state = GONE if reply.status_code in _GONE else NOT_REACHED
        return {"state": state, "why": f"the server says {reply.status_code} {reply.reason}"}
    size = told_size(reply)
    if wrong := _differs(reply, size, pin):
        return {"state": CHANGED, "why": wrong}
    why = "" if pin.size and size else "no size is pinned" if size else "its size is not told"
    return {"state": OK, "why": why}


def _differs(reply: Response, size: int, pin: Pin) -> str:
    """How what a server tells of a file differs from its pin; empty where it does not."""
    if pin.size and size and size != pin.size:
        return f"{size} bytes, pinned are {pin.size}"
    for kind, found in _digests(reply.headers).items():
        wanted = str(getattr(pin, kind)).lower()
        if wanted and found != wanted:
            return f"{kind} {found}, pinned is {wanted}"
    # A sign-in page, or a polite "not here": what is pinned is never one.
    page = reply.headers.get("Content-Type", "").startswith("text/html")
    return "a page came in its place" if page and not pin.size else ""


def told_size(reply: Response) -> int:
    """The whole file's bytes; 0 where they are not told."""
    ranged = re.search(r"/(\d+)$", reply.headers.get("Content-Range", ""))
    if reply.status_code == 206:
        return int(ranged[1]) if ranged else 0
    length = reply.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else 0


def _digests(headers: Mapping[str, str]) -> dict[str, str]:
    """Digests (hex) that a server tells: X-Checksum-… as repository managers do, RFC 9530's."""
    found = {}
    for kind in ("sha256", "sha1"):
        if told := headers.get(f"X-Checksum-{kind}"):
            found[kind] = told.lower()
    for key in ("Repr-Digest", "Digest"):
        if match := re.search(r"sha-256=:?([A-Za-z0-9+/=]{44}):?", headers.get(key, ""), re.I):
            try:
                found["sha256"] = base64.b64decode(match[1], validate=True).hex()
            except binascii.Error:
                continue
    return found


def _ask_local(path: Path, place: str, pin: Pin) -> Answer:
    if not path.is_file():
        return Answer(place=unquote(place), state=GONE, why="no such file")
    wrong = differs(path, pin)
    return Answer(place=unquote(place), state=CHANGED if wrong else OK, why=wrong)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image of a registry: name:tag@sha256:…, either of both."""

    host: str
    repository: str
    tag: str
    digest: str

    @property
    def address(self) -> str:
        """Where its manifests are. A registry of this machine speaks plain HTTP, as to Docker."""
        name = self.host.partition(":")[0]
        plain = name == "localhost" or name.startswith("127.")
        return f"http{'' if plain else 's'}://{self.host}/v2/{self.repository}/manifests"


def parse_reference(text: str) -> Reference:
    """An image's name as Docker reads it: without a host it is the Docker Hub's."""
    name, _, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    hosted = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host, path = (first, rest) if hosted else (_HUB, name)
    if host in ("docker.io", "index.docker.io"):
        host = _HUB
    repository, _, tag = path.partition(":")
    if host == _HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host=host, repository=repository, tag=tag, digest=digest)


def ask_image(text: str) -> Answer:
    """Whether a registry still has the manifest that the digest names."""
    image = parse_reference(text)
    place = f"{image.host}/{image.repository}"
    try:
        found = manifest_digest(image, image.digest or image.tag or "latest")
    except NotReachedError as error:
        return Answer(place=place, state=NOT_REACHED, why=str(error))
    if not found:
        return Answer(place=place, state=GONE, why="the registry has no such manifest")
    if image.digest and found != image.digest:
        return Answer(place=place, state=CHANGED, why=f"it gives {found}")
    return Answer(place=place, state=OK, why=_tag_note(image))


def _tag_note(image: Reference) -> str:
    if not (image.tag and image.digest):
        return ""
    try:
        now = manifest_digest(image, image.tag)
    except NotReachedError:
        return ""
    if not now:
        return f"the tag {image.tag} is gone"
    return "" if now == image.digest else f"the tag {image.tag} is at {now} now"


def manifest_digest(image: Reference, named: str) -> str:
    """The digest (sha256:…) of the manifest a registry has under a tag or digest; "" for none.

    Anonymously, or with the password that .netrc has for the registry.
    """
    address = f"{image.address}/{named}"
    headers = {"Accept": _MANIFESTS}
    reply = request("HEAD", address, headers=headers)
    reply.close()
    if reply.status_code == 401:
        headers["Authorization"] = token(reply.headers.get("WWW-Authenticate", ""))
        reply = request("HEAD", address, headers=headers)
        reply.close()
    if reply.status_code == 404:
        return ""
    if not reply.ok:
        raise NotReachedError(f"the registry says {reply.status_code} {reply.reason}")
    if told := reply.headers.get("Docker-Content-Digest"):
        return told
    body = request("GET", address, headers=headers).content
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def token(challenge: str, **options: Any) -> str:
    """The Authorization for a registry's challenge: a token from where it says.

    `options` are for requests: who asks, where .netrc does not say so.
    """
    told = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.lower().startswith("bearer") or "realm" not in told:
        raise NotReachedError("the registry wants a password")
    query = {key: told[key] for key in ("service", "scope") if key in told}
    reply = request("GET", told["realm"], params=query, **options)
    try:
        body = reply.json() if reply.ok else {}
    except ValueError:
        body = {}
    given = body.get("token") or body.get("access_token")
    if not given:
        raise NotReachedError(f"the registry gives no token ({reply.status_code})")
    return f"Bearer {given}"
