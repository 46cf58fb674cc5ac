"""Recipes: those that come with edgekiln, and what is refused in a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.backends import load_backend
from edgekiln.errors import UsageError
from edgekiln.recipe import Recipe, list_recipes, load_recipe

GOOD = "name: mine\nbackend: mnn\nmodel: ./model\n"


def write(place: Path, text: str) -> str:
    file = place / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_that_comes_along_is_sound_and_named_like_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary


def test_the_extreme_speed_recipe_is_four_bits_throughout_on_the_gpu() -> None:
    recipe = load_recipe("qwen3-1.7b-mnn-extreme-speed")
    options = recipe.parsed(load_backend(recipe.backend))
    assert (options.quant_bit, options.lm_quant_bit, options.embed_bit) == (4, 4, 4)
    assert options.quant_block == 256
    assert options.sym and options.transformer_fuse and options.hqq and options.prefer_decode
    assert options.backend_type == "opencl"
    assert options.kv_quant == 2


def test_a_recipe_s_options_go_over_those_of_its_preset(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "preset: precision\noptions: {hqq: true}\n")
    recipe = load_recipe(file)
    options = recipe.parsed(load_backend("mnn"))
    assert options.quant_bit == 8
    assert options.hqq


def test_files_a_recipe_names_are_looked_for_beside_it(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + "options: {awq: true, calib_data: t.txt}\n"))
    assert recipe.options["calib_data"] == str(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        (GOOD + "options: {quant_bits: 4}\n", "options.quant_bits is not", "quant_bit?"),
        (GOOD + "options: {quant_bit: 5}\n", "options.quant_bit is 5", "2, 4, 8, 16"),
        (GOOD + "options: {top_p: 7}\n", "options.top_p is 7", "from 0 to 1"),
        (GOOD + "options: {hqq: maybe}\n", "options.hqq is 'maybe'", "true or false"),
        (GOOD + "options: [hqq]\n", "options is not a list of names", ""),
        (GOOD + "optins: {}\n", "optins is no key", "options?"),
        (GOOD + "preset: extreme\n", "no preset extreme", "extreme-speed"),
        ("name: mine\nbackend: mnn\n", "model is missing", "model:"),
        ("name: mine\nbackend: mmn\nmodel: m\n", "no backend mmn", "mnn"),
        ("name: 7\nbackend: mnn\nmodel: m\n", "name is 7", "text"),
        ("- mnn\n", "is not a recipe", "name"),
        ("name: [\n", "is not YAML", ""),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named_with_its_key(
    tmp_path: Path, text: str, what: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_a_recipe_that_is_not_there_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("smollm2-135m-mn")
    assert "smollm2-135m-mnn" in caught.value.remedy


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe file"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_an_unknown_preset_is_refused_without_a_file() -> None:
    recipe = Recipe(name="x", backend="mnn", model="m", preset="fast")
    with pytest.raises(UsageError, match="no preset fast"):
        recipe.parsed(load_backend("mnn"))
