"""kiln package check on libraries that TVM itself has made: the right ones and the wrong ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends.mlc_package import CONFIG, Packed, check_file, package_config
from edgekiln.problems import Problem
from tests.builds.tvmlibs import ARM, make_libraries

pytestmark = pytest.mark.slow

PATHS = "model_lib_path_for_prepare_libs"
QWEN, LLAMA = "qwen2_q4f16_1", "llama_q4f16_1"
LIBRARIES = (
    f"{QWEN}.tar:{QWEN}_:opencl:{ARM}",
    f"{LLAMA}.tar:{LLAMA}_:opencl:{ARM}",
    f"twin.tar:{QWEN}_:opencl:{ARM}",
    f"desktop.tar:{QWEN}_:opencl:x86_64-linux-gnu",
    f"nameless.tar::opencl:{ARM}",
)


@pytest.fixture(scope="module")
def made(tvm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries as TVM writes them, compressed and all."""
    return make_libraries(tvm_python, tmp_path_factory.mktemp("libraries"), *LIBRARIES)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A package of two models, in order."""
    models = [
        Packed(model_id=f"{lib}-MLC", model_lib=lib, hub=None, vram=10**9, sizes={})
        for lib in (QWEN, LLAMA)
    ]
    for model in models:
        (tmp_path / model.model_id).mkdir()
        (tmp_path / model.model_id / "tensor-cache.json").write_text("{}")
    (tmp_path / "lib").mkdir()
    for library in made.iterdir():
        shutil.copy(library, tmp_path / "lib")
    write(tmp_path, package_config(models, bundle_weights=True))
    return tmp_path


def write(folder: Path, config: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(config))


def broken(folder: Path, name: str, path: str, model_lib: str = "") -> list[Problem]:
    """What is found when the first model's library is called so and lies there."""
    config = json.loads((folder / CONFIG).read_text())
    del config[PATHS][QWEN]
    config[PATHS][name] = f"lib/{path}"
    config["model_list"][0]["model_lib"] = model_lib or name
    write(folder, config)
    return [p for p in check_file(folder) if p.level == "error"]


def test_what_tvm_made_for_a_phone_is_in_order(folder: Path) -> None:
    assert check_file(folder) == []


@pytest.mark.parametrize(
    ("name", "path", "model_lib", "what"),
    [
        (QWEN, f"{QWEN}.tar", f"{QWEN}_", "without its last underscore"),
        (f"{QWEN}_", f"{QWEN}.tar", "", "without its last underscore"),
        ("deepseek_q4f16_1", f"{QWEN}.tar", "", f"which holds {QWEN}"),
        (QWEN, "gone.tar", "", "there is no file"),
        (QWEN, "twin.tar", f"{QWEN}x", f"has no {QWEN}x"),
        (QWEN, "desktop.tar", "", "objects for x86-64"),
        (QWEN, "nameless.tar", "", "without a prefix"),
        ("twin", "twin.tar", "", "the file was renamed"),
    ],
)
def test_each_mistake_is_found(
    folder: Path, name: str, path: str, model_lib: str, what: str
) -> None:
    problems = broken(folder, name, path, model_lib)
    assert any(what in p.what for p in problems), problems


def test_a_renamed_archive_is_found(folder: Path) -> None:
    (folder / "lib" / f"{QWEN}.tar").rename(folder / "lib" / f"{QWEN}.so")
    (problem,) = broken(folder, QWEN, f"{QWEN}.so")
    assert "a .tar under another name" in problem.what


def test_two_libraries_of_one_prefix_are_found(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config[PATHS][LLAMA] = "lib/twin.tar"
    write(folder, config)
    assert any("have the same prefix" in p.what for p in check_file(folder))


def test_a_library_that_was_cut_short_is_found(folder: Path) -> None:
    library = folder / "lib" / f"{QWEN}.tar"
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    (problem,) = broken(folder, QWEN, f"{QWEN}.tar")
    assert "damaged" in problem.what
