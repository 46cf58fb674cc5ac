"""Toolchain files: what is refused, what counts as a change, what the shipped ones hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekiln import toolchain
from edgekiln.errors import ToolchainError
from edgekiln.toolchain import list_bases, list_toolchains, load_toolchain, read_definition, schemas
from edgekiln.toolchain.lock import BaseDefinition, Definition
from edgekiln.toolchain.records import plain, read


def change(path: Path, old: str, new: str) -> None:
    """Replace a text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("name", list_toolchains())
def test_every_shipped_toolchain_matches_its_lock(name: str) -> None:
    found = load_toolchain(name)
    assert len(found.digest) == 64
    assert found.requirements == found.lock.definition.requirements


@pytest.mark.parametrize("name", list_toolchains())
def test_each_requirement_is_among_the_locked_wheels(name: str) -> None:
    found = load_toolchain(name)
    locked = {f"{wheel.name}=={wheel.version}" for wheel in found.lock.wheels}
    assert set(found.requirements) <= locked


def test_an_unknown_toolchain_gets_the_nearest_name() -> None:
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mmn")
    assert caught.value.remedy == "did you mean mnn?"


def test_a_name_with_a_path_in_it_is_no_toolchain() -> None:
    with pytest.raises(ToolchainError):
        load_toolchain("bases/debian-12")


def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_name(copy: Path) -> None:
    change(copy / "mnn.yaml", "requirements:", "requirement:")
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn")
    assert caught.value.what == "mnn.yaml: requirement is not known"
    assert caught.value.remedy == "did you mean requirements?"


def test_a_value_of_the_wrong_kind_is_refused_with_its_path(copy: Path) -> None:
    change(copy / "mnn.yaml", 'python: "3.11"', "python: 3.11")
    with pytest.raises(ToolchainError, match=r"mnn\.yaml: python is 3\.11"):
        load_toolchain("mnn")


def test_an_item_of_the_wrong_kind_is_refused_with_its_place_in_the_list(copy: Path) -> None:
    change(copy / "mnn.yaml", "apt: [python3]", "apt: [python3, 7]")
    with pytest.raises(ToolchainError, match=r"apt\[1\] is 7"):
        load_toolchain("mnn")


def test_text_that_is_no_yaml_is_refused_in_one_line(copy: Path) -> None:
    (copy / "mnn.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn")
    assert caught.value.what == "mnn.yaml is not YAML"
    assert "\n" not in caught.value.why


def test_a_changed_requirement_is_refused_until_it_is_locked(copy: Path) -> None:
    change(copy / "mnn.yaml", "mnn==3.6.1", "mnn==3.6.0")
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn")
    assert caught.value.why == "changed since: requirements"
    assert caught.value.remedy == "kiln toolchains lock mnn"


def test_comments_words_and_places_do_not_change_the_digest(copy: Path) -> None:
    before = load_toolchain("mnn")
    change(copy / "mnn.yaml", "summary: MNN", "# a remark\nsummary: The MNN")
    change(copy / "mnn.yaml", "/whl/cpu", "/whl/cpu-mirror")
    after = load_toolchain("mnn")
    assert after.digest == before.digest
    assert after.summary == f"The {before.summary}"
    assert after.places[0].endswith("cpu-mirror")


def test_line_ends_of_a_windows_checkout_change_nothing(copy: Path) -> None:
    before = load_toolchain("mnn").digest
    for path in (copy / "mnn.yaml", copy / "mnn.lock.json"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_toolchain("mnn").digest == before


def test_one_changed_digest_in_the_lock_is_another_toolchain(copy: Path) -> None:
    before = load_toolchain("mnn")
    wheel = before.lock.wheels[0]
    change(copy / "mnn.lock.json", wheel.sha256, "0" * 64)
    assert load_toolchain("mnn").digest != before.digest


def test_a_base_that_was_locked_again_asks_for_a_new_lock(copy: Path) -> None:
    lock = json.loads((copy / "bases" / "debian-12.lock.json").read_bytes())
    change(copy / "bases" / "debian-12.lock.json", lock["debs"][0]["sha256"], "0" * 64)
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn")
    assert "debian-12" in caught.value.why


def test_a_missing_lock_says_how_to_make_it(copy: Path) -> None:
    (copy / "mnn.lock.json").unlink()
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn")
    assert caught.value.remedy == "kiln toolchains lock mnn"


def test_another_base_is_another_digest_and_the_own_one_is_not() -> None:
    own = load_toolchain("mnn")
    assert load_toolchain("mnn", base="debian-12").digest == own.digest
    other = load_toolchain("mnn", base="registry.example/debian:12-slim")
    assert other.digest != own.digest
    assert other.base.given == "registry.example/debian:12-slim"


def test_a_base_that_could_be_an_option_is_refused() -> None:
    with pytest.raises(ToolchainError):
        load_toolchain("mnn", base="--privileged")


def test_definitions_survive_being_written_and_read() -> None:
    for name in list_toolchains():
        found = read_definition(Definition, toolchain.folder() / f"{name}.yaml")
        assert read(Definition, plain(found), where="again") == found


def test_bases_name_their_image_by_digest() -> None:
    for name in list_bases():
        found = read_definition(BaseDefinition, toolchain.folder() / "bases" / f"{name}.yaml")
        assert len(found.image.partition("@sha256:")[2]) == 64


def test_the_shipped_schemas_are_current() -> None:
    for path, text in schemas.schemas().items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m edgekiln.toolchain.schemas"
