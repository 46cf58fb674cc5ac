"""The user's own `adb`: found, asked for its phones, and used to run commands and copy files.

Every word to the phone goes through that program; edgekiln speaks no protocol of its own, so
whatever the user has set up (USB, Wi-Fi, a server elsewhere) is what is used.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import IO

from edgekiln.calls import call, last_words
from edgekiln.errors import DeviceError, DiskError, UsageError, nearest

_SDK_VARIABLES = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
_ASK = 60.0
# How long a copy may stand still before it counts as dead.
_STALLED = 120.0
_POLL = 0.5
_DEVICE = re.compile(r"^(?P<serial>\S+)\s+(?P<state>no permissions|\S+)(?P<rest>.*)$")
_NOT_READY = {
    "unauthorized": (
        "the phone has not allowed this computer",
        "unlock the phone and accept its question about USB debugging; if it does not ask, "
        "switch USB debugging off and on in the developer options",
    ),
    "authorizing": ("the phone is just being asked", "accept its question, then try again"),
    "connecting": ("the connection is just being made", "try again in some seconds"),
    "offline": (
        "it does not answer",
        "pull the cable and plug it in again, or run: adb reconnect",
    ),
    "no permissions": (
        "this user may not open the USB device",
        "on Debian and Ubuntu: sudo apt install android-sdk-platform-tools-common, then plug "
        "the phone in again",
    ),
    "recovery": ("it is in recovery mode", "start it normally"),
    "sideload": ("it waits for an update (sideload)", "start it normally"),
    "bootloader": ("it is in its bootloader", "start it normally"),
}
# What adb says when it is the connection that failed, not the command on the phone.
_LOST = re.compile(
    r"(adb(\.exe)?|error): .*(not found|offline|unauthorized|closed|no devices|protocol fault|"
    r"connect failed|connection reset|more than one)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A line of `adb devices`: `state` is device for a phone that can be used."""

    serial: str
    state: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a followed command ended: code as on the phone, and all it said."""

    code: int
    out: str
    err: str
    seconds: float


def find_adb() -> Path:
    """The adb program: on PATH, else in the Android SDK's platform-tools."""
    found = shutil.which("adb")
    if found:
        return Path(found)
    name = "adb.exe" if sys.platform == "win32" else "adb"
    for variable in _SDK_VARIABLES:
        place = Path(os.environ.get(variable, ""), "platform-tools", name)
        if os.environ.get(variable) and place.is_file():
            return place
    raise DeviceError(
        "adb was not found",
        why="it is neither on PATH nor in platform-tools under ANDROID_HOME",
        remedy="install it (Debian, Ubuntu: sudo apt install adb; macOS: brew install "
        "android-platform-tools), or set ANDROID_HOME to your Android SDK",
    )


def list_devices(adb: Path) -> list[Listed]:
    """Every phone that adb knows of, usable or not."""
    done = call([str(adb), "devices", "-l"], timeout=_ASK)
    if done.returncode:
        raise DeviceError(
            "adb cannot list its devices",
            why=last_words(done),
            remedy="adb kill-server, then try again",
        )
    return [found for line in done.stdout.splitlines() if (found := _listed(line))]


def _listed(line: str) -> Listed | None:
    if not line.strip() or line.startswith(("*", "List of devices")):
        return None
    match = _DEVICE.match(line)
    if match is None:
        return None
    model = re.search(r"\bmodel:(\S+)", match["rest"])
    name = model[1].replace("_", " ") if model else ""
    return Listed(serial=match["serial"], state=match["state"], model=name)


def choose(serial: str = "") -> Phone:
    """The phone to use: the one named (or ANDROID_SERIAL), else the only one there is.

    Raises DeviceError where there is none, several, or one that is not ready.
    """
    adb = find_adb()
    devices = list_devices(adb)
    wanted = serial or os.environ.get("ANDROID_SERIAL", "")
    if wanted:
        return _ready(adb, _named(wanted, devices))
    if not devices:
        raise DeviceError(
            "no phone is connected",
            why="`adb devices` lists none",
            remedy="switch on developer options and USB debugging on the phone, and plug it in "
            "(or: adb connect ADDRESS for one over Wi-Fi)",
        )
    if len(devices) > 1:
        raise DeviceError(
            f"{len(devices)} devices are connected",
            why="; ".join(f"{d.serial} {d.model or d.state}".strip() for d in devices),
            remedy="name one with --serial",
        )
    return _ready(adb, devices[0])


def _named(wanted: str, devices: Sequence[Listed]) -> Listed:
    for device in devices:
        if device.serial == wanted:
            return device
    raise DeviceError(
        f"no device has the serial {wanted}",
        why="`adb devices` lists " + (", ".join(d.serial for d in devices) or "none"),
        remedy=nearest(wanted, [d.serial for d in devices]) if devices else "plug the phone in",
    )


def _ready(adb: Path, device: Listed) -> Phone:
    if device.state != "device":
        why, remedy = _NOT_READY.get(device.state, (f"adb says {device.state}", "see adb devices"))
        raise DeviceError(f"{device.serial} cannot be used: {device.state}", why=why, remedy=remedy)
    return Phone(adb=adb, serial=device.serial, model=device.model)


@dataclass(frozen=True, kw_only=True)
class Phone:
    """A phone that was ready when it was chosen."""

    adb: Path
    serial: str
    model: str

    def shell(self, command: str, *, timeout: float = _ASK) -> subprocess.CompletedProcess[str]:
        """Run a line of the phone's shell; its own exit code, output and errors.

        Raises DeviceError when the phone went away or did not answer in time.
        """
        done = call(self._command("shell", command), timeout=timeout)
        if done.returncode == 124 and not done.stdout and "no end after" in done.stderr:
            raise DeviceError(
                f"{self.serial} does not answer",
                why=f"a command had no end after {timeout:g} s",
                remedy="look at the phone; pull the cable and plug it in again",
            )
        if done.returncode:
            self.refuse_if_gone(done.stderr)
        return done

    def must(self, command: str, what: str, *, timeout: float = _ASK) -> str:
        """The output of a command that has to work; `what` it was for goes into the error."""
        done = self.shell(command, timeout=timeout)
        if done.returncode:
            raise DeviceError(
                f"{self.serial}: {what} failed",
                why=last_words(done),
                remedy="look at the phone; folders under /data/local/tmp may be written to, others "
                "often not",
            )
        return done.stdout

    def properties(self, *names: str) -> dict[str, str]:
        """Android's system properties of these names; empty where not set."""
        script = "; ".join(f"getprop {quote(name)}" for name in names)
        lines = self.must(script, "reading its properties").splitlines()
        return dict(zip(names, (line.strip() for line in lines), strict=False))

    def push(self, source: Path, target: str, told: Callable[[int], None]) -> None:
        """Copy a file onto the phone; `told` hears now and then how many bytes lie there.

        Raises DiskError when the phone is full, DeviceError for all else. adbd removes a file
        that it could not finish.
        """
        self._push([source], target, target, told)

    def push_into(self, sources: Sequence[Path], folder: str) -> None:
        """Copy files into a folder of the phone's under their own names, with one call of adb."""
        last = posixpath.join(folder, sources[-1].name)
        self._push(sources, f"{folder}/", last, lambda _: None)

    def _push(
        self, sources: Sequence[Path], target: str, seen: str, told: Callable[[int], None]
    ) -> None:
        """Copy, watching the file `seen` on the phone."""
        process = subprocess.Popen(
            self._command("push", *map(str, sources), target),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said: list[bytes] = []
        assert process.stdout is not None
        reader = threading.Thread(target=_drain, args=(process.stdout, said.append), daemon=True)
        reader.start()
        try:
            self._watch(process, seen, told)
        finally:
            _end(process)
            reader.join(5)
        if process.returncode:
            self._push_failed(sources, b"".join(said).decode("utf-8", "replace"))

    def _watch(
        self, process: subprocess.Popen[bytes], target: str, told: Callable[[int], None]
    ) -> None:
        """Wait for a copy, asking the phone how far it is; ends one that stands still."""
        before, since = -1, time.monotonic()
        while True:
            try:
                process.wait(_POLL)
                return
            except subprocess.TimeoutExpired:
                size = self._size(target)
            if size != before:
                before, since = size, time.monotonic()
                told(max(size, 0))
            elif time.monotonic() - since > _STALLED:
                raise DeviceError(
                    f"the copy to {self.serial} stands still",
                    why=f"nothing arrived for {_STALLED:g} s",
                    remedy="look at the phone and its cable, then push again: it goes on where "
                    "it was",
                )

    def _size(self, target: str) -> int:
        done = call(self._command("shell", f"stat -c %s {quote(target)}"), timeout=10)
        text = done.stdout.strip()
        return int(text) if text.isdigit() else -1

    def _push_failed(self, sources: Sequence[Path], said: str) -> None:
        named = [source for source in sources if f"'{source}'" in said]
        source = (named or sources)[-1]
        line = next((s for s in reversed(said.splitlines()) if "error" in s.lower()), said.strip())
        if "no space left" in said.lower():
            raise DiskError(
                f"the phone is full: {source.name} could not be copied",
                why=line,
                remedy="free some space on the phone, then push again: what is there is not "
                "sent again",
            )
        self.refuse_if_gone(said)
        raise DeviceError(
            f"{source.name} could not be copied to {self.serial}",
            why=line,
            remedy="look at the phone and its cable, then push again: it goes on where it was",
        )

    def install(self, app: Path, flags: Sequence[str], *, timeout: float) -> str:
        """Have an app installed; what the phone said of it, "Success" where it took it.

        Raises DeviceError when the phone went away or did not answer in time.
        """
        done = call(self._command("install", *flags, str(app)), timeout=timeout)
        said = f"{done.stdout}\n{done.stderr}"
        if re.search(r"^Success", done.stdout, re.MULTILINE):
            return "Success"
        if "INSTALL_" not in said:
            self.refuse_if_gone(said)
        return said

    def pull(self, source: str, target: Path) -> None:
        """Copy a file of the phone's to `target`."""
        done = call(self._command("pull", source, str(target)), timeout=600)
        if done.returncode:
            self.refuse_if_gone(done.stderr)
            raise DeviceError(
                f"{source} could not be copied from {self.serial}",
                why=last_words(done) if done.stderr.strip() else done.stdout.strip(),
                remedy="look at the phone and its cable, then try again",
            )

    def follow(
        self, command: str, program: str, hear: Callable[[str], None], *, timeout: float
    ) -> Ended:
        """Run a program to its end, hearing its output as it comes.

        `command` must end in the program itself: it replaces the shell, so that it can be ended
        by its process id. A timeout (DeviceError) or Ctrl-C ends it on the phone too.
        """
        if not timeout > 0:
            raise UsageError(f"--timeout is {timeout:g}", remedy="give seconds, more than 0")
        began = time.monotonic()
        process = subprocess.Popen(
            self._command("shell", f'echo "kiln-pid:$$"; {command}'),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        heard = _Heard(hear)
        assert process.stdout is not None and process.stderr is not None
        readers = [
            threading.Thread(target=_drain, args=(process.stdout, heard.out), daemon=True),
            threading.Thread(target=_drain, args=(process.stderr, heard.err.append), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            _wait(process, began + timeout)
        except subprocess.TimeoutExpired:
            self._kill(heard, program)
            raise DeviceError(
                f"{program} had no end after {timeout:g} s on {self.serial}",
                why=_last_line(heard.text()) or "it said nothing",
                remedy="allow more with --timeout, or see what it says with --debug",
            ) from None
        except BaseException:
            self._kill(heard, program)
            raise
        finally:
            _end(process)
            for reader in readers:
                reader.join(5)
        err = b"".join(heard.err).decode("utf-8", "replace")
        if process.returncode:
            self.refuse_if_gone(err)
        seconds = time.monotonic() - began
        return Ended(code=process.returncode, out=heard.text(), err=err, seconds=seconds)

    def _kill(self, heard: _Heard, program: str) -> None:
        """End a program on the phone, if that process still is that program."""
        for _ in range(20):  # stopped at once, its number may be on its way
            if heard.pid is None:
                time.sleep(0.1)
        if (pid := heard.pid) is None:
            return
        script = (
            f"grep -q {quote(program)} /proc/{pid}/cmdline 2>/dev/null || exit 0; "
            f"kill {pid}; for i in 1 2 3 4 5 6 7 8 9 10; do "
            f"kill -0 {pid} 2>/dev/null || exit 0; sleep 0.2; done; kill -9 {pid}"
        )
        call(self._command("shell", script), timeout=15)

    def refuse_if_gone(self, said: str) -> None:
        """Raise DeviceError if it was the connection that failed."""
        state = call(self._command("get-state"), timeout=10)
        if state.returncode == 0 and state.stdout.strip() == "device":
            return
        found = _LOST.search(said)
        why = found[0] if found else (state.stdout or state.stderr).strip() or "adb lost it"
        raise DeviceError(
            f"the connection to {self.serial} was lost",
            why=why,
            remedy="plug the phone in again (or: adb connect ADDRESS), then repeat the command: "
            "it goes on where it was",
        )

    def _command(self, *words: str) -> list[str]:
        return [str(self.adb), "-s", self.serial, *words]


class _Heard:
    """What a followed program says: the first line is its process id."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        self._hear = hear
        self._out = b""
        self.err: list[bytes] = []
        self.pid: int | None = None

    def out(self, piece: bytes) -> None:
        self._out += piece
        if self.pid is None and b"\n" in self._out:
            first, _, rest = self._out.partition(b"\n")
            digits = first.strip().removeprefix(b"kiln-pid:")
            self.pid = int(digits) if digits.isdigit() else None
            self._out = rest if self.pid is not None else self._out
        self._hear(self.text())

    def text(self) -> str:
        # Phones before Android 7 turn line ends into two characters.
        return self._out.decode("utf-8", "replace").replace("\r\n", "\n")


def _drain(stream: IO[bytes], take: Callable[[bytes], None]) -> None:
    while piece := os.read(stream.fileno(), 1 << 16):
        take(piece)


def _wait(process: subprocess.Popen[bytes], deadline: float) -> None:
    # In small pieces: on Windows a long wait does not hear Ctrl-C.
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise subprocess.TimeoutExpired(process.args, 0)
        try:
            process.wait(min(0.5, left))
            return
        except subprocess.TimeoutExpired:
            continue


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def check_place(place: str) -> str:
    """A folder on the phone that may be written to: absolute, and not a folder of the system's."""
    clean = place.rstrip("/")
    if not clean.startswith("/") or ".." in clean.split("/") or clean.count("/") < 2:
        raise UsageError(
            f"--to is {place!r}",
            why="a bundle needs a folder of its own, named from the root",
            remedy="for example /data/local/tmp/mymodel",
        )
    return clean
