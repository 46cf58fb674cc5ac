"""A bundle as a page in Markdown: what is told, and that nobody else's words are markup in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekiln.bundle import MANIFEST
from edgekiln.errors import UsageError
from edgekiln.jobsummary import append, page

FILES = {"model.bin": {"size": 5_000_000, "sha256": "ab" * 32}}


def bundle(place: Path, **more: Any) -> Path:
    """A folder with a finished bundle's manifest."""
    told = {"backend": "mnn", "model": {"name": "tiny", "source": "org/tiny"}, "files": FILES}
    (place / MANIFEST).write_text(json.dumps({**told, **more}))
    return place


def test_model_bundle_and_stages_are_told(tmp_path: Path) -> None:
    stage = {"toolchain": "mnn", "executor": "native", "seconds": 90, "peak_memory": 2_000_000}
    text = page(bundle(tmp_path, stages={"export": stage}, options={"quant_bit": 4, "off": False}))
    assert text.startswith("### tiny for mnn\n")
    assert "| bundle | 5.0 MB in 1 files |" in text
    assert "| export | mnn | native | 1 min 30 s | 2.0 MB |" in text
    assert "| `quant_bit` | `4` |" in text and "`off`" not in text
    assert f"| `model.bin` | 5.0 MB | `{'ab' * 32}` |" in text


@pytest.mark.parametrize(
    "words", ["![x](http://a.b/c.png)", "<img src=x>", "[x](y)", "a | b", "@somebody", "http://a.b"]
)
def test_names_of_others_are_no_markup(tmp_path: Path, words: str) -> None:
    text = page(bundle(tmp_path, model={"name": words, "source": words}))
    assert words not in text


def test_what_a_model_said_ends_no_block(tmp_path: Path) -> None:
    text = page(bundle(tmp_path, shown=["```", "# not a heading", "````"]))
    assert "\n`````text\n```\n# not a heading\n````\n`````\n" in text


@pytest.mark.parametrize("manifest", [None, "[]", "{}", "no json", '{"unfinished": true}'])
def test_a_folder_that_is_no_finished_bundle_is_refused(
    tmp_path: Path, manifest: str | None
) -> None:
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(UsageError) as refused:
        page(tmp_path)
    assert refused.value.remedy


def test_pages_are_added_to_a_file(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        append(text, tmp_path / "summary.md")
    assert (tmp_path / "summary.md").read_text() == "one\n\ntwo\n\n"
