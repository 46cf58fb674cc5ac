"""Reading safetensors in blocks: every type, several files, and files that are not whole."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import checkpoint  # noqa: E402

from stagekit import BadInput  # noqa: E402

RANDOM = np.random.default_rng(5)


def stored(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2", "I8": "i1"}[dtype]).tobytes()


def write(file: Path, tensors: Mapping[str, tuple[NDArray[np.float32], str]]) -> Path:
    """A safetensors file, byte by byte as the format says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (values, dtype) in tensors.items():
        raw = stored(values, dtype)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def eighths(*shape: int) -> NDArray[np.float32]:
    """Numbers that every one of the types holds exactly."""
    return (RANDOM.integers(-100, 100, shape) / 8).astype(np.float32)


def test_every_float_type_is_read_exactly(tmp_path: Path) -> None:
    values = eighths(7, 5)
    write(tmp_path / checkpoint.SINGLE, {t: (values, t) for t in ("F32", "F16", "BF16")})
    read = checkpoint.Checkpoint(tmp_path)
    for name in ("F32", "F16", "BF16"):
        got = read.whole(name, (7, 5))
        assert got.dtype == np.float32
        assert np.array_equal(got, values), name


def test_blocks_follow_each_other_and_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, before = eighths(23, 4), eighths(3)
    write(tmp_path / checkpoint.SINGLE, {"b": (before, "F16"), "m": (values, "BF16")})
    monkeypatch.setattr(checkpoint, "BLOCK", 5 * 4 * 4)
    blocks = list(checkpoint.Checkpoint(tmp_path).rows("m", (23, 4)))
    assert [first for first, _ in blocks] == [0, 5, 10, 15, 20]
    assert [len(rows) for _, rows in blocks] == [5, 5, 5, 5, 3]
    assert np.array_equal(np.concatenate([rows for _, rows in blocks]), values)


def test_a_row_wider_than_a_block_is_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = eighths(3, 8)
    write(tmp_path / checkpoint.SINGLE, {"m": (values, "F32")})
    monkeypatch.setattr(checkpoint, "BLOCK", 4)
    blocks = list(checkpoint.Checkpoint(tmp_path).rows("m", (3, 8)))
    assert [len(rows) for _, rows in blocks] == [1, 1, 1]


def test_several_files_are_one_checkpoint(tmp_path: Path) -> None:
    a, b = eighths(2, 2), eighths(3)
    write(tmp_path / "model-1.safetensors", {"a": (a, "F32")})
    write(tmp_path / "model-2.safetensors", {"b": (b, "F16")})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / checkpoint.INDEX).write_text(json.dumps(index), encoding="utf-8")
    read = checkpoint.Checkpoint(tmp_path)
    assert np.array_equal(read.whole("a", (2, 2)), a)
    assert np.array_equal(read.whole("b", (3,)), b)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_names_its_tensor(
    tmp_path: Path, dtype: str, wrong: float
) -> None:
    values = eighths(9, 3)
    values[8, 1] = wrong
    write(tmp_path / checkpoint.SINGLE, {"good": (eighths(4), dtype), "bad": (values, dtype)})
    read = checkpoint.Checkpoint(tmp_path)
    read.whole("good", (4,))
    with pytest.raises(BadInput, match=r"tensor bad .*not finite"):
        read.whole("bad", (9, 3))


def test_what_is_not_there_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    write(tmp_path / checkpoint.SINGLE, {"a": (eighths(2, 3), "F32"), "i": (eighths(2), "I8")})
    read = checkpoint.Checkpoint(tmp_path)
    with pytest.raises(BadInput, match="no tensor b"):
        read.expect("b", (2, 3))
    with pytest.raises(BadInput, match=r"tensor a has shape \[2, 3\].*\[3, 2\]"):
        read.expect("a", (3, 2))
    with pytest.raises(BadInput, match="stored as I8"):
        read.expect("i", (2,))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither"):
        checkpoint.Checkpoint(tmp_path)


def test_a_file_that_the_index_names_and_nobody_has_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / checkpoint.INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(BadInput, match=r"model-1\.safetensors, which is not there"):
        checkpoint.Checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', "{}"])
def test_an_index_that_cannot_be_read_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / checkpoint.INDEX).write_text(index, encoding="utf-8")
    with pytest.raises(BadInput, match="index"):
        checkpoint.Checkpoint(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / checkpoint.SINGLE, {"a": (eighths(64, 8), "F32")})
    whole = file.read_bytes()
    for length in (0, 7, 20, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="no whole safetensors file"):
            checkpoint.Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"[1, 2]",
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}',
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes) -> None:
    data = struct.pack("<Q", len(header)) + header + bytes(8)
    (tmp_path / checkpoint.SINGLE).write_bytes(data)
    with pytest.raises(BadInput, match="no whole safetensors file"):
        checkpoint.Checkpoint(tmp_path)
