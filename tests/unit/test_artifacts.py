"""What a file is, by its content: real files, whole and cut short."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekiln.artifacts import Artifact, look
from edgekiln.artifacts.elf import is_elf_for
from edgekiln.errors import AccessError, ArtifactError
from edgekiln.models import weights
from edgekiln.models.weights import Plan
from tests.unit.kit import Heard, write_json

# A function that calls another, the note Android's start files carry, and TVM's symbol.
ASSEMBLER = """
    .text
    .global answer
    .type answer, %function
answer:
    bl puts
    ret
    .section .note.android.ident, "a", %note
    .balign 4
    .4byte 8, 132, 1
    .asciz "Android"
    .4byte 35
    .asciz "r27c"
    .zero 59
    .asciz "12479018"
    .zero 55
    .data
    .global tiny_q4f16_1__tvm_ffi__library_bin
tiny_q4f16_1__tvm_ffi__library_bin:
    .8byte 1
"""


def seen(path: Path) -> Artifact:
    return look(path, Heard())


def facts(path: Path) -> dict[str, Any]:
    return seen(path).value()


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an object for arm64, assembled here."""
    if shutil.which("aarch64-linux-gnu-as") is None:
        pytest.skip("no assembler for arm64 (Debian: apt install binutils-aarch64-linux-gnu)")
    folder = tmp_path_factory.mktemp("arm")
    (folder / "a.s").write_text(ASSEMBLER)
    tool("as", "-o", folder / "a.o", folder / "a.s")
    return folder


def tool(name: str, *words: str | Path) -> None:
    command = [f"aarch64-linux-gnu-{name}", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def link(arm: Path, page: int) -> Path:
    """A library for arm64 whose segments are aligned to a page size."""
    out = arm / f"libtiny-{page}.so"
    tool(
        "ld",
        *("-shared", "-z", f"max-page-size={page}", "-z", f"common-page-size={page}"),
        *("-soname", "libtiny.so", "--build-id=sha1", "-o", out, arm / "a.o"),
    )
    return out


@pytest.mark.parametrize(("page", "fits"), [(4096, False), (16384, True), (65536, True)])
def test_a_library_says_whether_it_fits_16k_pages(arm: Path, page: int, fits: bool) -> None:
    found = facts(link(arm, page))
    assert found["pages_16k"] is fits
    assert found["load_align"] == [page]
    assert found["abi"] == "arm64-v8a (AArch64)"
    assert (found["soname"], found["type"]) == ("libtiny.so", "shared library")
    assert len(found["build_id"]) == 40


def test_androids_note_tells_api_and_ndk(arm: Path) -> None:
    found = facts(link(arm, 16384))
    assert (found["android_api"], found["ndk"]) == (35, "r27c (12479018)")
    text = seen(link(arm, 16384)).text()
    assert "API 35" in text and "fits 16 KB pages" in text


def test_an_object_has_no_pages_yet(arm: Path) -> None:
    found = facts(arm / "a.o")
    assert (found["type"], found["pages_16k"]) == ("object file", None)


@pytest.mark.skipif(sys.platform != "linux", reason="this machine has no ELF files")
def test_an_elf_of_this_machine() -> None:
    found = facts(Path("/proc/self/exe").resolve())
    assert found["kind"] == "elf"
    assert found["bits"] == struct.calcsize("P") * 8
    assert any(name.startswith("libc.so") for name in found["needed"])


def test_machines_are_told_apart(arm: Path, tmp_path: Path) -> None:
    assert is_elf_for(arm / "a.o", "EM_AARCH64")
    assert not is_elf_for(arm / "a.o", "EM_QDSP6")
    (tmp_path / "text.so").write_text("words")
    assert not is_elf_for(tmp_path / "text.so", "EM_AARCH64")


def test_elf_files_cut_anywhere_are_damaged(arm: Path, tmp_path: Path) -> None:
    data = link(arm, 4096).read_bytes()
    for length in (5, 20, 63, 64, 500, 4096, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.so"
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match="damaged ELF"):
            look(path, Heard())


def test_a_qnn_library_tells_its_build(arm: Path, tmp_path: Path) -> None:
    library = tmp_path / "libQnnHtp.so"
    library.write_bytes(link(arm, 16384).read_bytes() + b"\0v2.51.0.260929181845\0")
    assert facts(library)["qnn_build"] == "v2.51.0.260929181845"


def test_a_static_library_names_members_and_tvms_prefix(arm: Path) -> None:
    long = arm / "an_object_with_a_name_of_more_than_sixteen_letters.o"
    shutil.copy(arm / "a.o", long)
    library = arm / "libmodel_android.a"
    library.unlink(missing_ok=True)
    tool("ar", "rcs", library, arm / "a.o", long)
    found = facts(library)
    assert [m["name"] for m in found["members"]] == ["a.o", long.name]
    assert found["abis"] == ["arm64-v8a (AArch64)"]
    assert found["tvm_prefixes"] == ["tiny_q4f16_1"]
    data = library.read_bytes()
    library.write_bytes(data[: len(data) - 100])
    with pytest.raises(ArtifactError, match="damaged static library"):
        look(library, Heard())


def test_mlcs_tar_of_objects(arm: Path) -> None:
    path = arm / "model.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(arm / "a.o", "lib0.o")
        archive.add(arm / "a.s", "words.txt")
    found = facts(path)
    assert [m.get("abi") for m in found["members"]] == ["arm64-v8a (AArch64)", None]
    assert found["tvm_symbols"] == ["tiny_q4f16_1__tvm_ffi__library_bin"]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ArtifactError, match="damaged tar"):
        look(path, Heard())


def test_a_safetensors_file_and_its_half(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    plan = [
        Plan(name="a", dtype="F16", shape=(2, 3), data=lambda: bytes(12)),
        Plan(name="b", dtype="I8", shape=(5,), data=lambda: bytes(5)),
    ]
    weights.write(path, plan, lambda _: None)
    found = facts(path)
    assert (found["parameters"], found["types"]) == (11, {"F16": 1, "I8": 1})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="damaged safetensors") as caught:
        look(path, Heard())
    assert "17 bytes" in caught.value.why


def test_a_gguf_file_and_its_half(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = facts(path)
    assert found["about"] == {"architecture": "llama", "name": "tiny"}
    assert found["tensors"] == {"token_embd.weight": {"dtype": "F32", "shape": [4, 8]}}
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="damaged GGUF"):
        look(cut, Heard())


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protobuf message: bytes, or a number."""

    def varint(n: int) -> bytes:
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_model() -> bytes:
    """A MatMul of an input [1, N, 4] with a weight [4, 8] that lies in model.data."""

    def entry(key: bytes, value: bytes) -> bytes:
        return field(13, field(1, key) + field(2, value))

    dims = field(1, field(1, 1)) + field(1, field(2, b"N")) + field(1, field(1, 4))
    tensor = field(1, field(1, 1) + field(2, dims))
    weight = field(1, 4) + field(1, 8) + field(2, 1) + field(8, b"w")
    weight += entry(b"location", b"model.data") + entry(b"offset", b"64")
    weight += entry(b"length", b"128") + field(14, 1)
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"MatMul")
    graph = field(1, node) + field(5, weight) + field(11, field(1, b"x") + field(2, tensor))
    graph += field(12, field(1, b"y") + field(2, tensor))
    opset = field(8, field(1, b"") + field(2, 23))
    return field(1, 11) + field(2, b"tests") + field(7, graph) + opset


def test_an_onnx_model_is_read_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model())
    found = facts(path)
    assert (found["ir_version"], found["opsets"], found["producer"]) == (11, {"": 23}, "tests")
    assert (found["nodes"], found["parameters"]) == ({"MatMul": 1}, 32)
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, "N", 4]}]
    assert found["external"] == [{"file": "model.data", "bytes": 192, "there": False}]
    assert "missing" in seen(path).text()
    (tmp_path / "model.data").write_bytes(bytes(192))
    assert facts(path)["external"][0]["there"]


def test_an_onnx_model_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    data = onnx_model()
    # The graph comes before the opset: cut behind it, the model is another, but whole.
    for length in (3, 20, 60, data.index(b"MatMul") + 3):
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match="damaged ONNX"):
            look(path, Heard())


GENIE = {
    "dialog": {
        "type": "basic",
        "context": {"size": 512, "n-vocab": 49152, "bos-token": -1, "eos-token": [2]},
        "sampler": {"temp": 0.8},
        "tokenizer": {"path": "tokenizer.json"},
        "engine": {
            "backend": {"type": "QnnHtp", "extensions": "htp.json"},
            "model": {
                "binary": {"ctx-bins": ["models/a.bin"]},
                "positional-encoding": {"type": "rope", "rope-dim": 32, "rope-theta": 100000},
            },
        },
    }
}


def test_genies_configuration_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    path = write_json(tmp_path / "genie_config.json", GENIE)
    found = facts(path)
    assert found["context"] == 512
    assert found["files"] == {"models/a.bin": False, "tokenizer.json": True, "htp.json": False}
    assert facts(tmp_path)["kind"] == "genie_config", "a folder with one is known by it"


def test_backend_extensions_name_the_chip_by_either_key(tmp_path: Path) -> None:
    for key in ("soc_model", "soc_id"):
        value = {"devices": [{key: 69, "dsp_arch": "v79"}], "context": {}}
        found = facts(write_json(tmp_path / "e.json", value))
        assert "8 Elite" in found["devices"][0]["chip"]


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (
            {
                "activation_encodings": {"x": [{"bitwidth": 16, "dtype": "int"}]},
                "param_encodings": {"w": [{"bitwidth": 4, "dtype": "int"}] * 3},
            },
            ({"int16": 1}, {"int4 per channel": 1}),
        ),
        (
            {
                "version": "1.0.0",
                "activation_encodings": [
                    {"name": "x", "bw": 16, "dtype": "INT", "enc_type": "PER_TENSOR"},
                    {"name": "k", "bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR"},
                ],
                "param_encodings": [
                    {"name": "w", "bw": 4, "dtype": "INT", "enc_type": "PER_BLOCK"}
                ],
            },
            ({"int16": 1, "int8": 1}, {"int4 per block": 1}),
        ),
    ],
)
def test_encodings_are_counted_by_bits(
    tmp_path: Path, value: dict[str, Any], counts: tuple[dict[str, int], dict[str, int]]
) -> None:
    found = facts(write_json(tmp_path / "model.encodings", value))
    assert (found["activations"], found["parameters"]) == counts


def test_encodings_of_version_2(tmp_path: Path) -> None:
    entries = [
        {"name": "w", "output_dtype": "int4", "y_scale": [0.1, 0.2]},
        {"name": "x", "output_dtype": "uint16", "y_scale": 0.1},
    ]
    value = {"version": "2.0.0", "encodings": entries}
    found = facts(write_json(tmp_path / "e.json", value))
    assert found["tensors"] == {"int4 per channel": 1, "uint16": 1}


def test_mlcs_weights_and_a_shard_that_is_missing(tmp_path: Path) -> None:
    chat = {"model_type": "llama", "quantization": "q4f16_1", "model_config": {}}
    write_json(tmp_path / "mlc-chat-config.json", {**chat, "context_window_size": 4096})
    shard = {"dataPath": "params_shard_0.bin", "nbytes": 10, "records": [{}, {}]}
    cache = {"metadata": {"ParamSize": 2, "BitsPerParam": 4.5}, "records": [shard]}
    write_json(tmp_path / "tensor-cache.json", cache)
    found = facts(tmp_path)
    assert found["kind"] == "mlc_model"
    assert found["weights"]["broken"] == ["params_shard_0.bin"]
    (tmp_path / "params_shard_0.bin").write_bytes(bytes(10))
    found = facts(tmp_path)
    assert found["weights"]["broken"] == []
    assert (found["weights"]["tensors"], found["weights"]["bytes"]) == (2, 10)


def test_a_bundle_and_whether_it_is_whole(tmp_path: Path) -> None:
    data = b"weights"
    (tmp_path / "llm.mnn.weight").write_bytes(data)
    file = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        **{"edgekiln": "0.1.0", "backend": "mnn", "model": {"name": "tiny", "source": "local"}},
        **{"files": {"llm.mnn.weight": file}, "shown": ["a figure: 1"]},
    }
    write_json(tmp_path / "manifest.json", manifest)
    assert facts(tmp_path)["broken"] == {}
    assert "a figure: 1" in seen(tmp_path).text()
    (tmp_path / "llm.mnn.weight").write_bytes(b"changed")
    assert facts(tmp_path)["broken"] == {"llm.mnn.weight": "not as it was built"}
    (tmp_path / "llm.mnn.weight").unlink()
    assert facts(tmp_path)["broken"] == {"llm.mnn.weight": "missing"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"just words, no more", "first bytes"),
        (os.urandom(64).replace(b"{", b"x"), ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS"),
        (b'{"some": "mapping"}', "keys some"),
        (b"[1, 2]", "a list"),
        (b'{"cut": [1, 2', "damaged JSON"),
        (b'{"dialog": {"context": 5}}', "damaged JSON"),
        (b'{"activation_encodings": 3, "param_encodings": 3}', "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
    ],
)
def test_what_is_unknown_or_damaged_is_said(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        look(path, Heard())
    assert why in f"{caught.value.what} {caught.value.why}"


def test_a_folder_of_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match="no kind") as caught:
        look(tmp_path, Heard())
    assert "notes.txt" in caught.value.why
    with pytest.raises(AccessError):
        look(tmp_path / "none", Heard())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError) as caught:
        look(tmp_path / "pipe", Heard())
    assert "pipe" in caught.value.why


def test_names_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(onnx_model())
    assert facts(path)["kind"] == "onnx"


def test_the_command_and_its_exit_code(tmp_path: Path) -> None:
    run: Callable[..., Any] = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "edgekiln", "inspect", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    write_json(tmp_path / "genie_config.json", GENIE)
    done = run(str(tmp_path / "genie_config.json"), "--json")
    assert json.loads(done.stdout)["value"]["kind"] == "genie_config"
    (tmp_path / "x").write_bytes(b"\x01\x02")
    done = run(str(tmp_path / "x"))
    assert (done.returncode, "no kind that edgekiln knows" in done.stderr) == (15, True)


def test_fuzzed_files_never_escape_as_faults(tmp_path: Path, arm: Path) -> None:
    """Every byte of the head changed in turn: an answer, or an error with words."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(arm / "a.o", "lib0.o")
    wholes = [link(arm, 4096).read_bytes(), onnx_model(), buffer.getvalue()]
    path = tmp_path / "fuzzed"
    for whole in wholes:
        for at in range(0, min(len(whole), 300), 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            try:
                look(path, Heard())
            except ArtifactError as error:
                assert error.what and error.remedy
