"""The distribution's own registry on the loopback, behind TLS, a password or a line that breaks."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import bcrypt
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PATIENCE = 20.0  # seconds
PIECE = 1 << 14  # bytes that a line takes at once


@dataclass(frozen=True, kw_only=True)
class Registry:
    """One that runs. `place` is HOST:PORT/REPOSITORY, `blobs` where it has its files."""

    port: int
    place: str
    files: Path
    log: Path

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.files / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"

    def asked(self) -> list[str]:
        """Method and path of each request, in order."""
        found = re.findall(r'"((?:GET|HEAD|POST|PUT|PATCH) \S+) HTTP/', self.log.read_text())
        return [str(line) for line in found]


def program() -> str:
    """docker-registry, or a skip that says how to get it."""
    found = shutil.which("docker-registry")
    if found is None:
        pytest.skip("no docker-registry: apt-get install docker-registry")
    return found


@contextmanager
def serving(
    folder: Path,
    *,
    certificate: tuple[Path, Path] | None = None,
    users: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
) -> Iterator[Registry]:
    """Run one on a free port until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = {
        **os.environ,
        "REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(folder / "files"),
        "REGISTRY_LOG_ACCESSLOG_DISABLED": "false",
    }
    text = "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /nowhere\nhttp:\n  addr: :0\n"
    scheme = "http"
    if certificate:
        scheme = "https"
        env["REGISTRY_HTTP_TLS_CERTIFICATE"], env["REGISTRY_HTTP_TLS_KEY"] = map(str, certificate)
    if users:
        words = (
            f"{n}:{bcrypt.hashpw(p.encode(), bcrypt.gensalt(4)).decode()}" for n, p in users.items()
        )
        (folder / "users").write_text("\n".join(words))
        env["REGISTRY_AUTH"] = "htpasswd"
        env["REGISTRY_AUTH_HTPASSWD_REALM"] = "test"
        env["REGISTRY_AUTH_HTPASSWD_PATH"] = str(folder / "users")
    env |= settings or {}
    (folder / "config.yml").write_text(text)
    log = folder / "log"
    with log.open("wb") as out:
        command = [program(), "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        _wait(port, process, log)
        place = f"{scheme}://127.0.0.1:{port}/me/edgekiln"
        yield Registry(port=port, place=place, files=folder / "files", log=log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _PATIENCE
    while time.monotonic() < ends and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text()[-2000:])


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def made_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgekiln test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private


@dataclass(kw_only=True)
class Line:
    """A way to a port that breaks: each of `cuts` ends one connection after so many bytes."""

    port: int
    cuts: list[int] = field(default_factory=list)
    received: int = 0  # bytes that came back over all connections
    sent: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def line_to(port: int, cuts: list[int]) -> Iterator[Line]:
    """Forward a free port to another, byte for byte, with `cuts`."""
    server = socket.create_server(("127.0.0.1", 0))
    line = Line(port=server.getsockname()[1], cuts=cuts)
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                near, _ = server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=_forward, args=(near, far, line, False), daemon=True).start()
            threading.Thread(target=_forward, args=(far, near, line, True), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def _forward(source: socket.socket, sink: socket.socket, line: Line, back: bool) -> None:
    """Bytes of one direction. A cut is for the first connection that has carried so many."""
    carried = 0
    try:
        while data := source.recv(PIECE):
            carried += len(data)
            with line.guard:
                line.received += len(data) if back else 0
                line.sent += 0 if back else len(data)
                cut = bool(line.cuts) and carried > line.cuts[0]
                if cut:
                    line.cuts.pop(0)
            if cut:
                break
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def manifest(registry: Registry, tag: str) -> requests.Response:
    """What it has under a tag, asked for without any of our code."""
    address = f"http://127.0.0.1:{registry.port}/v2/me/edgekiln/manifests/{tag}"
    kind = "application/vnd.oci.image.manifest.v1+json"
    return requests.get(address, headers={"Accept": kind}, timeout=10)
