"""Finding an engine, the command that builds, and what is said where there is none."""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from edgekiln.engine import Engine, candidates, find_engine, why_not
from edgekiln.engine import bringup as engineup
from edgekiln.engine.buildcli import build_cli, build_environment, has_buildkit
from edgekiln.errors import EngineError
from edgekiln.progress import Silent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sockets and shells of POSIX")

DOCKER = {
    "/version": {"Version": "20.10.24", "Components": [{"Name": "Engine"}]},
    "/info": {"SecurityOptions": ["name=seccomp,profile=default"]},
    "/images/edgekiln/x:1/json": {"Id": "sha256:1"},
}
PODMAN = {
    "/version": {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]},
    "/info": {"SecurityOptions": ["name=rootless"]},
}


@contextmanager
def answering(path: Path, answers: dict[str, Any]) -> Iterator[str]:
    """Somebody who speaks HTTP on a socket and answers with JSON; 404 for the rest."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path, {"message": "no such"})).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def address_string(self) -> str:
            return "socket"

    server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"unix://{path}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any docker settings, in a home of its own."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def program(path: Path, text: str) -> Path:
    """A shell program on its own PATH folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_docker_host_is_the_one_place_that_counts(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(alone / "d.sock", DOCKER) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        assert find_engine() == Engine(kind="docker", url=url, version="20.10.24", rootless=False)
    assert list(candidates(missing=True)) == [url]


def test_an_image_is_known_or_not(alone: Path) -> None:
    with answering(alone / "d.sock", DOCKER) as url:
        engine = Engine(kind="docker", url=url, version="20.10", rootless=False)
        assert engine.image("edgekiln/x:1") == {"Id": "sha256:1"}
        assert engine.image("edgekiln/x:2") is None


def test_podman_is_told_apart_and_rootless_is_seen(alone: Path) -> None:
    (alone / "run" / "podman").mkdir(parents=True)
    with answering(alone / "run" / "podman" / "podman.sock", PODMAN) as url:
        assert url in list(candidates())
        from edgekiln.engine import _engine_at

        found = _engine_at(url)
    assert (found.kind, found.rootless) == ("podman", True)


def test_the_current_context_comes_first(alone: Path) -> None:
    meta = alone / ".docker" / "contexts" / "meta" / "ab"
    meta.mkdir(parents=True)
    endpoint = {"Name": "desktop", "Endpoints": {"docker": {"Host": "unix:///d/desktop.sock"}}}
    (meta / "meta.json").write_text(json.dumps(endpoint))
    (alone / ".docker" / "config.json").write_text('{"currentContext": "desktop"}')
    assert next(candidates(missing=True)) == "unix:///d/desktop.sock"


def test_a_config_that_is_no_json_does_not_matter(alone: Path) -> None:
    (alone / ".docker").mkdir()
    (alone / ".docker" / "config.json").write_text("{")
    assert next(candidates(missing=True)) == "unix:///var/run/docker.sock"


def test_what_answers_and_is_no_engine_is_none(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(alone / "d.sock", {"/version": {"hello": 1}}) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        assert find_engine() is None
        assert "not a container engine" in why_not()


def test_each_reason_is_told_with_its_place(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{alone}/none.sock")
    assert why_not() == f"unix://{alone}/none.sock: no such socket"
    with answering(alone / "dead.sock", {}):
        pass
    monkeypatch.setenv("DOCKER_HOST", f"unix://{alone}/dead.sock")
    assert find_engine() is None
    assert why_not().endswith("nobody listens")


@pytest.mark.parametrize(
    ("version", "buildx", "builds"),
    [
        ("20.10.24+dfsg1", False, True),
        ("19.03.1", False, True),
        ("28.2.2", False, False),
        ("28.2.2", True, True),
        ("18.06", True, False),
        ("", True, False),
    ],
)
def test_which_cli_has_buildkit(version: str, buildx: bool, builds: bool) -> None:
    assert has_buildkit(version, lambda: buildx) is builds


def test_a_cli_without_buildx_that_comes_first_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = program(tmp_path / "a" / "docker", '[ "$1" = buildx ] && exit 1; echo 28.2.2')
    second = program(tmp_path / "b" / "docker", "echo 20.10.24")
    monkeypatch.setenv("PATH", f"{first.parent}{os.pathsep}{second.parent}")
    assert build_cli("docker", "unix:///none") == (str(second),)
    monkeypatch.setenv("PATH", str(first.parent))
    with pytest.raises(EngineError) as caught:
        build_cli("docker", "unix:///none")
    assert f"{first} is 28.2.2 without buildx" in caught.value.why


def test_a_folder_of_path_that_cannot_be_looked_into_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's own bin is, where `su` has kept root's PATH."""
    docker = program(tmp_path / "docker", "echo 20.10.24")
    monkeypatch.setenv("PATH", os.pathsep.join(["/" + "x" * 300, str(docker.parent)]))
    assert build_cli("docker", "unix:///none") == (str(docker),)


def test_podman_builds_with_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path / "podman", "true").parent))
    assert build_cli("podman", "unix:///none") == (str(tmp_path / "podman"),)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match="podman is not on PATH"):
        build_cli("podman", "unix:///none")


def test_a_build_goes_to_the_engine_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "elsewhere")
    env = build_environment("unix:///here")
    assert (env["DOCKER_HOST"], env["DOCKER_BUILDKIT"]) == ("unix:///here", "1")
    assert "DOCKER_CONTEXT" not in env


def test_up_leaves_an_engine_that_answers_alone(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(alone / "d.sock", DOCKER) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        assert engineup.up(Silent()).url == url
    assert not engineup._pid_file().exists()


def test_up_does_not_start_another_where_the_user_named_one(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{alone}/none.sock")
    with pytest.raises(EngineError) as caught:
        engineup.up(Silent())
    assert "no such socket" in caught.value.why


def test_down_stops_nothing_it_did_not_start() -> None:
    with pytest.raises(EngineError, match="no engine of ours"):
        engineup.down(Silent())
    engineup._pid_file().parent.mkdir(parents=True)
    engineup._pid_file().write_text(f"{os.getpid()}\n")
    with pytest.raises(EngineError, match="no engine of ours"):
        engineup.down(Silent())


def test_dockerds_last_words_say_why_it_ended(tmp_path: Path) -> None:
    log = tmp_path / "dockerd.log"
    log.write_text("level=info msg=hello\nfailed to start daemon: no iptables\nlevel=info msg=x\n")
    assert engineup._last_error(log) == "failed to start daemon: no iptables"
