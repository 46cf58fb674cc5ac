"""Stages on a second machine, a box with a real sshd: cut lines, killed builds, secrets."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgekiln import units
from edgekiln.engine import Engine
from tests.boxes import farkit, kit
from tests.boxes.bundles import WORDS
from tests.boxes.conftest import Rent
from tests.boxes.farkit import Second
from tests.builds.kit import Kiln, three_lines, until
from tests.unit.servers import HubHandler, Site, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOLD = ("manifest.json",)


@pytest.fixture
def kiln(own_store: Path, tmp_path: Path) -> Kiln:
    """The command line of this machine, with a store of its own, in an empty folder."""
    (tmp_path / "here").mkdir()
    return Kiln(home=own_store, here=tmp_path / "here")


@pytest.fixture(scope="module")
def machine(lease: Rent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    """The second machine; what its home has once got stays for the next test."""
    found = farkit.second(lease(), tmp_path_factory.mktemp("me"))
    yield found
    found.cable.close()


@pytest.fixture
def afresh(machine: Second) -> Second:
    """The same with no finished stages, no files of ours but edgekiln's own, and no limit."""
    gone = ("store", "remote/blobs", "remote/parts", "remote/inputs", "remote/jobs")
    machine.box.must("rm", "-rf", *(f"{kit.HOME}/{name}" for name in gone), user="root")
    machine.cable.limit = machine.cable.cuts = 0
    machine.named()
    return machine


@pytest.fixture(scope="module")
def at_home(
    tiny: Path,
    qnn_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    share_expensive: Callable[[Path], Path],
) -> dict[str, str]:
    """The sums of the bundle that this machine makes alone."""
    home, here = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("here")
    kiln = Kiln(home=share_expensive(home), here=here)
    done = kiln(*build(tiny), "--out", str(here / "bundle"))
    assert done.returncode == 0, done.stderr
    return sums(here / "bundle")


def build(model: Path, *words: str) -> tuple[str, ...]:
    named = ("--model", str(model), "--executor", "native")
    return ("build", "--backend", "qnn", *named, *WORDS["qnn"], *words)


def sums(bundle: Path) -> dict[str, str]:
    files = [p for p in bundle.rglob("*") if p.is_file() and p.name not in TOLD]
    return {
        p.relative_to(bundle).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def begun(kiln: Kiln, second: Second, model: Path, *words: str) -> Any:
    """A build that goes on, its bundle to be at here/bundle, its events on its output."""
    out = ("--out", str(kiln.here / "bundle"))
    return kiln.begin(*build(model, *words), *out, "--json", **second.env)


def events(process: Any, until_true: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The events of a build up to one of a kind."""
    found = []
    for line in process.stdout:
        found.append(json.loads(line))
        if until_true(found[-1]):
            return found
    raise AssertionError(f"it never came: {found[-3:]} {process.stderr.read()[-2000:]}")


def rest(process: Any) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err + out[-2000:]
    return [json.loads(line) for line in out.splitlines()]


def figures(found: list[dict[str, Any]], name: str) -> Any:
    return next(e["value"] for e in found if e["event"] == "result" and e["name"] == name)


def notes(found: list[dict[str, Any]]) -> str:
    return "\n".join(e["text"] for e in found if e["event"] == "note")


def test_the_gpus_stage_there_and_the_rest_here_is_the_same_bundle(
    afresh: Second, kiln: Kiln, tiny: Path, at_home: dict[str, str]
) -> None:
    process = begun(kiln, afresh, tiny, "--on", "quantize=second")
    found = rest(process)
    assert sums(kiln.here / "bundle") == at_home
    manifest = json.loads((kiln.here / "bundle" / "manifest.json").read_text())
    ran = {name: stage["executor"] for name, stage in manifest["stages"].items()}
    assert ran.pop("quantize") == "ssh:native"
    assert set(ran.values()) == {"native"}
    assert "sent to second" in notes(found)


def test_an_ordinary_user_there_will_do(
    rent: Rent, kiln: Kiln, tiny: Path, tmp_path: Path, at_home: dict[str, str]
) -> None:
    """Neither root nor a home that is named: edgekiln finds the data disk by its profile."""
    box = rent(user=kit.RENTER)
    second = farkit.second(box, tmp_path / "me", home="''")
    second.named(profile="autodl")
    try:
        rest(begun(kiln, second, tiny, "--on", "*=second", "--prove", "none"))
    finally:
        second.cable.close()
    listed = box.must("find", f"{kit.HOME}/store/v1/objects", "-name", "entry.json")
    assert len(listed.split()) == 4
    owner = box.must("stat", "-c", "%U", f"{kit.HOME}/remote")
    assert owner == kit.RENTER
    binary = "models/weight_sharing_model_1_of_1.serialized.bin"
    assert sums(kiln.here / "bundle")[binary] == at_home[binary]


def test_nothing_is_sent_twice(afresh: Second, kiln: Kiln, tiny: Path) -> None:
    everywhere = ("--on", "*=second", "--prove", "none")
    rest(begun(kiln, afresh, tiny, *everywhere))
    before = afresh.cable.sent
    # Another home, which knows nothing of the first: all stages are found there.
    other = Kiln(home=kiln.home.parent / "other", here=kiln.here)
    found = rest(begun(other, afresh, tiny, *everywhere))
    assert "finished on second already" in notes(found)
    assert "sent to second" not in notes(found)
    assert afresh.cable.sent - before < 100_000
    # The same files for another stage's key: they are there.
    found = rest(begun(other, afresh, tiny, *everywhere, "--soc", "8gen3"))
    assert "sent to second: 0 B" in notes(found)


def test_a_line_cut_in_the_middle_of_a_transfer_goes_on_at_the_byte(
    afresh: Second, kiln: Kiln, tiny: Path, at_home: dict[str, str]
) -> None:
    cable = afresh.cable
    cable.limit = 700_000
    process = begun(kiln, afresh, tiny, "--on", "quantize=second")
    seen = events(process, lambda e: e["event"] == "progress" and e["what"].startswith("to second"))
    total, begin = seen[-1]["total"], cable.sent
    cable.cut_once(lambda: cable.sent - begin > total // 2)
    found = rest(process)
    assert cable.cuts == 1
    assert "the connection was lost" in notes(found)
    again = next(e["text"] for e in found if "sent to second:" in e.get("text", ""))
    print(again, "of", total, "in all over the cable", cable.sent - begin)
    # The rest after the cut, and what was under way; not the whole a second time.
    assert cable.sent - begin < total * 1.25
    assert sums(kiln.here / "bundle") == at_home


# The last takes longest: there is time to find it running.
BOTH = ("--on", "quantize=second", "--on", "compile=second")
COMPILER = "qnn/compile.py"
# The program itself, not the guard that stands over it.
_PROGRAM = "^[^ ]*python3 -s [^ ]*qnn/compile.py"


def test_a_line_cut_while_outputs_come_back_goes_on_at_the_byte(
    afresh: Second, kiln: Kiln, tiny: Path, at_home: dict[str, str]
) -> None:
    cable = afresh.cable
    process = begun(kiln, afresh, tiny, "--on", "quantize=second")
    events(process, lambda e: "sent to second" in e.get("text", ""))
    cable.limit, begin = 200_000, cable.received

    def half() -> bool:
        return cable.received - begin > 300_000

    cable.cut_once(half)
    found = rest(process)
    assert cable.cuts == 1
    assert "the connection was lost" in notes(found)
    total = figures(found, "stages")["quantize"]["size"]
    print("back", total, "of which over the cable", cable.received - begin)
    assert total < cable.received - begin < total * 1.25
    assert sums(kiln.here / "bundle") == at_home


def test_a_stage_goes_on_while_the_line_is_cut_and_is_picked_up(
    afresh: Second, kiln: Kiln, tiny: Path, at_home: dict[str, str]
) -> None:
    process = begun(kiln, afresh, tiny, *BOTH)
    with in_the_middle(afresh):
        afresh.cable.unplug()
    until(lambda: finished(afresh) == 2, "it ends there")
    afresh.cable.plug()
    found = rest(process)
    assert "the connection was lost" in notes(found)
    assert sums(kiln.here / "bundle") == at_home
    # Each ran once: a second run would have begun its events anew, or added to them.
    told = afresh.box.must("sh", "-c", f"cat {kit.HOME}/remote/jobs/*/events.jsonl")
    begun_there = [json.loads(line) for line in told.splitlines() if '"started"' in line]
    assert sorted(event["task"] for event in begun_there) == ["compile", "quantize"]
    assert notes(found).count("sent to second") == 2


def test_a_build_that_was_killed_finds_its_stage_done(
    afresh: Second, kiln: Kiln, tiny: Path, at_home: dict[str, str]
) -> None:
    process = begun(kiln, afresh, tiny, *BOTH)
    with in_the_middle(afresh):
        process.kill()
        process.communicate()
    until(lambda: finished(afresh) == 2, "it ends there")
    found = rest(begun(kiln, afresh, tiny, *BOTH))
    assert "finished on second already" in notes(found)
    assert "sent to second" not in notes(found)
    assert sums(kiln.here / "bundle") == at_home


def test_a_build_that_is_stopped_leaves_nothing_running_there(
    afresh: Second, kiln: Kiln, tiny: Path
) -> None:
    process = begun(kiln, afresh, tiny, *BOTH)
    with in_the_middle(afresh):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        until(lambda: not runs(afresh, COMPILER), "it was ended there")
    until(lambda: not runs(afresh, "edgekiln.remote"), "nothing of ours is left")
    assert finished(afresh) == 1


@contextmanager
def in_the_middle(second: Second) -> Iterator[None]:
    """While the compiler is held there; afterwards it goes on."""
    until(lambda: runs(second, COMPILER), "the stage runs there", 120)
    second.box.must("pkill", "-STOP", "-f", _PROGRAM, user="root")
    try:
        yield
    finally:
        second.box.run("pkill", "-CONT", "-f", _PROGRAM, user="root")


def finished(second: Second) -> int:
    """How many stages are in the store there."""
    listed = second.box.run("sh", "-c", f"ls {kit.HOME}/store/v1/objects/*/*/entry.json")
    return len(listed.stdout.split())


def runs(second: Second, words: str) -> bool:
    """Whether some process there has these words in its command line."""
    said = second.box.must("ps", "-eo", "args", user="root")
    return any(words in line for line in said.splitlines())


def test_what_cannot_end_well_there_is_refused_before_a_byte_is_sent(
    afresh: Second, kiln: Kiln, tiny: Path
) -> None:
    afresh.named(memory="200m")
    out = ("--out", str(kiln.here / "bundle"))
    done = kiln(*build(tiny, "--on", "quantize=second"), *out, **afresh.env)
    assert done.returncode == 10, done.stderr
    lines = three_lines(done)
    assert lines[0].startswith("error: on second: stage quantize needs about")
    assert afresh.box.run("sh", "-c", f"ls {kit.HOME}/remote/blobs/*").returncode != 0


def test_a_key_that_is_not_known_is_refused_with_the_line_to_add(
    afresh: Second, kiln: Kiln, tmp_path: Path
) -> None:
    me = tmp_path / "me"
    (me / ".ssh").mkdir(mode=0o700, parents=True)
    private = (afresh.me / ".ssh" / "id_ed25519").read_bytes()
    (me / ".ssh" / "id_ed25519").touch(mode=0o600)
    (me / ".ssh" / "id_ed25519").write_bytes(private)
    env = {**afresh.env, "HOME": str(me)}
    done = kiln("hosts", "check", "second", **env)
    assert done.returncode == 22
    known = (afresh.me / ".ssh" / "known_hosts").read_text().strip()
    assert known in three_lines(done)[2]
    assert kiln("hosts", "check", "second", "--accept-new", **env).returncode == 0
    assert (me / ".ssh" / "known_hosts").read_text().strip() == known
    assert kiln("hosts", "check", "second", **env).returncode == 0
    other = known.split()[-1][:-8] + "AAAAAAAA"
    (me / ".ssh" / "known_hosts").write_text(known.replace(known.split()[-1], other) + "\n")
    done = kiln("hosts", "check", "second", **env)
    assert done.returncode == 22
    assert "another key" in three_lines(done)[0]


REPO = "acme/Tiny-Llama"
TOKEN = "hf_" + hashlib.sha256(b"a token of nobody").hexdigest()[:32]


@pytest.fixture
def gated(engine: Engine, tiny: Path) -> Iterator[type[Gated]]:
    """A Hub that both machines reach and that answers to the token only."""
    site = Site()
    for path in tiny.iterdir():
        site.files[f"/{REPO}/{path.name}"] = path.read_bytes()
    handler = type("Bound", (Gated,), {"told": [], "look": staticmethod(lambda: None)})
    host = kit.gateway(engine)
    with serving(site, handler, host=host):
        handler.url = f"http://{host}:{site.url.rpartition(':')[2]}"
        yield handler


class Gated(HubHandler):
    """Answers to the token only; `told` has who asked for which path, `look` is called first."""

    told: ClassVar[list[tuple[str, str]]]
    look: ClassVar[Callable[[], None]]
    url: ClassVar[str]

    def do_GET(self) -> None:  # noqa: N802 - the server's name for it
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.error(401, "GatedRepo")
            return
        type(self).told.append((self.client_address[0], self.path))
        type(self).look()
        super().do_GET()


def test_a_token_reaches_the_one_process_that_needs_it_and_no_file(
    afresh: Second,
    gated: type[Gated],
    tiny: Path,
    share_expensive: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    box = afresh.box
    (tmp_path / "kiln").mkdir()
    home = share_expensive(tmp_path / "kiln")
    (home / "models").unlink()  # what is fetched here is not for the user
    kiln = Kiln(home=home, here=tmp_path)
    seen: set[str] = set()
    arguments: list[str] = []

    def look() -> None:
        """Who has the token in its environment, and what command lines there are."""
        if gated.told[-1][0] == box.address:
            script = (
                f"for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ 2>/dev/null | "
                f"grep -qx HF_TOKEN={TOKEN} && tr '\\0' ' ' <$p/cmdline && echo; done; true"
            )
            seen.update(line for line in box.run("sh", "-c", script).stdout.splitlines() if line)
            arguments.append(box.must("ps", "-eo", "args", user="root"))

    gated.look = staticmethod(look)  # type: ignore[assignment]
    env = f"{{EDGEKILN_VENDOR: /media/vendor, PIP_NO_INDEX: '1', HF_ENDPOINT: '{gated.url}'}}"
    afresh.named(models="fetch", env=env)
    words = build(Path(REPO), "--on", "graph=second", "--on", "quantize=second", "--prove", "none")
    mine = {"HF_ENDPOINT": gated.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", **afresh.env}
    done = kiln(*words, "--out", str(tmp_path / "bundle"), "--json", **mine)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    asked = [path for who, path in gated.told if who == box.address]
    assert any(path.endswith("model.safetensors") for path in asked), "it fetched by itself"
    said = notes([json.loads(line) for line in done.stdout.splitlines()])
    sent = re.findall(r"sent to second: (.*)", said)
    weights = next(tiny.glob("*.safetensors")).stat().st_size
    print(sent, weights)
    # The texts it is measured with are not the model's; its weights did not go over.
    went = [
        units.parse_size(text.partition(" in ")[0], where="sent") for text in sent if text[0] > "0"
    ]
    assert len(sent) == 2 and sum(went) < weights
    assert seen and all("edgekiln.remote.work" in line for line in seen), seen
    assert arguments and not any(TOKEN in text.replace(_GREP, "") for text in arguments)
    assert TOKEN not in done.stdout + done.stderr
    place = box.run("grep", "-rl", TOKEN, kit.DATA, "/root", "/tmp", "/var/log", "/run")
    assert not place.stdout
    ours = [p for p in home.rglob("*") if p.is_file() and not p.is_symlink()]
    assert not [p for p in ours if TOKEN.encode() in p.read_bytes()]


_GREP = f"grep -qx HF_TOKEN={TOKEN}"
