"""A build on a rented box over a real SSH connection that is lost in the middle of a stage."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.boxes import farkit, kit
from tests.boxes.conftest import Rent
from tests.boxes.kit import Box
from tests.builds.kit import LENIENT, call, until

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOKEN = "hf_NobodysTokenForABox"


def state(box: Box) -> dict[str, Any]:
    """The newest job, as the box's own `kiln status` knows it; nothing before there is one."""
    found: list[dict[str, Any]] = json.loads(box.kiln("status", "--json").stdout)["value"]
    return found[0] if found else {}


def test_a_job_outlives_the_connection_that_started_it(
    rent: Rent, tiny: Path, tmp_path: Path
) -> None:
    box = rent()
    box.copy_in(tiny, f"{kit.DATA}/{tiny.name}")
    far = farkit.second(box, tmp_path / "me")
    words = ["ssh", "-p", str(far.cable.port), "-i", str(far.me / ".ssh" / "id_ed25519")]
    words += ["-o", f"UserKnownHostsFile={far.me}/.ssh/known_hosts", "-o", "BatchMode=yes"]
    given = " ".join(f"{k}={shlex.quote(v)}" for k, v in box.kiln_env().items())

    def line(*arguments: str, more: str = "") -> str:
        return f"cd {kit.DATA} && {more} {given} {shlex.join(box.kiln_words(*arguments))}"

    build = ["build", "--backend", "mnn", "--executor", "native", *LENIENT]
    build += ["--model", f"{kit.DATA}/{tiny.name}", "--out", f"{kit.DATA}/bundle"]
    detached = line(*build, "--detach", more=f"HF_TOKEN={TOKEN}")
    with subprocess.Popen(
        [*words, "-tt", "root@127.0.0.1", f"{detached}; sleep 600"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as login:
        until(lambda: state(box).get("stages", {}).get("export") == "running", "a stage", 150)
        far.cable.unplug()
        assert login.wait(30) == 255, "the connection was lost"
    assert state(box)["state"] == "running"
    until(lambda: not box.run("pgrep", "-xf", "sleep 600").stdout, "sshd has ended what it ran")
    assert state(box)["state"] in ("running", "done")
    far.cable.plug()
    waited = call([*words, "root@127.0.0.1", line("wait")], {"PATH": "/usr/bin:/bin"})
    far.cable.close()
    assert waited.returncode == 0, waited.stderr + waited.stdout
    assert f"bundle: {kit.DATA}/bundle" in waited.stdout
    box.must("test", "-f", f"{kit.DATA}/bundle/manifest.json")
    found = box.run("grep", "-rl", TOKEN, f"{kit.DATA}/edgekiln/jobs", f"{kit.DATA}/bundle")
    assert found.stdout == ""
