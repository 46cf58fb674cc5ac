"""One SSH connection to another machine, by Fabric: whose keys are known, and what a loss is."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.errors import KilnError, RemoteError
from edgekiln.remote.hosts import Host
from edgekiln.remote.wire import CHUNK, Cut, Wire

if TYPE_CHECKING:
    from fabric import Connection
    from paramiko import Channel

_CONNECT_SECONDS = 20
# The far side says something every ten seconds while it works.
_SILENCE_SECONDS = 45.0
# How long one stream is waited for before the other is looked at.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command over there ended with."""

    code: int
    out: str
    err: str


class Link:
    """A connection that is made when it is first needed, and again after a loss."""

    def __init__(self, host: Host, *, accept_new: bool = False) -> None:
        self.host, self._accept_new = host, accept_new
        self._guard = threading.Lock()
        self._connection: Connection | None = None
        self.sent = 0
        self.received = 0

    def channel(self, command: str) -> Channel:
        """A command over there, its standard streams being the channel. Raises Cut."""
        with _losses():
            channel = self._transport().open_session(timeout=_CONNECT_SECONDS)
            channel.settimeout(_SILENCE_SECONDS)
            channel.exec_command(command)
            return channel

    def wire(self, channel: Channel) -> Wire:
        """A conversation over a channel; what goes over it is counted."""

        def read(size: int) -> bytes:
            with _losses():
                data = channel.recv(size)
            self.received += len(data)
            return bytes(data)

        def write(data: bytes) -> None:
            with _losses():
                channel.sendall(data)
            self.sent += len(data)

        return Wire(read, write)

    def run(self, command: str, data: bytes = b"", *, timeout: float = _SILENCE_SECONDS) -> Said:
        """A command over there, to its end. `timeout`: seconds without a word. Raises Cut."""
        channel = self.channel(command)
        channel.settimeout(timeout)
        out, err = bytearray(), bytearray()
        with contextlib.closing(channel), _losses():
            for start in range(0, len(data), CHUNK):
                channel.sendall(data[start : start + CHUNK])
                self.sent += len(data[start : start + CHUNK])
            channel.shutdown_write()
            _read_both(channel, out, err, timeout)
            code = channel.recv_exit_status()
        if code == -1:
            raise Cut("it was closed")
        return Said(code=code, out=out.decode(errors="replace"), err=err.decode(errors="replace"))

    def drop(self) -> None:
        """Let go of a connection that is lost; the next need makes another."""
        with self._guard:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _transport(self) -> Any:
        with self._guard:
            if self._connection is None or not self._connection.is_connected:
                self._connection = self._connect()
            return self._connection.client.get_transport()

    def _connect(self) -> Connection:
        import paramiko
        from fabric import Connection

        logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)
        kwargs: dict[str, Any] = {"banner_timeout": _CONNECT_SECONDS}
        kwargs |= {"auth_timeout": _CONNECT_SECONDS, **_credentials(self.host)}
        connection = Connection(
            self.host.machine,
            user=self.host.user,
            port=self.host.port,
            connect_timeout=_CONNECT_SECONDS,
            connect_kwargs=kwargs,
        )
        clients = [connection.client]
        if isinstance(connection.gateway, Connection):
            clients.append(connection.gateway.client)
        for client in clients:
            _know_hosts(client, self._accept_new)
        try:
            connection.open()
        except KilnError:
            raise
        except paramiko.BadHostKeyException as error:
            port = connection.port if error.hostname == connection.host else None
            raise _changed(self.host, error, port) from error
        except paramiko.AuthenticationException as error:
            why = str(error) or "the key was refused"
            raise _not_let_in(self.host, connection.user, why) from error
        except socket.gaierror as error:
            why = error.strerror or str(error)
            raise RemoteError(
                f"{self.host.name} cannot be found", why=why, remedy="look at its address"
            ) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            if "No authentication methods" in str(error):
                why = "there is no key for it here, and none in an agent"
                raise _not_let_in(self.host, connection.user, why) from error
            raise Cut(_brief(error)) from error
        connection.client.get_transport().set_keepalive(15)
        return connection


def _read_both(channel: Channel, out: bytearray, err: bytearray, timeout: float) -> None:
    """Read both streams to their ends; where one is left unread, what is over there stands still.

    Raises TimeoutError after `timeout` seconds without a word on either.
    """
    heard = time.monotonic()
    channel.settimeout(_LOOK_SECONDS)
    while True:
        try:
            piece = channel.recv(CHUNK)
        except TimeoutError:
            piece = None
        out += piece or b""
        before = len(err)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(CHUNK)
        if piece == b"":
            break
        if piece or len(err) > before:
            heard = time.monotonic()
        elif time.monotonic() - heard > timeout:
            raise TimeoutError
    channel.settimeout(timeout)
    while piece := channel.recv_stderr(CHUNK):
        err += piece


def _credentials(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if host.key:
        found["key_filename"] = str(_key_file(host))
    if host.password_from:
        password = os.environ.get(host.password_from)
        if not password:
            raise RemoteError(
                f"the password of {host.name} is not there",
                why=f"the variable {host.password_from} is not set",
                remedy=f"read -rs {host.password_from}; export {host.password_from}",
            )
        found["password"] = password
    return found


def _key_file(host: Host) -> Path:
    """The private key that hosts.yaml names. Raises RemoteError for a file that is none."""
    path = Path(host.key).expanduser()
    try:
        with path.open("rb") as file:
            begins = file.read(80)
    except OSError as error:
        why = error.strerror or str(error)
    else:
        if b"PRIVATE KEY-----" in begins:
            return path
        why = "it is no private key as OpenSSH writes them; a .pub is the public half"
    raise RemoteError(
        f"the key of {host.name}, {path}, cannot be used",
        why=why,
        remedy="name the private key's file in hosts.yaml (key:), or leave key: out",
    )


def _not_let_in(host: Host, user: str, why: str) -> RemoteError:
    return RemoteError(
        f"{host.name} does not let {user} in",
        why=why,
        remedy="see that `ssh` gets in (`ssh-add` opens a locked key); name the key in hosts.yaml "
        "(key:), or the variable that holds the password (password_from:)",
    )


def _know_hosts(client: Any, accept_new: bool) -> None:
    """Keys of hosts are those that ssh knows; an unknown one is refused, or added if asked."""
    import paramiko

    class Unknown(paramiko.MissingHostKeyPolicy):  # type: ignore[misc, unused-ignore]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            line = f"{hostname} {key.get_name()} {key.get_base64()}"
            if accept_new:
                _add(line)
                return
            raise RemoteError(
                f"the key of {hostname} is not known",
                why=f"it shows {key.get_name()} {fingerprint(key)}",
                remedy=f"compare that with what its owner says, then add to {_known_hosts()}: "
                f"{line}; or run `kiln hosts check NAME --accept-new`",
            )

    client.load_system_host_keys(str(_known_hosts()) if _known_hosts().exists() else None)
    with contextlib.suppress(OSError):
        client.load_system_host_keys("/etc/ssh/ssh_known_hosts")
    client.set_missing_host_key_policy(Unknown())


def _known_hosts() -> Path:
    return Path.home() / ".ssh" / "known_hosts"


def _add(line: str) -> None:
    path = _known_hosts()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    gap = "\n" if before and not before.endswith("\n") else ""  # two keys on one line are none
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{gap}{line}\n")


def fingerprint(key: Any) -> str:
    """A key's fingerprint as ssh writes it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + b64encode(digest).decode().rstrip("=")


def _changed(host: Host, error: Any, port: int | None) -> RemoteError:
    """The error for another key than the known one, which lies under [NAME]:PORT but for 22."""
    name = f"[{error.hostname}]:{port}" if port not in (None, 22) else error.hostname
    return RemoteError(
        f"{host.name} shows another key than the one that is known",
        why=f"it shows {error.key.get_name()} {fingerprint(error.key)}; somebody may be in between",
        remedy=f"if its owner says the key is new: ssh-keygen -R '{name}', then "
        "`kiln hosts check NAME --accept-new`",
    )


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    """What paramiko says when a connection is lost, as Cut."""
    import paramiko

    try:
        yield
    except (OSError, EOFError, paramiko.SSHException) as error:  # TimeoutError is an OSError
        silent = isinstance(error, TimeoutError) and not str(error)
        raise Cut("nothing comes from there" if silent else _brief(error)) from error


def _brief(error: Exception) -> str:
    """What an exception says, without its number."""
    return re.sub(r"^\[Errno \w+\] ", "", str(error)) or type(error).__name__
