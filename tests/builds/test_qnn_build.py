"""The whole QNN build on tiny models of three families: natively, in containers, twice over."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekiln.genie import lint
from tests.builds.kit import Kiln, call, three_lines
from tests.builds.tinyllm import MAKE_MODEL

pytestmark = pytest.mark.slow

FAMILIES = ("llama", "qwen2", "qwen3")
# A model of random weights answers nonsense at four bits as it does at thirty-two.
WORDS = (
    *("--context-length", "192", "--prefill-length", "32", "--calibration-tokens", "512"),
    *("--max-perplexity-ratio", "1000", "--min-cosine", "0", "--answer-tokens", "4"),
)
BINARY = "models/weight_sharing_model_1_of_1.serialized.bin"


@pytest.fixture(scope="session")
def tinies(mnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a model of two layers of a family, made once."""
    root = tmp_path_factory.mktemp("tinies")

    def made(family: str) -> Path:
        place = root / f"tiny-{family}"
        if not place.exists():
            done = call([str(mnn_python), "-c", MAKE_MODEL, family, str(place)], os.environ)
            assert done.returncode == 0, done.stderr
        return place

    return made


class Built:
    """A finished build."""

    def __init__(self, kiln: Kiln, model: Path, executor: str, *words: str) -> None:
        self.kiln = kiln
        place = ("--model", str(model), "--executor", executor)
        self.words = ("build", "--backend", "qnn", *place, *WORDS, *words)
        done = kiln(*self.words, "--json")
        assert done.returncode == 0, done.stderr + done.stdout[-3000:]
        self.events = [json.loads(line) for line in done.stdout.splitlines()]
        self.place = Path(self.events[-1]["value"])
        self.manifest: dict[str, Any] = json.loads((self.place / "manifest.json").read_text())

    def sums(self) -> dict[str, str]:
        """sha256 of each file but those that tell of times, and of what lay between stages."""
        told = ("manifest.json", "provenance.json")
        files = [p for p in self.place.rglob("*") if p.is_file() and p.name not in told]
        return {
            p.relative_to(self.place).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
        }


@pytest.fixture(scope="module")
def natives(
    tinies: Callable[[str], Path],
    qnn_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    share_expensive: Callable[[Path], Path],
) -> Callable[[str], Built]:
    """Gives the native build of a family, made once."""
    home = share_expensive(tmp_path_factory.mktemp("qnn-home"))
    found: dict[str, Built] = {}

    def built(family: str) -> Built:
        if family not in found:
            here = tmp_path_factory.mktemp(family)
            found[family] = Built(Kiln(home=home, here=here), tinies(family), "native")
        return found[family]

    return built


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_is_made_and_genie_has_answered_from_it(
    natives: Callable[[str], Built], family: str
) -> None:
    built = natives(family)
    assert built.place.parts[-3:] == ("build", f"tiny-{family}", "qnn-sm8750")
    figures = built.manifest["figures"]
    assert figures["proof"]["answers"][0]["tokens"] > 0
    assert figures["proof"]["answers"][0]["same_prompt_tokens"]
    assert 0.9 < figures["cosine_mean"] <= 1.001
    assert figures["binaries"]["nodes_on_cpu"] == 0
    assert figures["binaries"]["soc_model"] == 69
    graphs = figures["binaries"]["binaries"][0]["graphs"]
    assert sorted(g["tokens"] for g in graphs) == [1, 32]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linter_finds_nothing_to_be_done(
    natives: Callable[[str], Built], tinies: Callable[[str], Path], family: str
) -> None:
    found = lint(natives(family).place, tinies(family))
    assert not [p.text for p in found if p.level != "note"]


def test_the_bundle_holds_what_its_readme_pushes(natives: Callable[[str], Built]) -> None:
    built = natives("llama")
    files = set(built.manifest["files"])
    wanted = {BINARY, "tokenizer.json", "genie_config.json", "htp_backend_ext_config.json"}
    assert wanted | {"run.sh", "prompts/01.txt", "prompts/template.json"} <= files
    readme = (built.place / "README.md").read_text()
    assert "libQnnHtpV79Skel.so" in readme
    assert built.manifest["figures"]["binaries"]["qnn_build"] in readme


def test_a_second_build_has_nothing_to_do(natives: Callable[[str], Built]) -> None:
    built = natives("llama")
    before = built.sums()
    done = built.kiln(*built.words)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert built.sums() == before


def test_other_words_for_the_chip_are_the_same_stages(natives: Callable[[str], Built]) -> None:
    built = natives("llama")
    done = built.kiln(*built.words, "--soc", "8 Elite", "--json")
    assert done.returncode == 0, done.stderr
    stages = next(
        e["value"]
        for e in map(json.loads, done.stdout.splitlines())
        if e["event"] == "result" and e["name"] == "stages"
    )
    assert not any(stage["ran"] for stage in stages.values())


def test_another_home_makes_the_same_bytes(
    natives: Callable[[str], Built],
    tinies: Callable[[str], Path],
    tmp_path: Path,
    own_store: Path,
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    again = Built(Kiln(home=own_store, here=here), tinies("llama"), "native")
    assert all(e["ran"] for e in _stages(again).values())
    assert again.sums() == natives("llama").sums()


def _stages(built: Built) -> dict[str, Any]:
    found: dict[str, Any] = next(e["value"] for e in built.events if e.get("name") == "stages")
    return found


@pytest.mark.engine
@pytest.mark.parametrize("family", FAMILIES)
def test_containers_make_the_same_bytes(
    natives: Callable[[str], Built],
    tinies: Callable[[str], Path],
    tmp_path: Path,
    own_store: Path,
    family: str,
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    boxed = Built(Kiln(home=own_store, here=here), tinies(family), "docker")
    assert {s["executor"] for s in boxed.manifest["stages"].values()} == {"docker"}
    assert boxed.sums() == natives(family).sums()


def test_an_older_chip_gets_a_binary_for_each_graph_and_is_told(
    tinies: Callable[[str], Path], qnn_python: Path, kiln: Kiln
) -> None:
    words = ("--soc", "8 Gen 1", "--prove", "none")
    built = Built(kiln, tinies("llama"), "native", *words)
    names = {name for name in built.manifest["files"] if name.startswith("models/")}
    assert names == {f"models/ar{t}_1_of_1.serialized.bin" for t in (1, 32)}
    assert any("cannot share weights" in e.get("text", "") for e in built.events)
    extensions = json.loads((built.place / "htp_backend_ext_config.json").read_text())
    assert "context" not in extensions
    assert extensions["devices"][0]["dsp_arch"] == "v69"


def test_a_model_that_loses_too_much_leaves_no_bundle(
    natives: Callable[[str], Built], tmp_path: Path
) -> None:
    built = natives("llama")
    out = tmp_path / "out"
    floor = built.words.index("--min-cosine") + 1
    words = (*built.words[:floor], "1", *built.words[floor + 1 :])
    done = built.kiln(*words, "--out", str(out))
    assert done.returncode == 13
    assert "layer_" in three_lines(done)[1]
    assert not out.exists()
