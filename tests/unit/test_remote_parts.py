"""Other machines: names and places, the archive of this checkout, messages, files by digest."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from edgekiln.boxes import profiles
from edgekiln.errors import DigestError, OutOfMemoryError, RemoteError, UsageError
from edgekiln.home import project
from edgekiln.locking import is_held
from edgekiln.pipeline import FromPath, Pipeline
from edgekiln.remote import far, hosts, link, moving, pack, placing, setup
from edgekiln.remote.blobs import Blobs
from edgekiln.remote.wire import Cut, Wire, meant, told
from edgekiln.store import Store
from tests.unit.kit import stage


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes hosts.yaml."""
    monkeypatch.setenv("EDGEKILN_HOSTS", str(tmp_path / "hosts.yaml"))

    def write(text: str) -> None:
        (tmp_path / "hosts.yaml").write_text(text)

    return write


def pipeline(*names: str) -> Pipeline:
    return Pipeline(stages=tuple(stage(name, f"{name}.py") for name in names))


STAGES = pipeline("graph", "quantize", "quality", "compile")
TWO = "gpu: {address: ssh://root@gpu:2222}\nbig: {address: big.example.com}\n"


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (["quantize=gpu"], {"quantize": "gpu"}),
        (["*=gpu", "quantize=local"], dict.fromkeys(("graph", "quality", "compile"), "gpu")),
        (["quantize=local", "*=gpu"], dict.fromkeys(("graph", "quality", "compile"), "gpu")),
        (["qua*=gpu", "*=big"], {"graph": "big", "quantize": "gpu", "quality": "gpu"}),
        (["graph=gpu", "graph=big"], {"graph": "big"}),
        (["*=local"], {}),
    ],
)
def test_the_closest_pattern_counts(
    named: Callable[[str], None], on: list[str], expected: dict[str, str]
) -> None:
    named(TWO)
    found = {name: host.name for name, host in placing.places(STAGES, on).items()}
    if on[-1] == "*=big":
        expected = {**expected, "compile": "big"}
    assert found == expected


@pytest.mark.parametrize(
    ("on", "said", "remedy"),
    [
        ("quantise=gpu", "no stage is called quantise", "did you mean quantize?"),
        ("quantize=gpo", "there is no machine gpo", "did you mean gpu?"),
        ("quantize", "is no STAGE=PLACE", "autodl"),
        ("quantize=ssh://root:secret@gpu", "a password has no place", "password_from"),
        ("quantize=http://gpu", "address is", "give ssh://"),
        ("quantize=ssh://gpu:none", "address is", "give ssh://"),
        ("quantize=ssh://gpu:22/root", "address is", "give ssh://"),
        ("quantize=root@gpu", "there is no machine root@gpu", "ssh://root@gpu"),
    ],
)
def test_a_place_that_cannot_be_is_named(
    named: Callable[[str], None], on: str, said: str, remedy: str
) -> None:
    named(TWO)
    with pytest.raises(UsageError) as caught:
        placing.places(STAGES, [on])
    assert said in caught.value.what
    assert remedy in caught.value.remedy


def test_a_stage_that_reads_a_secret_stays(named: Callable[[str], None], tmp_path: Path) -> None:
    named(TWO)
    signing = stage("apk", "apk.py", keystore=FromPath(path=tmp_path, secret=True))
    whole = Pipeline(stages=(*STAGES.stages, signing))
    assert "apk" not in placing.places(whole, ["*=gpu"])
    with pytest.raises(UsageError, match="cannot run elsewhere"):
        placing.places(whole, ["apk=gpu"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: {adress: ssh://gpu}", "adress is not known"),
        ("gpu: {}", "address is missing"),
        ("gpu: ssh://gpu", "gpu is not a mapping"),
        ("gpu: {address: ssh://gpu, env: HF_HOME}", "env is 'HF_HOME'"),
        ("gpu: {address: ssh://gpu, executor: nativ}", "no executor nativ"),
        ("gpu: {address: ssh://gpu, memory: much}", "memory is 'much'"),
        ("gpu: {address: ssh://gpu, profile: autodle}", "no profile autodle"),
        ("gpu: {address: ssh://gpu, models: get}", "models is 'get'"),
        ("local: {address: ssh://gpu}", "cannot be a machine's name"),
        ("- gpu", "holds no names"),
        ("gpu: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    named: Callable[[str], None], text: str, said: str
) -> None:
    named(text)
    with pytest.raises(UsageError) as caught:
        hosts.load()
    assert said in caught.value.what
    assert caught.value.remedy


def test_the_shipped_schema_is_the_records() -> None:
    shipped = project() / "src" / "edgekiln" / "remote" / "hosts.schema.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == hosts.schema()


def test_an_address_says_user_machine_and_port() -> None:
    host = hosts.find("ssh://root@connect.example.com:12345")
    assert host is not None
    assert (host.user, host.machine, host.port) == ("root", "connect.example.com", 12345)
    assert host.name == "root@connect.example.com:12345"


def test_the_checkout_packed_twice_is_the_same_archive() -> None:
    first, second = pack.pack(), pack.pack()
    assert first == second
    assert hashlib.sha256(first.data).hexdigest() == first.sha256
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first.data))) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {"kiln", "tasks.py", "requirements.txt", "toolchains/qnn.lock.json"} <= set(entries)
    assert {"src/edgekiln/remote/far.py", "images/provision.py", "scripts/stagekit.py"} <= set(
        entries
    )
    assert entries["kiln"].mode == 0o755
    assert not [name for name in entries if "__pycache__" in name or name.startswith("tests")]
    assert {entry.mtime for entry in entries.values()} == {0}


def wires() -> tuple[Wire, io.BytesIO]:
    """A conversation with itself: what is sent is what is received."""
    stream = io.BytesIO()
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        stream.seek(at)
        data = stream.read(size)
        at += len(data)
        return data

    def write(data: bytes) -> None:
        stream.seek(0, 2)
        stream.write(data)

    return Wire(read, write), stream


def test_messages_and_bytes_arrive_as_they_were_sent() -> None:
    wire, _ = wires()
    body = bytes(range(256)) * 1000
    wire.send({"beat": True})
    wire.send({"do": "put", "names": ["ä\n"]}, [body[:7], body[7:]])
    wire.send({"next": 1})
    assert wire.receive() == {"do": "put", "names": ["ä\n"]}
    assert b"".join(wire.body(len(body))) == body
    assert wire.receive() == {"next": 1}
    with pytest.raises(Cut):
        wire.receive()


def test_a_body_that_ends_early_is_a_cut() -> None:
    wire, _ = wires()
    wire.send({}, [b"abc"])
    wire.receive()
    with pytest.raises(Cut):
        b"".join(wire.body(4))


def test_an_error_is_of_its_kind_on_the_other_side() -> None:
    error = meant(told(OutOfMemoryError("too large", why="w", remedy="r")), "autodl")
    assert type(error) is OutOfMemoryError
    assert (error.what, error.why, error.remedy) == ("on autodl: too large", "w", "r")


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "remote", Store(tmp_path / "store"))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_that_was_cut_is_gone_on_with(blobs: Blobs) -> None:
    data = b"0123456789"

    def cut() -> object:
        yield data[:4]
        raise Cut("gone")

    with pytest.raises(Cut):
        blobs.add(sha(data), 0, cut())  # type: ignore[arg-type]
    assert blobs.have({sha(data): 10}) == {sha(data): 4}
    blobs.add(sha(data), 4, iter([data[4:]]))
    assert blobs.have({sha(data): 10}) == {sha(data): 10}
    assert blobs.path(sha(data)).read_bytes() == data


def test_wrong_bytes_are_refused_and_none_are_kept(blobs: Blobs) -> None:
    with pytest.raises(DigestError):
        blobs.add(sha(b"right"), 0, iter([b"wrong"]))
    assert blobs.have({sha(b"right"): 5}) == {sha(b"right"): 0}


def test_what_a_machine_has_for_other_reasons_is_not_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    found = Blobs(tmp_path / "remote", store)
    work = store.workspace("a" * 64)
    (work / "out" / "made").write_bytes(b"made by a stage")
    store.commit("a" * 64, work, {})
    assert found.have({sha(b"made by a stage"): 15}) == {sha(b"made by a stage"): 15}
    assert found.have({sha(b"changed"): 7}) == {sha(b"changed"): 0}


def test_what_nobody_uses_is_forgotten_also_what_a_cut_has_left(
    blobs: Blobs, tmp_path: Path
) -> None:
    root = tmp_path / "remote"
    blobs.add(sha(b"kept"), 0, iter([b"kept"]))
    blobs.add(sha(b"old"), 0, iter([b"old"]))
    gone = [blobs.path(sha(b"old")), root / "sent.tar.gz.part", root / "checkouts" / "cut.99"]
    gone += [root / "checkouts" / "old", root / "inputs" / "old"]
    for folder in (*gone[2:], root / "checkouts" / "used"):
        folder.mkdir(parents=True)
    for file in (gone[1], gone[3] / ".whole", root / "checkouts" / "used" / ".whole"):
        file.touch()
    for place in (*gone, gone[3] / ".whole", root / "checkouts" / "used"):
        os.utime(place, (0, 0))
    blobs.sweep()
    assert [place for place in gone if place.exists()] == []
    assert blobs.path(sha(b"kept")).exists(), "it has just arrived"
    assert (root / "checkouts" / "used").exists(), "its .whole says when it was last used"


@pytest.mark.skipif(sys.platform == "win32", reason="stages run on Linux only")
def test_a_line_that_falls_silent_before_the_first_byte_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path))
    monkeypatch.setattr(far, "_SILENCE_SECONDS", 0.01)
    here, there = os.pipe()
    try:
        side = far._Far(Wire(lambda size: os.read(here, size), lambda data: None))
        with pytest.raises(Cut, match="too long"):
            side.answer({"do": "put", "files": [[sha(b"x"), 1, 0]]})
        assert not is_held(tmp_path / "remote" / "locks" / f"{sha(b'x')}.lock")
    finally:
        os.close(here)
        os.close(there)


def test_a_new_hosts_key_gets_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    link._add("[gpu]:22 ssh-ed25519 AAAA")
    known = tmp_path / ".ssh" / "known_hosts"
    known.write_text(known.read_text().rstrip())
    link._add("[big]:22 ssh-ed25519 BBBB")
    assert known.read_text() == "[gpu]:22 ssh-ed25519 AAAA\n[big]:22 ssh-ed25519 BBBB\n"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), ("ssh-ed25519 AAAA me", "public half")]
)
def test_a_key_that_is_none_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "id"
    if content:
        path.write_text(content)
    with pytest.raises(RemoteError) as caught:
        link.Link(hosts.Host(address="ssh://gpu", name="gpu", key=str(path))).run("true")
    assert str(path) in caught.value.what
    assert said in caught.value.why


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hosts.Host]:
    """A machine that lets nobody in, for a user without a key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key = paramiko.ECDSAKey.generate()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                transport = paramiko.Transport(server.accept()[0])
                transport.add_server_key(key)
                transport.start_server(server=paramiko.ServerInterface())

        threading.Thread(target=serve, daemon=True).start()
        yield hosts.Host(address=f"ssh://me@127.0.0.1:{server.getsockname()[1]}", name="gpu")


def test_who_has_no_key_is_not_told_of_an_unreachable_machine(locked: hosts.Host) -> None:
    with pytest.raises(RemoteError, match="does not let me in") as caught:
        link.Link(locked, accept_new=True).run("true")
    assert "no key" in caught.value.why


def test_a_changed_key_is_told_with_the_line_that_forgets_the_old(locked: hosts.Host) -> None:
    old = paramiko.ECDSAKey.generate()
    link._add(f"[127.0.0.1]:{locked.port} {old.get_name()} {old.get_base64()}")
    with pytest.raises(RemoteError, match="another key") as caught:
        link.Link(locked, accept_new=True).run("true")
    assert f"ssh-keygen -R '[127.0.0.1]:{locked.port}'" in caught.value.remedy


class Loud(paramiko.ServerInterface):
    """Lets everybody in; any command fills standard error before it says a word."""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def say() -> None:
            with contextlib.suppress(OSError):
                channel.sendall_stderr(LOUD)
                channel.sendall(b"done")
                channel.send_exit_status(3)
                channel.close()

        threading.Thread(target=say, daemon=True).start()
        return True


LOUD = b"warning\n" * (1 << 19)  # 4 MiB: SSH stops at 2 that nobody has read


def test_a_command_that_fills_standard_error_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(tmp_path / "id"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ssh://me@127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            transport = paramiko.Transport(server.accept()[0])
            transport.add_server_key(key)
            transport.start_server(server=Loud())

        threading.Thread(target=serve, daemon=True).start()
        host = hosts.Host(address=address, name="gpu", key=str(tmp_path / "id"))
        loud = link.Link(host, accept_new=True)
        said = loud.run("fill", timeout=5.0)
        loud.drop()
    assert (said.code, said.out, said.err) == (3, "done", LOUD.decode())


APART = ["unshare", "--map-root-user", "--fork", "--pid", "--mount-proc"]


@pytest.mark.skipif(sys.platform != "linux", reason="stages run on Linux only")
@pytest.mark.parametrize("how", ["own", "first", "other"])
def test_a_box_is_known_by_a_variable_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    by = profiles.Recognised(variables=("POD_ID",), files=(str(tmp_path / "none"),))
    pod = profiles.Profile(name="pod", summary="a pod", recognised=by, data=(str(tmp_path),))
    monkeypatch.setattr(profiles, "profiles", lambda: {"pod": pod})
    words = ["sh", "-c", setup._probe(hosts.Host(address="ssh://gpu", name="gpu"))]
    env = {"PATH": os.environ["PATH"], "HOME": "/root", "POD_ID": "x"}
    if how == "other":
        env["ITS_POD_ID"] = env.pop("POD_ID")
    if how == "first":  # as after a login over SSH: process 1 has it, the shell has not
        if subprocess.run([*APART, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no process may have a number space of its own here")
        words = [*APART, "sh", "-c", 'env -u POD_ID "$@"; true', "sh", *words]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert (f"data {tmp_path}" in done.stdout.splitlines()) == (how != "other")
    assert done.stdout.startswith("kind Linux ") and done.stderr == ""


def test_an_empty_file_needs_no_sending(blobs: Blobs) -> None:
    assert blobs.have({sha(b""): 0}) == {sha(b""): 0}
    place = blobs.tree("empty", {"none.txt": (0, sha(b""), False)}, True)
    assert (place / "none.txt").read_bytes() == b""


def test_a_tree_has_the_digest_it_had(blobs: Blobs, tmp_path: Path) -> None:
    there = tmp_path / "model"
    (there / "sub").mkdir(parents=True)
    (there / "a.txt").write_bytes(b"a")
    (there / "sub" / "tool").write_bytes(b"b")
    index = Store(tmp_path / "other").index
    files = {}
    for relative, (size, digest) in index.files(there).items():
        data = (there / relative).read_bytes()
        blobs.add(digest, 0, iter([data]))
        files[relative] = (size, digest, relative == "sub/tool")
    made = blobs.tree("model", files, True)
    assert made.name == "model"
    assert index.digest(made) == index.digest(there)
    assert (made / "sub" / "tool").stat().st_mode & 0o111
    assert not (made / "a.txt").stat().st_mode & 0o111


def test_what_came_back_is_laid_out_and_checked(tmp_path: Path) -> None:
    incoming, out = tmp_path / "incoming", tmp_path / "out"
    incoming.mkdir()
    out.mkdir()
    (incoming / sha(b"same")).write_bytes(b"same")
    files = {"x": (4, sha(b"same"), False), "sub/y": (4, sha(b"same"), True)}
    from edgekiln.digest import combine

    digest = combine((name, size, digest) for name, (size, digest, _) in files.items())
    outputs = {"made": {"folder": True, "files": files, "digest": digest}}
    moving.lay_out(outputs, incoming, out)
    assert (out / "made" / "x").read_bytes() == (out / "made" / "sub" / "y").read_bytes() == b"same"
    assert (out / "made" / "sub" / "y").stat().st_mode & 0o111
    assert not list(incoming.iterdir())
    (incoming / sha(b"same")).write_bytes(b"same")
    with pytest.raises(DigestError):
        moving.lay_out({"made": {**outputs["made"], "digest": "0" * 64}}, incoming, out)


@pytest.mark.parametrize(
    ("name", "path", "digest"),
    [
        ("made", "../../.ssh/authorized_keys", "0" * 64),
        ("made", "/etc/passwd", "0" * 64),
        ("../made", "x", "0" * 64),
        ("..", "x", "0" * 64),
        ("made", "..\\x", "0" * 64),
        ("made", "x", "../" * 20 + "0000"),
    ],
)
def test_another_machines_names_lead_nowhere_else(
    name: str, path: str, digest: str, tmp_path: Path
) -> None:
    outputs = {name: {"folder": True, "files": {path: (1, digest, False)}, "digest": ""}}
    nobody: Any = None  # asked nothing before the names are looked at
    with pytest.raises(RemoteError):
        moving.fetch(nobody, "key", outputs, tmp_path, lambda *_: None)


def test_what_is_no_message_is_a_cut() -> None:
    wire, stream = wires()
    stream.write(b"Welcome!\n")
    with pytest.raises(Cut):
        wire.receive()
