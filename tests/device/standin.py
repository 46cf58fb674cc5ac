"""A stand-in for a phone: it answers adb's own protocol on the loopback.

What the real adbd does is done here for the services that edgekiln uses: `shell:` and
`shell,v2:` run their line with this machine's sh, `sync:` keeps files (STAT, LST2, STA2, SEND,
RECV, LIST, QUIT), `exec:cmd package install … -S N` takes an app of N bytes. The phone's
/data/local/tmp and /storage/emulated/0 are folders of this machine; getprop and df are scripts
that tell what the test wants told. Formats: AOSP's packages/modules/adb, protocol.txt, SYNC.TXT
and shell_protocol.h; client/adb_install.cpp for apps.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

TMP = "/data/local/tmp"
STORAGE = "/storage/emulated/0"
_VERSION, _LARGEST = 0x01000001, 256 * 1024
_FEATURES = "shell_v2,cmd,stat_v2,fixed_push_mkdir"
_OUT, _ERR, _EXIT = 1, 2, 3
_TOKEN = 1
_NO_SPACE = "couldn't write: No space left on device"


class Phone:
    """A phone with a folder for its files.

    `quota`: bytes its files may take. `cut_after`: the connection breaks when so many bytes of
    files have arrived. `sent`: the paths of all files that arrived whole. `apps`: what was
    installed, each with the words of its command; `refusal`: what the package manager says
    instead of taking one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authorized: bool = True,
        answers: bool = True,
        streams_apps: bool = True,
    ) -> None:
        self.root = folder / "files"
        self.tmp = self.root / TMP.lstrip("/")
        self.tmp.mkdir(parents=True)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.quota: int | None = None
        self.cut_after: int | None = None
        self.arrived = 0
        self.sent: list[str] = []
        self.lines: list[str] = []
        self.apps: list[tuple[list[str], bytes]] = []
        self.refusal = ""
        self.features = _FEATURES if streams_apps else _FEATURES.replace("cmd,", "")
        self._authorized, self._answers = authorized, answers
        self._connections: list[_Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()
        self.properties({"ro.soc.model": "SM8750", "ro.product.model": "Stand-in"})

    def properties(self, values: dict[str, str]) -> None:
        """What getprop tells."""
        cases = "\n".join(f"{shlex.quote(k)}) echo {shlex.quote(v)};;" for k, v in values.items())
        self.program("getprop", f'case "$1" in\n{cases}\n*) echo;;\nesac\n')

    def free(self, kilobytes: int) -> None:
        """What df tells."""
        head = "Filesystem 1024-blocks Used Available Capacity Mounted on"
        self.program("df", f"echo '{head}'\necho '/dev/block/dm-9 9999 1 {kilobytes} 1% /data'\n")

    def program(self, name: str, script: str) -> None:
        """A program on the phone's PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
        path.chmod(0o755)

    def path(self, name: str) -> Path:
        """Where a path of the phone's lies on this machine."""
        return self.root / name.lstrip("/")

    def drop(self) -> None:
        """Break every connection, as a pulled cable does."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def close(self) -> None:
        # close() alone leaves a thread that waits in accept() waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            connection = _Connection(self, peer)
            self._connections.append(connection)
            if self._answers:
                threading.Thread(target=connection.run, daemon=True).start()

    @property
    def authorized(self) -> bool:
        return self._authorized


class _Connection:
    """One adb server's connection: messages in and out, streams by their ids."""

    def __init__(self, phone: Phone, peer: socket.socket) -> None:
        self.phone, self._peer = phone, peer
        self._guard = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = int.from_bytes(command, "little")
        head = struct.pack("<6I", number, first, second, len(data), 0, number ^ 0xFFFFFFFF)
        with self._guard:
            self._peer.sendall(head + data)

    def run(self) -> None:
        try:
            while head := self._exactly(24):
                number, first, second, length, _, _ = struct.unpack("<6I", head)
                data = self._exactly(length) if length else b""
                self._message(number.to_bytes(4, "little"), first, second, data)
        except (OSError, EOFError):
            pass
        for stream in list(self._streams.values()):
            stream.closed()
        self.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._peer.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _message(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command == b"CNXN":
            if self.phone.authorized:
                banner = "device::ro.product.name=standin;ro.product.model=Stand_in;"
                banner += f"ro.product.device=standin;features={self.phone.features}"
                self.send(b"CNXN", _VERSION, _LARGEST, banner.encode())
            else:
                self.send(b"AUTH", _TOKEN, 0, os.urandom(20))
        elif command == b"AUTH" and first == 2:
            # Not a key this phone knows: another token, until the user would have said yes.
            self.send(b"AUTH", _TOKEN, 0, os.urandom(20))
        elif command == b"OPEN":
            stream = _Stream(self, len(self._streams) + 1, first)
            self._streams[stream.id] = stream
            self.send(b"OKAY", stream.id, first)
            service = data.rstrip(b"\0").decode("utf-8")
            threading.Thread(target=_serve, args=(stream, service), daemon=True).start()
        elif stream := self._streams.get(second):
            if command == b"WRTE":
                stream.take(data)
                self.send(b"OKAY", stream.id, first)
            elif command == b"OKAY":
                stream.ready.release()
            elif command == b"CLSE":
                stream.closed()


class _Stream:
    """One service's two-way flow of bytes; each packet out waits for its OKAY."""

    def __init__(self, connection: _Connection, number: int, peer: int) -> None:
        self.connection, self.id, self._peer = connection, number, peer
        self.ready = threading.Semaphore(1)
        self._incoming: queue.Queue[bytes | None] = queue.Queue()
        self._held = b""
        self.gone = threading.Event()

    def take(self, data: bytes) -> None:
        self._incoming.put(data)

    def closed(self) -> None:
        self.gone.set()
        self._incoming.put(None)
        self.ready.release()

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), _LARGEST):
            self.ready.acquire()
            if self.gone.is_set():
                raise EOFError
            self.connection.send(b"WRTE", self.id, self._peer, data[at : at + _LARGEST])

    def exactly(self, count: int) -> bytes:
        while len(self._held) < count:
            piece = self._incoming.get()
            if piece is None:
                raise EOFError
            self._held += piece
        found, self._held = self._held[:count], self._held[count:]
        return found

    def end(self) -> None:
        if not self.gone.is_set():
            self.connection.send(b"CLSE", self.id, self._peer)


def _serve(stream: _Stream, service: str) -> None:
    try:
        kind, _, line = service.partition(":")
        if kind == "sync":
            _Sync(stream).run()
        elif kind == "exec":
            _take_app(stream, shlex.split(line))
        elif kind.split(",")[0] == "shell":
            _shell(stream, line, v2="v2" in kind.split(","))
        stream.end()
    except (EOFError, OSError):
        pass


def _take_app(stream: _Stream, words: list[str]) -> None:
    """The package manager: an app of as many bytes as -S says, then a line about it."""
    phone = stream.connection.phone
    if words[:3] != ["cmd", "package", "install"]:
        stream.write(f"{words[0]}: not a service of the stand-in\n".encode())
        return
    data = stream.exactly(int(words[words.index("-S") + 1]))
    if phone.refusal:
        stream.write(f"Failure [{phone.refusal}]\n".encode())
    else:
        phone.apps.append((words, data))
        stream.write(b"Success\n")


def _shell(stream: _Stream, line: str, *, v2: bool) -> None:
    """A line of the shell, run here; the phone's folder stands for its /data/local/tmp."""
    phone = stream.connection.phone
    phone.lines.append(line)
    process = subprocess.Popen(
        ["sh", "-c", line.replace(TMP, str(phone.tmp)).replace(STORAGE, str(phone.path(STORAGE)))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if v2 else subprocess.STDOUT,
        cwd=phone.root,
        env={"PATH": f"{phone.bin}:{os.environ['PATH']}", "LANG": "C.UTF-8"},
        start_new_session=True,
    )
    guard = threading.Lock()

    def tell(kind: int, data: bytes) -> None:
        with guard:
            stream.write(struct.pack("<BI", kind, len(data)) + data if v2 else data)

    def copy(kind: int, pipe: int) -> None:
        try:
            while data := os.read(pipe, 1 << 15):
                tell(kind, data.replace(str(phone.tmp).encode(), TMP.encode()))
        except (EOFError, OSError):
            pass

    pipes = [(_OUT, process.stdout), (_ERR, process.stderr)]
    readers = [
        threading.Thread(target=copy, args=(kind, pipe.fileno()), daemon=True)
        for kind, pipe in pipes
        if pipe is not None
    ]
    for reader in readers:
        reader.start()
    code = process.wait()
    for reader in readers:
        reader.join(2)
    if v2:
        # As adbd has it: a signal's number and 128.
        tell(_EXIT, bytes([code if code >= 0 else 128 - code]))


class _Sync:
    """The service that copies files."""

    def __init__(self, stream: _Stream) -> None:
        self._stream, self._phone = stream, stream.connection.phone
        self._verbs: dict[bytes, Callable[[Path, str], None]] = {
            b"STAT": self._stat,
            b"LST2": self._stat2,
            b"STA2": self._stat2,
            b"SEND": self._receive,
            b"RECV": self._give,
            b"LIST": self._list,
        }
        self._verb = b""

    def run(self) -> None:
        while True:
            self._verb, length = self._head()
            if self._verb == b"QUIT":
                return
            words = self._stream.exactly(length).decode("utf-8")
            name, _, mode = words.rpartition(",") if self._verb == b"SEND" else (words, "", "")
            self._verbs[self._verb](self._phone.path(name), mode)

    def _head(self) -> tuple[bytes, int]:
        head = self._stream.exactly(8)
        return head[:4], struct.unpack("<I", head[4:])[0]

    def _fail(self, words: str) -> None:
        data = words.encode()
        self._stream.write(b"FAIL" + struct.pack("<I", len(data)) + data)

    def _stat(self, path: Path, _: str) -> None:
        found = path.stat() if path.exists() else None
        words = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        self._stream.write(b"STAT" + struct.pack("<3I", *words))

    def _stat2(self, path: Path, _: str) -> None:
        """struct sync_stat_v2: error, dev, ino, mode, nlink, uid, gid, size, three times."""
        shape = "<IQQIIIIQqqq"
        if not path.exists():
            self._stream.write(self._verb + struct.pack(shape, 2, *([0] * 10)))
            return
        s = path.stat()
        times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
        words = (0, s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size)
        self._stream.write(self._verb + struct.pack(shape, *words, *times))

    def _receive(self, path: Path, mode: str) -> None:
        """A file arrives. As adbd does: the old one goes first, an unfinished one goes too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        full = False
        try:
            with path.open("wb") as file:
                while True:
                    kind, number = self._head()
                    if kind == b"DONE":
                        break
                    data = self._stream.exactly(number)
                    self._count(number)
                    full = full or self._over(number)
                    if not full:
                        file.write(data)
                        file.flush()
        except (EOFError, OSError):
            path.unlink(missing_ok=True)
            raise
        if full:
            path.unlink(missing_ok=True)
            self._fail(_NO_SPACE)
            return
        path.chmod(int(mode) & 0o777 or 0o644)
        os.utime(path, (number, number))
        self._phone.sent.append("/" + path.relative_to(self._phone.root).as_posix())
        self._stream.write(b"OKAY" + struct.pack("<I", 0))

    def _count(self, number: int) -> None:
        phone = self._phone
        phone.arrived += number
        if phone.cut_after is not None and phone.arrived >= phone.cut_after:
            phone.cut_after = None
            phone.drop()
            raise EOFError

    def _over(self, number: int) -> bool:
        if self._phone.quota is None:
            return False
        used = sum(p.stat().st_size for p in self._phone.root.rglob("*") if p.is_file())
        return used + number > self._phone.quota

    def _give(self, path: Path, _: str) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            self._fail(error.strerror or "cannot be read")
            return
        for at in range(0, len(data), 1 << 16):
            piece = data[at : at + (1 << 16)]
            self._stream.write(b"DATA" + struct.pack("<I", len(piece)) + piece)
        self._stream.write(b"DONE" + struct.pack("<I", 0))

    def _list(self, path: Path, _: str) -> None:
        for entry in sorted(path.iterdir()) if path.is_dir() else []:
            s, name = entry.stat(), entry.name.encode()
            words = (s.st_mode, s.st_size, int(s.st_mtime), len(name))
            self._stream.write(b"DENT" + struct.pack("<4I", *words) + name)
        self._stream.write(b"DONE" + struct.pack("<4I", 0, 0, 0, 0))
