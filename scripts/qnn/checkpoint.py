"""A safetensors checkpoint as it lies on disk: one file or several with an index.

Tensors are read in blocks of rows with plain reads into one buffer. A memory map would be
shorter, but its pages count as this process's memory, and a file is larger than what a stage is
allowed. Format: 8 bytes of header length (little endian), the header as JSON
{name: {"dtype", "shape", "data_offsets"}}, then the data; offsets count from the header's end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagekit import BadInput

Floats = NDArray[np.float32]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# bfloat16 is the upper half of a float32; numpy has no name for it.
_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
# Float32 bytes of one block: large enough that a read's own cost vanishes.
BLOCK = 16 << 20
# No published header is near this; a longer one is not a safetensors file.
_LONGEST_HEADER = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where one tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors of a model folder by name."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, Stored] = {}
        for file in _files(folder):
            self.tensors |= _header(file)

    def expect(self, name: str, shape: tuple[int, ...]) -> Stored:
        """The tensor's place; BadInput if it is missing or of another shape or type."""
        stored = self.tensors.get(name)
        if stored is None:
            raise BadInput(
                f"the weights hold no tensor {name}",
                remedy="fetch the model again; check that config.json belongs to these weights",
            )
        if stored.shape != shape:
            raise BadInput(
                f"tensor {name} has shape {list(stored.shape)}, "
                f"but config.json asks for {list(shape)}",
                remedy="take config.json and the weights from one release of the model",
            )
        if stored.dtype not in _STORED:
            raise BadInput(
                f"tensor {name} is stored as {stored.dtype}; read are {', '.join(_STORED)}",
                remedy="give the model's float weights",
            )
        return stored

    def rows(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[int, Floats]]:
        """(first row, rows) of a tensor in float32, in order, at most BLOCK bytes at a time.

        A block is the caller's only until the next one. BadInput at a number that is not finite.
        """
        stored = self.expect(name, shape)
        dtype = _STORED[stored.dtype]
        width = math.prod(shape[1:])
        step = max(1, BLOCK // (4 * width))
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            for first in range(0, shape[0], step):
                count = min(step, shape[0] - first)
                raw = np.empty(count * width, dtype)
                _fill(file, raw, name)
                yield first, _finite(_widen(raw), name).reshape(count, *shape[1:])

    def whole(self, name: str, shape: tuple[int, ...]) -> Floats:
        """A small tensor at once, in float32."""
        return np.concatenate([rows for _, rows in self.rows(name, shape)])


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise BadInput(
            f"{folder.name} holds neither {SINGLE} nor {INDEX}",
            remedy="give a model directory with safetensors weights",
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{INDEX} cannot be read: {error}", remedy="fetch the model again") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadInput(
            f"{INDEX} names {missing[0]}, which is not there", remedy="fetch the model again"
        )
    return [folder / name for name in names]


def _header(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise _broken(file, "it does not begin with a header")
        try:
            entries: dict[str, Any] = json.loads(opened.read(length))
            entries.pop("__metadata__", None)
            found = {name: _stored(file, 8 + length, entry) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(file, f"its header cannot be read ({error})") from None
    for name, stored in found.items():
        width = _STORED[stored.dtype].itemsize if stored.dtype in _STORED else 0
        if stored.offset + width * math.prod(stored.shape) > size:
            raise _broken(file, f"it ends before tensor {name} does")
    return found


def _stored(file: Path, base: int, entry: dict[str, Any]) -> Stored:
    first, last = entry["data_offsets"]
    shape, dtype = entry["shape"], str(entry["dtype"])
    numbers = [first, last, *shape]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a shape or an offset is no number")
    wide = _STORED[dtype].itemsize if dtype in _STORED else None
    if wide is not None and last - first != wide * math.prod(shape):
        raise ValueError("a tensor's length does not fit its shape")
    return Stored(file=file, dtype=dtype, shape=tuple(shape), offset=base + first)


def _broken(file: Path, why: str) -> BadInput:
    return BadInput(f"{file.name} is no whole safetensors file: {why}", remedy="fetch it again")


def _fill(file: Any, raw: NDArray[Any], name: str) -> None:
    view = raw.view(np.uint8).data
    while view:
        got = file.readinto(view)
        if not got:
            raise BadInput(f"the weights end inside tensor {name}", remedy="fetch the model again")
        view = view[got:]


def _widen(raw: NDArray[Any]) -> Floats:
    if raw.dtype.kind == "u":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)


def _finite(values: Floats, name: str) -> Floats:
    if not bool(np.isfinite(values).all()):
        raise BadInput(
            f"tensor {name} holds numbers that are not finite (NaN or infinite)",
            remedy="fetch the model again; if its makers publish it so, choose another",
        )
    return values
