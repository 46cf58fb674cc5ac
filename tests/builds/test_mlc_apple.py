"""kiln package check on libraries that TVM has made for an iPhone, here and not on a Mac."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekiln.artifacts import archives
from edgekiln.backends.mlc_package import CONFIG, check_file
from tests.builds.tvmlibs import ARM, make_libraries

pytestmark = pytest.mark.slow

QWEN = "qwen2_q4f16_1"
LIBRARIES = (
    f"iphone.tar:{QWEN}_:llvm:arm64-apple-ios",
    f"mac.tar:{QWEN}_:llvm:x86_64-apple-darwin",
    f"android.tar:{QWEN}_:llvm:{ARM}",
)


@pytest.fixture(scope="module")
def made(tvm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_libraries(tvm_python, tmp_path_factory.mktemp("libraries"), *LIBRARIES)


def wrong(folder: Path, device: str, file: str, model_lib: str = QWEN) -> list[str]:
    """What the check has against a package of one model for a device."""
    entry = {"model": "HF://a/b", "model_id": "b", "estimated_vram_bytes": 1}
    config = {
        "device": device,
        "model_list": [{**entry, "model_lib": model_lib}],
        "model_lib_path_for_prepare_libs": {model_lib: file},
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return [p.what for p in check_file(folder) if p.level == "error"]


def test_an_iphone_s_library_is_taken_by_its_name_inside(made: Path) -> None:
    assert wrong(made, "iphone", "iphone.tar") == []
    assert wrong(made, "macabi", "mac.tar") == []
    (told,) = wrong(made, "iphone", "iphone.tar", "llama_q4f16_1")
    assert QWEN in told


def test_apple_s_objects_and_android_s_are_told_apart(made: Path) -> None:
    assert any("arm64 (Apple)" in told for told in wrong(made, "android", "iphone.tar"))
    assert any("not Apple's" in told for told in wrong(made, "iphone", "android.tar"))
    assert wrong(made, "android", "android.tar") == []


def test_apple_s_objects_say_what_they_are_for(made: Path) -> None:
    facts = archives.read_tar(made / "mac.tar").facts
    assert facts["abis"] == ["x86_64 (Apple)"]
    assert facts["tvm_prefixes"] == [f"{QWEN}_"]
