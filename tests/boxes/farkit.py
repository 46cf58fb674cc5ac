"""A second machine for tests: a box with a real sshd, and a line to it that can be cut."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.boxes import kit
from tests.boxes.kit import Box
from tests.builds.kit import call


class Cable:
    """Passes bytes on between this machine and another; it can be cut, and counts.

    `limit` (bytes a second) leaves time to cut in the middle of a transfer.
    """

    def __init__(self, to: tuple[str, int], limit: int = 0) -> None:
        self._to, self.limit = to, limit
        self.sent = self.received = 0
        self.cuts = 0
        self._plugged = threading.Event()
        self._plugged.set()
        self._ends: list[socket.socket] = []
        self._when: Callable[[], bool] | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_once(self, when: Callable[[], bool]) -> None:
        """Cut as soon as `when()` is true; looked at before each piece is passed on."""
        self._when = when

    def cut(self) -> None:
        """End every connection; new ones are taken again at once."""
        self.cuts += 1
        ends, self._ends = self._ends, []
        for end in ends:
            end.close()

    def unplug(self) -> None:
        """Cut, and take no connection until `plug()`."""
        self._plugged.clear()
        self.cut()

    def plug(self) -> None:
        """Take connections again."""
        self._plugged.set()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            if not self._plugged.is_set():
                here.close()
                continue
            there = socket.create_connection(self._to)
            self._ends += [here, there]
            threading.Thread(target=self._pass_on, args=(here, there), daemon=True).start()

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while True:
                ready, _, _ = select.select([here, there], [], [], 0.02)
                if self._when and self._when():
                    self._when = None
                    self.cut()
                for end in ready:
                    data = end.recv(1 << 14)
                    if not data:
                        raise OSError
                    (there if end is here else here).sendall(data)
                    self._count(len(data), outward=end is here)
        except (OSError, ValueError):
            here.close()
            there.close()

    def _count(self, size: int, *, outward: bool) -> None:
        if outward:
            self.sent += size
        else:
            self.received += size
        if self.limit:
            time.sleep(size / self.limit)


@dataclass(kw_only=True)
class Second:
    """A second machine, the cable to it, and the folder of a user who knows its key."""

    box: Box
    cable: Cable
    me: Path
    home: str = kit.HOME
    user: str = "root"

    @property
    def env(self) -> dict[str, str]:
        """The variables of a command that is to know this machine as `second`."""
        return {"HOME": str(self.me), "EDGEKILN_HOSTS": str(self.me / "hosts.yaml")}

    def named(self, **more: str) -> None:
        """Write hosts.yaml anew."""
        env = "{EDGEKILN_VENDOR: /media/vendor, PIP_NO_INDEX: '1'}"
        known = {"executor": "native", "home": self.home, "env": env, **more}
        lines = [f"  {key}: {value}" for key, value in known.items()]
        address = f"  address: ssh://{self.user}@127.0.0.1:{self.cable.port}"
        text = "\n".join(["second:", address, *lines]) + "\n"
        (self.me / "hosts.yaml").write_text(text, encoding="utf-8")


def second(box: Box, me: Path, home: str = kit.HOME) -> Second:
    """Start a real sshd in a box, for the box's user, who logs in by a key made now."""
    user = box.wanted.user
    folder = f"{'/root' if user == 'root' else f'/home/{user}'}/.ssh"
    ssh = me / ".ssh"
    ssh.mkdir(mode=0o700, parents=True)
    made = call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "id_ed25519")], {})
    assert made.returncode == 0, made.stderr
    box.must("mkdir", "-p", "-m", "700", folder)
    public = (ssh / "id_ed25519.pub").read_text(encoding="utf-8")
    box.run("tee", f"{folder}/authorized_keys", input=public)
    box.must("ssh-keygen", "-A", user="root")
    box.must("/usr/sbin/sshd", user="root")
    cable = Cable((box.address, 22))
    key = box.must("cat", "/etc/ssh/ssh_host_ed25519_key.pub", user="root").split()
    line = f"[127.0.0.1]:{cable.port} {key[0]} {key[1]}\n"
    (ssh / "known_hosts").write_text(line, encoding="utf-8")
    found = Second(box=box, cable=cable, me=me, home=home, user=user)
    found.named()
    return found
