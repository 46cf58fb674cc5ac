"""Models from ModelScope, through its own client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln.errors import KilnError, ModelError
from edgekiln.models import Model, resolve, snapshots
from edgekiln.progress import Silent
from tests.unit import tinymodel
from tests.unit.servers import ModelScopeHandler, Site, serving

REPO = "acme/Tiny-1M"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """ModelScope on the loopback, with one model."""
    pytest.importorskip("modelscope_hub")
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr(snapshots, "RETRIES", ())
    with serving(Site(), ModelScopeHandler) as site:
        for path in tinymodel.make(tmp_path / "published").iterdir():
            site.files[f"/{REPO}/{path.name}"] = path.read_bytes()
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", site.url)
        yield site


def get(ref: str, *, refresh: bool = False) -> Model:
    return resolve(ref, progress=Silent(), refresh=refresh)


def test_a_model_is_fetched_whole_and_needs_no_network_again(site: Site) -> None:
    model = get(f"modelscope:{REPO}")
    assert model.name == "tiny-1m"
    assert model.source == f"modelscope:{REPO}@{model.path.name}"
    published = {k.rsplit("/", 1)[1]: v for k, v in site.files.items()}
    assert {path.name: path.read_bytes() for path in model.path.iterdir()} == published
    site.asked.clear()
    assert get(f"modelscope:{REPO}") == model
    assert site.asked == []


def test_another_listing_is_another_revision(site: Site) -> None:
    first = get(f"modelscope:{REPO}@master")
    site.files[f"/{REPO}/generation_config.json"] = b"{}"
    assert get(f"modelscope:{REPO}@master") == first
    assert get(f"modelscope:{REPO}@master", refresh=True).path != first.path


def test_a_model_that_is_not_there_is_named(site: Site) -> None:
    with pytest.raises(ModelError, match="ModelScope has no model acme/none"):
        get("modelscope:acme/none")


def test_without_the_client_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(KilnError, match="need its client") as caught:
        get(f"modelscope:{REPO}")
    assert "modelscope-hub" in caught.value.remedy
