"""The README's build, whole: the example model, in containers and as plain processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.builds.kit import Kiln

pytestmark = pytest.mark.slow

EXAMPLE = "smollm2-135m-instruct"


class Built(NamedTuple):
    """A finished build: its command line, the bundle's folder, the events it told."""

    kiln: Kiln
    place: Path
    events: list[dict[str, Any]]

    @property
    def manifest(self) -> dict[str, Any]:
        """What the bundle says of itself."""
        found: dict[str, Any] = json.loads((self.place / "manifest.json").read_text())
        return found


def built(kiln: Kiln, executor: str) -> Built:
    """Build the example in an empty store."""
    done = kiln("build", "--backend", "mnn", "--executor", executor, "--json")
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return Built(kiln, kiln.here / "build" / EXAMPLE / "mnn", events)


def a_kiln(factory: pytest.TempPathFactory, name: str, home: Path) -> Kiln:
    """A command line in an empty folder."""
    here = factory.mktemp(name) / "here"
    here.mkdir()
    return Kiln(home=home, here=here)


@pytest.fixture(scope="module")
def native(
    tmp_path_factory: pytest.TempPathFactory, mnn_python: Path, share_expensive: Any
) -> Built:
    """Built by plain processes."""
    home = share_expensive(tmp_path_factory.mktemp("native-home"))
    return built(a_kiln(tmp_path_factory, "native", home), "native")


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, image: str, share_expensive: Any) -> Built:
    """Built in containers."""
    home = share_expensive(tmp_path_factory.mktemp("docker-home"))
    return built(a_kiln(tmp_path_factory, "docker", home), "docker")


def sums(place: Path) -> dict[str, str]:
    """sha256 of every file under a folder."""
    files = [path for path in place.rglob("*") if path.is_file()]
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def test_it_knows_the_capital_of_france(native: Built) -> None:
    answer = native.manifest["figures"]["answer"]
    assert answer["prompt"] == "What is the capital of France?"
    assert "Paris" in answer["answer"]
    told = [e["value"] for e in native.events if e.get("name") == "answer"]
    assert told == [answer]


def test_the_manifest_holds_the_figures_of_both_models(native: Built) -> None:
    proof = native.manifest["figures"]["proof"]
    assert 0.9 < proof["cosine_mean"] <= 1
    assert 1 < proof["perplexity_float"] < proof["perplexity_quantised"] * 1.1
    assert proof["perplexity_quantised"] / proof["perplexity_float"] == pytest.approx(
        native.manifest["figures"]["perplexity_ratio"], rel=1e-3
    )


def test_every_file_is_as_the_manifest_says(native: Built) -> None:
    found = sums(native.place)
    said = {name: file["sha256"] for name, file in native.manifest["files"].items()}
    assert {n: s for n, s in found.items() if n not in ("manifest.json", "provenance.json")} == said
    phone = {name for name in said if name.startswith(f"mnn_models/{EXAMPLE}/")}
    for name in ("config.json", "llm.mnn", "llm.mnn.weight", "llm_config.json", "tokenizer.mtok"):
        assert f"mnn_models/{EXAMPLE}/{name}" in phone
    subjects = json.loads((native.place / "provenance.json").read_text())["subject"]
    assert {s["name"]: s["digest"]["sha256"] for s in subjects} == said


def test_every_line_of_json_is_an_event(native: Built) -> None:
    kinds = {event["event"] for event in native.events}
    assert {"note", "started", "progress", "ended", "result"} <= kinds
    ended = {e["task"]: e["how"] for e in native.events if e["event"] == "ended"}
    assert {ended[stage] for stage in ("export", "reference", "configure", "prove")} == {"done"}
    last = native.events[-1]
    assert (last["event"], last["name"], last["value"]) == ("result", "bundle", str(native.place))
    assert last["text"].startswith(f"\nbundle: {native.place} (")


def test_a_second_run_has_nothing_to_do(native: Built) -> None:
    before = sums(native.place)
    done = native.kiln("build", "--backend", "mnn", "--executor", "native")
    assert done.returncode == 0, done.stderr
    assert f"nothing to do: {native.place} is up to date" in done.stdout
    assert "Paris" in done.stdout
    assert sums(native.place) == before


def test_a_bundle_that_was_touched_is_put_together_again(native: Built) -> None:
    before = sums(native.place)
    config = native.place / "mnn_models" / EXAMPLE / "config.json"
    config.write_text("{}")
    done = native.kiln("build", "--backend", "mnn", "--executor", "native")
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    assert ["export", "cached"] in rows and ["prove", "cached"] in rows
    assert sums(native.place / "mnn_models") == {
        name.removeprefix("mnn_models/"): digest
        for name, digest in before.items()
        if name.startswith("mnn_models/")
    }


@pytest.mark.engine
def test_containers_and_plain_processes_make_the_same_bytes(native: Built, docker: Built) -> None:
    found = sums(docker.place / "mnn_models")
    assert found == sums(native.place / "mnn_models")
    assert len(found) >= 5
    one, other = ((b.place / "provenance.json").read_bytes() for b in (native, docker))
    assert one == other
    by = {s["executor"] for s in docker.manifest["stages"].values()}
    assert by == {"docker"}, "nothing of it came out of the other's store"


@pytest.mark.engine
def test_what_the_two_prove_is_as_close(native: Built, docker: Built) -> None:
    one, other = (b.manifest["figures"] for b in (native, docker))
    assert other["answer"]["answer"] == one["answer"]["answer"]
    assert other["cosine_mean"] == pytest.approx(one["cosine_mean"], abs=1e-3)
    assert other["perplexity_ratio"] == pytest.approx(one["perplexity_ratio"], rel=1e-2)
