"""Which input folders hold when they are mounted elsewhere, and how the others are laid out."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.executors.views import leads_out, places


def test_a_plain_folder_is_mounted_as_it_is(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "beside").symlink_to("../config.json")
    assert not leads_out(model)
    assert list(places("/in/model", model, tmp_path / "s")) == [("/in/model", model)]
    assert not (tmp_path / "s").exists()


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    found = list(places("/in/model", tmp_path / "link", tmp_path / "s"))
    assert found == [("/in/model", tmp_path / "real")]


@pytest.mark.parametrize("target", ["../blob", "/blob", "../model/there", "sub/../../blob"])
def test_links_that_would_not_hold_elsewhere_are_known(tmp_path: Path, target: str) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "there").write_text("x")
    (model / "weights").symlink_to(target)
    assert leads_out(model)


def test_a_farm_of_links_is_a_skeleton_with_files_over_it(tmp_path: Path) -> None:
    farm, blob = tmp_path / "farm", tmp_path / "blob"
    (farm / "sub").mkdir(parents=True)
    blob.write_text("weights")
    (farm / "sub" / "model.safetensors").symlink_to("../../blob")
    (farm / "config.json").write_text("{}")
    found = dict(places("/in/model", farm, tmp_path / "s"))
    assert found == {
        "/in/model": tmp_path / "s",
        "/in/model/config.json": farm / "config.json",
        "/in/model/sub/model.safetensors": blob,
    }
    empty = [p.relative_to(tmp_path / "s").as_posix() for p in (tmp_path / "s").rglob("*.*")]
    assert sorted(empty) == ["config.json", "sub/model.safetensors"]


def test_a_folder_of_links_to_folders_is_laid_out_too(tmp_path: Path) -> None:
    farm, far = tmp_path / "farm", tmp_path / "far"
    farm.mkdir()
    far.mkdir()
    (far / "a.txt").write_text("a")
    (farm / "sub").symlink_to(far)
    found = dict(places("/in/model", farm, tmp_path / "s"))
    assert found["/in/model/sub/a.txt"] == far / "a.txt"
