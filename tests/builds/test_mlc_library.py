"""Model libraries as TVM really makes them: the same bytes, looked into, held against a package."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgekiln.home import project
from tests.builds.kit import call
from tests.builds.qnnstages import Ran, Stages
from tests.builds.tvmlibs import ARM, SHAPE_FUNCTIONS, make_libraries

pytestmark = pytest.mark.slow

SCRIPTS = project() / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "mlc")]

import library  # noqa: E402
import libtar  # noqa: E402
import targets  # noqa: E402

LIBRARIES = (
    f"qwen2_q4f16_1.tar:qwen2_q4f16_1_:opencl:{ARM}",
    f"llama_q4f16_1.tar:llama_q4f16_1_:opencl:{ARM}",
    "desktop.tar:desktop_q4f16_1_:opencl:x86_64-linux-gnu",
    f"processor.tar:processor_q0f32_:llvm:{ARM}",
    f"nameless.tar::opencl:{ARM}",
)


@pytest.fixture(scope="module")
def made(tvm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries for a phone and not, packed as TVM packs them."""
    return make_libraries(tvm_python, tmp_path_factory.mktemp("libraries"), *LIBRARIES)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(place=tmp_path, folder="mlc")


def alone(library: Path, place: Path, name: str = "") -> Path:
    """A folder with one library, as a stage's output is."""
    place.mkdir(parents=True)
    shutil.copyfile(library, place / (name or library.name))
    return place


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_two_runs_give_the_same_bytes(tvm_python: Path, made: Path, tmp_path: Path) -> None:
    again = make_libraries(tvm_python, tmp_path / "again", LIBRARIES[0])
    first, second = (
        alone(f / "qwen2_q4f16_1.tar", tmp_path / f.name[:5] / "x") for f in (made, again)
    )
    one, other = first / "qwen2_q4f16_1.tar", second / "qwen2_q4f16_1.tar"
    assert digest(one) != digest(other), "TVM's own archives carry the time of day"
    for file in (one, other):
        libtar.normalise(file)
    assert digest(one) == digest(other)
    with tarfile.open(one) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == ["lib0.o", "qwen2_q4f16_1_devc.o"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {
        (315532800, 0, 0, "", 0o644)
    }


def test_shape_functions_are_written_in_one_order(tvm_python: Path) -> None:
    """TVM itself lists their statements by hashes of addresses: another order on every run."""
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": f"{SCRIPTS}:{SCRIPTS / 'mlc'}"}
    done = call([str(tvm_python), "-s", "-c", SHAPE_FUNCTIONS], env)
    assert done.stdout.splitlines() == [
        "[[1, 2, 3, 4]]",
        "[4, 3, 2, 1] [1, 2, 3, 4]",
        "[5, 4]",
    ], done.stderr[-2000:]


def test_tvm_reads_what_was_packed_anew(tvm_python: Path, made: Path, tmp_path: Path) -> None:
    place = alone(made / "qwen2_q4f16_1.tar", tmp_path / "library")
    libtar.normalise(place / "qwen2_q4f16_1.tar")
    code = (
        "import sys; from tvm.support import tar, utils; t = utils.tempdir();"
        "f = tar.normalize_file_list_by_unpacking_tars(t, [sys.argv[1]]); print(len(f))"
    )
    done = call([str(tvm_python), "-s", "-c", code, str(place / "qwen2_q4f16_1.tar")], os.environ)
    assert done.stdout.strip() == "2", done.stderr


def test_a_library_is_what_it_was_to_be_called(made: Path, tmp_path: Path) -> None:
    place = alone(made / "qwen2_q4f16_1.tar", tmp_path / "library")
    android = targets.TARGETS["android"]
    told = library.finish(place, "qwen2_q4f16_1.tar", "qwen2_q4f16_1_", android)
    assert told["model_lib"] == "qwen2_q4f16_1"
    assert told["symbol"] == "qwen2_q4f16_1___tvm_ffi__library_bin"
    assert [(o["format"], o["machine"]) for o in told["objects"]] == [("elf", "aarch64")] * 2
    with pytest.raises(RuntimeError, match=r"called qwen3_q4f16_1.*say qwen2_q4f16_1"):
        library.finish(place, "qwen2_q4f16_1.tar", "qwen3_q4f16_1_", android)


def look(stages: Stages, tvm_python: Path, made: Path, name: str, **params: Any) -> Ran:
    place = alone(made / name, stages.place / f"look-{stages.count}")
    return stages.run(tvm_python, "objects", {"library": place}, {}, **params)


def test_objects_are_looked_into(stages: Stages, tvm_python: Path, made: Path) -> None:
    ran = look(stages, tvm_python, made, "qwen2_q4f16_1.tar", system_lib_prefix="qwen2_q4f16_1_")
    assert ran.code == 0, ran.log
    assert "for aarch64, 2 kernels, model_lib qwen2_q4f16_1" in ran.notes()
    text = (ran.out / "objects" / "objects.json").read_text()
    assert "qwen2_q4f16_1_matmul_kernel" in text


@pytest.mark.parametrize(
    "case",
    [
        ("desktop.tar", "desktop_q4f16_1_", "is elf x86_64, and android takes elf aarch64"),
        ("qwen2_q4f16_1.tar", "qwen3_q4f16_1_", "the library is called qwen2_q4f16_1"),
        ("qwen2_q4f16_1.tar", "qwen2_q4f16_1", "no symbol qwen2_q4f16_1__tvm_ffi__library_bin"),
        ("processor.tar", "", "holds no OpenCL kernel"),
    ],
)
def test_a_library_that_no_phone_could_use(
    stages: Stages, tvm_python: Path, made: Path, case: tuple[str, str, str]
) -> None:
    name, prefix, said = case
    ran = look(stages, tvm_python, made, name, system_lib_prefix=prefix)
    assert ran.code == 64
    assert said in ran.error


def test_a_library_cut_short(stages: Stages, tvm_python: Path, made: Path) -> None:
    place = stages.place / "cut"
    place.mkdir()
    whole = (made / "qwen2_q4f16_1.tar").read_bytes()
    (place / "qwen2_q4f16_1.tar").write_bytes(whole[: len(whole) // 2])
    ran = stages.run(tvm_python, "objects", {"library": place}, {})
    assert ran.code == 64
    assert "damaged archive" in ran.error


def package(stages: Stages, tvm_python: Path, *models: tuple[str, Path | None]) -> Ran:
    """Run the package stage on libraries; the toolchain has no NDK, so it cannot go further."""
    inputs, entries = {}, []
    for number, (model_lib, file) in enumerate(models):
        place = stages.place / f"package-{stages.count}-{number}"
        for part in ("library", "config", "weights"):
            (place / part).mkdir(parents=True)
            inputs[f"{part}-{number}"] = place / part
        if file:
            shutil.copyfile(file, place / "library" / file.name)
        entry = {part: f"{part}-{number}" for part in ("library", "config", "weights")}
        entry |= {"model_id": f"model-{number}", "model_lib": model_lib, "bundle_weight": False}
        entry["file"] = file.name if file else "missing.tar"
        entries.append({**entry, "estimated_vram_bytes": 1 << 30, "hub": None})
    return stages.run(tvm_python, "mlcpackage", inputs, {}, models=entries)


def test_a_right_package_gets_as_far_as_the_tools(
    stages: Stages, tvm_python: Path, made: Path
) -> None:
    ran = package(
        stages,
        tvm_python,
        ("qwen2_q4f16_1", made / "qwen2_q4f16_1.tar"),
        ("llama-q4f16-1", made / "llama_q4f16_1.tar"),  # upstream turns - into _
    )
    assert ran.code == 1
    assert "ANDROID_NDK (not set) is no NDK" in ran.error


def test_wrong_packages_are_refused_before_any_tool(
    stages: Stages, tvm_python: Path, made: Path
) -> None:
    qwen, llama = made / "qwen2_q4f16_1.tar", made / "llama_q4f16_1.tar"
    cases: list[tuple[str, tuple[tuple[str, Path | None], ...]]] = [
        ("the library is called qwen2_q4f16_1", (("qwen2_q4f16_1_", qwen),)),
        ("the library is called qwen2_q4f16_1", (("deepseek_r1_qwen1p5b_q4f16_1", qwen),)),
        ("the library missing.tar of qwen2_q4f16_1 is not there", (("qwen2_q4f16_1", None),)),
        (
            "two models of the package have the model_lib qwen2_q4f16_1",
            (("qwen2_q4f16_1", qwen), ("qwen2_q4f16_1", llama)),
        ),
        ("is elf x86_64, and android takes", (("desktop_q4f16_1", made / "desktop.tar"),)),
        ("the library is called nothing", (("nameless", made / "nameless.tar"),)),
    ]
    for said, models in cases:
        ran = package(stages, tvm_python, *models)
        assert ran.code == 64, (said, ran.log)
        assert said in ran.error
