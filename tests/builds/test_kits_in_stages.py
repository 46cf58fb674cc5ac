"""Kits and the network as stages see them, in containers and as plain processes."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from edgekiln.executors.base import Executor
from edgekiln.executors.docker import DockerExecutor
from edgekiln.executors.native import NativeExecutor
from edgekiln.executors.processes import network_cut
from edgekiln.kits import Kit, ready
from edgekiln.pipeline import Pipeline
from edgekiln.progress import Silent
from tests.unit.kit import Bench, stage
from tests.unit.kitmaking import archive_kit, pinned, zipped

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain

# A program in a kit, beside a module and a file.
BODY = zipped(
    {"tool-1/bin/say": b"#!/bin/sh\necho said\n", "tool-1/kitmodule.py": b"ANSWER = 42\n"},
    programs=("tool-1/bin/say",),
)
LOOK = """
import subprocess, kitmodule
place = Path(os.environ['TOOL_HOME'])
def tried(path):
    try:
        path.write_text('x')
        return 'written'
    except OSError as error:
        return type(error).__name__
stage.output('made').write_text(json.dumps({
    'said': subprocess.run(['say'], capture_output=True, text=True).stdout.strip(),
    'module': kitmodule.ANSWER, 'place': str(place), 'in it': sorted(os.listdir(place)),
    'tries': WRITES and [tried(place / 'kitmodule.py'), tried(place / 'new')],
}))
"""
REACH = """
import socket
def reached(port):
    try:
        socket.create_connection(('HOST', port), timeout=5).close()
        return True
    except OSError:
        return False
names = [name for _, name in socket.if_nameindex() if name != 'lo']
stage.output('made').write_text(json.dumps({'names': names, 'reached': reached(PORT)}))
"""
ENV = {"TOOL_HOME": "{kits}/tool", "PATH": "{kits}/tool/bin:{path}", "PYTHONPATH": "{kits}/tool"}


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A kit, unpacked in a home of its own."""
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    (tmp_path / "tool.zip").write_bytes(BODY)
    kit = archive_kit(
        pinned("tool.zip", BODY, str(tmp_path / "tool.zip"), strip=1), name="tool", version="1"
    )
    ready(kit, Silent())
    return kit


def bench_in(place: Path, chain: Any, executor: Callable[[], Executor]) -> Bench:
    """A bench in a folder of its own."""
    place.mkdir()
    return Bench(place, chain, executor=executor)


def run_one(bench: Bench, body: str, *, network: bool = False) -> dict[str, Any]:
    """What a stage with that body writes."""
    bench.program("one.py", body)
    one = dataclasses.replace(stage("one", "one.py", memory=1 << 26), network=network)
    made = bench.run(Pipeline(stages=(one,)))["one"].entry.output("made")
    found: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of this machine would put the container into this machine's network."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def listener(no_proxy: None) -> Iterator[tuple[str, int]]:
    """A server of this machine, at an address that others can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses an address
        own = str(probe.getsockname()[0])
    server = socket.create_server((own, 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                server.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield own, int(server.getsockname()[1])
    finally:
        ended.set()
        server.close()


def native() -> Executor:
    """Stages by this very Python."""
    return NativeExecutor(lambda _: Path(sys.executable))


@pytest.mark.engine
def test_a_container_sees_its_kits_read_only_and_on_its_path(
    tmp_path: Path, engine: Engine, mnn: Toolchain, image: str, tool: Kit
) -> None:
    chain = dataclasses.replace(mnn, kits=(tool,), env=ENV)
    bench = bench_in(tmp_path / "b", chain, lambda: DockerExecutor(engine))
    found = run_one(bench, LOOK.replace("WRITES", "True"))
    assert (found["said"], found["module"]) == ("said", 42)
    assert found["place"] == "/opt/edgekiln/kits/tool"
    assert found["in it"] == ["bin", "kitmodule.py"]
    assert found["tries"] == ["OSError", "OSError"]


@pytest.mark.skipif(sys.platform != "linux", reason="native stages are for Linux")
def test_a_plain_process_sees_its_kits_at_a_place_that_stays(tmp_path: Path, tool: Kit) -> None:
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python3").symlink_to(sys.executable)
    chain = SimpleNamespace(
        name="plain", digest="0" * 64, installed="0" * 64, env=ENV, summary="", kits=(tool,)
    )
    python, places = prefix / "bin" / "python3", []
    for number in (1, 2):
        bench = bench_in(tmp_path / str(number), chain, lambda: NativeExecutor(lambda _: python))
        found = run_one(bench, LOOK.replace("WRITES", "False"))
        assert (found["said"], found["module"]) == ("said", 42)
        places.append(found["place"])
    assert places[0] == places[1] == str(prefix / "kits" / ("0" * 12) / "tool")


@pytest.mark.engine
def test_a_container_reaches_others_only_where_its_stage_says_so(
    tmp_path: Path,
    engine: Engine,
    mnn: Toolchain,
    image: str,
    listener: tuple[str, int],
) -> None:
    reach(lambda: DockerExecutor(engine), tmp_path, mnn, listener)


@pytest.mark.skipif(sys.platform != "linux", reason="native stages are for Linux")
@pytest.mark.skipif(not network_cut(), reason="the kernel allows no network of one's own")
def test_a_plain_process_reaches_others_only_where_its_stage_says_so(
    tmp_path: Path, listener: tuple[str, int]
) -> None:
    chain = SimpleNamespace(
        name="plain", digest="0" * 64, installed="0" * 64, env={}, summary="", kits=()
    )
    reach(native, tmp_path, chain, listener)


def reach(
    executor: Callable[[], Executor], place: Path, chain: Any, listener: tuple[str, int]
) -> None:
    """Run the same stage without a network and with one."""
    body = REACH.replace("HOST", listener[0]).replace("PORT)", f"{listener[1]})")
    shut = run_one(bench_in(place / "shut", chain, executor), body)
    assert shut == {"names": [], "reached": False}
    free = run_one(bench_in(place / "free", chain, executor), body, network=True)
    assert free["names"] and free["reached"]
