"""`kiln verify bundle` on real builds of a tiny model: built again, compared, tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.builds.kit import LENIENT, Kiln, three_lines

pytestmark = pytest.mark.slow


class Made(NamedTuple):
    """A bundle, the command line that built it, and its model."""

    kiln: Kiln
    place: Path
    model: Path


@pytest.fixture(scope="module")
def made(
    tiny: Path,
    mnn_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    share_expensive: Callable[[Path], Path],
) -> Made:
    """The tiny model, built natively once; from a copy, since a test changes it."""
    here = tmp_path_factory.mktemp("verify-here")
    model = here / "tiny-llama"
    shutil.copytree(tiny, model)
    kiln = Kiln(home=share_expensive(tmp_path_factory.mktemp("verify-home")), here=here)
    words = ("build", "--backend", "mnn", "--model", str(model), "--executor", "native")
    done = kiln(*words, *LENIENT)
    assert done.returncode == 0, done.stderr
    return Made(kiln, here / "build" / "tiny-llama" / "mnn", model)


@pytest.fixture
def other(made: Made, tmp_path: Path) -> Made:
    """A copy of the bundle, to be changed."""
    shutil.copytree(made.place, tmp_path / "other")
    return made._replace(place=tmp_path / "other")


def results(stdout: str) -> dict[str, Any]:
    """What a command with --json found out."""
    events = [json.loads(line) for line in stdout.splitlines()]
    return {e["name"]: e["value"] for e in events if e["event"] == "result"}


def rewrite(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a bundle's manifest says."""
    path = place / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_bundle_is_built_again_from_its_manifest_with_the_same_bytes(made: Made) -> None:
    before = made.kiln.finished()
    done = made.kiln("verify", "bundle", str(made.place), "--executor", "native", "--json")
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {e["task"]: e["how"] for e in events if e["event"] == "ended"}
    # Nothing of the user's store was taken, and nothing was put into it.
    assert {ended[s] for s in ("reference", "export", "configure", "prove")} == {"done"}
    assert made.kiln.finished() == before
    assert not [p for p in (made.kiln.home / "verify").iterdir() if p.is_dir()]
    found = results(done.stdout)
    assert found["same"] is True
    assert "first-stage" not in found


@pytest.mark.engine
def test_what_processes_made_is_made_again_by_containers(made: Made, image: str) -> None:
    done = made.kiln("verify", "bundle", str(made.place), "--executor", "docker", "--json")
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    found = results(done.stdout)
    assert found["same"] is True
    told = {fact["name"]: (fact["left"], fact["right"]) for fact in found["may-differ"]}
    assert told["stages.export.executor"] == ("native", "docker")


def test_a_bundle_that_was_built_of_something_else_names_stage_and_byte(other: Made) -> None:
    """As though the manifest told of a build that came out otherwise by one byte."""
    from edgekiln.digest import digest_file

    weights = next(other.place.glob("mnn_models/*/llm.mnn.weight"))
    name = weights.relative_to(other.place).as_posix()
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name]["sha256"] = digest_file(weights)
        made = manifest["stages"]["export"]["outputs"]["mnn"]["files"]["llm.mnn.weight"]
        made["sha256"] = digest_file(weights)

    rewrite(other.place, change)
    done = other.kiln("verify", "bundle", str(other.place), "--executor", "native", "--json")
    assert done.returncode == 18, done.stderr + done.stdout[-2000:]
    found = results(done.stdout)
    assert found["first-stage"]["name"] == "export"
    assert found["first-stage"]["causes"] == []
    assert found["file"]["name"] == name
    assert found["first-byte"]["offset"] == 1000


def test_two_bundles_with_other_options_differ_from_the_export_on(made: Made) -> None:
    words = ("--model", str(made.model), "--executor", "native", "--out", "eight")
    done = made.kiln("build", "--backend", "mnn", *words, "--quant-bit", "8", *LENIENT)
    assert done.returncode == 0, done.stderr
    done = made.kiln("verify", "bundle", str(made.place), "--against", "eight", "--json")
    assert done.returncode == 18, done.stderr
    found = results(done.stdout)
    assert found["fact"] == {"name": "options.quant_bit", "left": "4", "right": "8"}
    assert found["first-stage"]["name"] == "export"
    assert [cause["name"] for cause in found["first-stage"]["causes"]] == ["parameters"]


def test_a_flipped_bit_in_a_bundle_is_refused(other: Made) -> None:
    weights = next(other.place.glob("mnn_models/*/llm.mnn.weight"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = other.kiln("verify", "bundle", str(other.place))
    assert done.returncode == 6
    lines = three_lines(done)
    assert str(weights) in lines[0]
    assert "stage export" in lines[1] and lines[1].count("sha256") == 1


def test_a_flipped_bit_in_the_model_is_refused_before_anything_is_built(other: Made) -> None:
    weights = other.model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = other.kiln("verify", "bundle", str(other.place), "--executor", "native")
    finally:
        weights.write_bytes(whole)
    assert done.returncode == 6, done.stderr
    lines = three_lines(done)
    assert str(weights) in lines[0]
    manifest = json.loads((other.place / "manifest.json").read_text())
    assert manifest["models"]["model"]["files"]["model.safetensors"]["sha256"] in lines[1]
    assert "export" not in done.stderr


def test_the_models_folder_may_lie_elsewhere(other: Made, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "another-name"
    shutil.copytree(other.model, moved)
    rewrite(other.place, lambda m: m["models"]["model"].update(place=str(tmp_path / "gone")))
    words = ("verify", "bundle", str(other.place), "--executor", "native")
    assert other.kiln(*words).returncode == 3
    done = other.kiln(*words, "--model", str(moved))
    assert done.returncode == 0, done.stderr + done.stdout


def test_another_checkout_is_told_and_anyway_builds_with_what_is_here(other: Made) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["stages"]["export"]["programs"]["mnn/export.py"] = "9" * 64

    rewrite(other.place, change)
    words = ("verify", "bundle", str(other.place), "--executor", "native")
    done = other.kiln(*words)
    assert done.returncode == 4
    lines = three_lines(done)
    assert "scripts/mnn/export.py" in lines[1] and "9" * 64 in lines[1]
    done = other.kiln(*words, "--anyway", "--json")
    assert done.returncode == 18
    found = results(done.stdout)
    assert found["first-stage"]["name"] == "export"
    assert found["first-stage"]["files"] == []
    assert "file" not in found
