"""The mnn image: a wrong one is found out, and it is free of everything that is the user's."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.engine import Engine
from edgekiln.errors import ImageError
from edgekiln.home import home
from edgekiln.progress import Silent
from edgekiln.toolchain import MARKER, load_toolchain
from edgekiln.toolchain.wheels import find_local, put
from edgekiln.user import aptconf, pipconf
from tests.images.content import called, found_in, listing

pytestmark = pytest.mark.engine


def test_verify_fails_in_an_image_that_is_not_as_locked(engine: Engine, mnn: str) -> None:
    broken = f"edgekiln-test/broken:{secrets.token_hex(4)}"
    script = 'sed -i \'s/"3.6.1"/"3.6.0"/\' /opt/edgekiln/lock.json'
    container = called(engine, ["create", "--user", "0", mnn, "sh", "-c", script])
    try:
        called(engine, ["start", "--attach", container])
        change = ["--change", "USER 65534:65534", "--change", 'CMD ["python3"]']
        called(engine, ["commit", *change, container, broken])
        with pytest.raises(ImageError) as caught:
            images.verify(engine, broken)
        assert "not as locked: mnn 3.6.1" in caught.value.why
    finally:
        called(engine, ["rm", "--force", container])
        called(engine, ["rmi", broken])


@contextmanager
def guarded_index(password: str) -> Iterator[str]:
    """An index on this machine that is empty and wants a password; yields its address."""
    wanted = "Basic " + base64.b64encode(f"kiln:{password}".encode()).decode()
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == wanted
            seen.append(self.path if allowed else "")
            self.send_response(404 if allowed else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://kiln:{password}@127.0.0.1:{server.server_port}/simple-{password}"
        assert any(f"simple-{password}" in path for path in seen), "the index was never asked"
    finally:
        server.shutdown()
        server.server_close()


@dataclasses.dataclass(frozen=True)
class Planted:
    """Settings of a user, each with a word in it that is nowhere else."""

    words: dict[str, bytes]
    image: str


@pytest.fixture
def planted(
    engine: Engine, mnn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Planted]:
    """The image built anew by a user with settings of every kind."""
    names = ("password", "links", "ca", "netrc", "agent", "proxy")
    words = {name: f"planted-{name}-{secrets.token_hex(8)}" for name in names}
    own = pipconf.pip_settings()
    toolchain = load_toolchain("mnn")
    links = tmp_path / words["links"]
    links.mkdir()
    for file, path in find_local(toolchain.lock.wheels, own).items():
        put(path, links / file)
    ca = tmp_path / f"{words['ca']}.pem"
    ca.write_bytes(f"# {words['ca']}\n".encode() + _own_certificates(own))
    (tmp_path / "netrc").write_text(f"machine i.example login kiln password {words['netrc']}\n")
    apt = tmp_path / "apt.conf"
    apt.write_text(f'Acquire::http::User-Agent "{words["agent"]}";\n')
    with guarded_index(words["password"]) as index:
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{' '.join(own.extra_index_urls)} {index}")
        monkeypatch.setenv("PIP_FIND_LINKS", str(links))
        monkeypatch.setenv("PIP_CERT", str(ca))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("NO_PROXY", f"{words['proxy']}.example")
        monkeypatch.setenv("APT_CONFIG", str(apt))
        pipconf.pip_settings.cache_clear()
        aptconf._dump.cache_clear()
        # The same toolchain under another name, so that the user's own image stays.
        other = dataclasses.replace(
            toolchain, installed=hashlib.sha256(words["password"].encode()).hexdigest()
        )
        image = images.build(engine, other, Silent(), fresh=True)
    try:
        yield Planted(words={name: word.encode() for name, word in words.items()}, image=image)
    finally:
        called(engine, ["rmi", image])
        pipconf.pip_settings.cache_clear()
        aptconf._dump.cache_clear()


def _own_certificates(own: pipconf.PipSettings) -> bytes:
    """The certificates this machine needs to reach its index."""
    import ssl

    return Path(own.cert or ssl.get_default_verify_paths().openssl_cafile).read_bytes()


@pytest.mark.slow
def test_nothing_of_the_users_settings_is_in_the_image(
    engine: Engine, mnn: str, planted: Planted
) -> None:
    settings = dict(planted.words)
    settings["home"] = str(home()).encode()
    own = pipconf.pip_settings()
    settings |= {f"links {i}": str(path).encode() for i, path in enumerate(own.folders())}
    settings |= {f"index {i}": str(path).encode() for i, path in enumerate(own.file_indexes())}
    # A label is part of the image: that it is found shows that the search looks everywhere.
    there, layer = b"io.edgekiln.toolchain", b"Proves that this image is what its lock says"
    found = found_in(engine, planted.image, [*settings.values(), there, layer])
    assert {name for name, word in settings.items() if word in found} == set()
    assert {there, layer} <= found
    # And nothing that cannot be searched for: behind other settings the same files come out, but
    # for the one that has the name that the other image was given.
    marker = f"opt/edgekiln/{MARKER}"
    ours, theirs = (listing(engine, image) for image in (mnn, planted.image))
    assert {**theirs, marker: ()} == {**ours, marker: ()}
