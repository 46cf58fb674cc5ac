"""Safetensors files: their headers read and checked, and a writer that holds one tensor at a time.

A file is eight bytes (the header's length, little-endian), the header as JSON, then the data.
The header says where each tensor lies, so a file cut short, or with bytes to spare, is found
without reading a single weight: a header costs about a millisecond however large the model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import ModelError

# Bits an element takes, by the name the format gives its type.
BITS: Mapping[str, int] = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64},
}
# The format's own bound; a larger number means that these eight bytes are not a length.
LARGEST_HEADER = 100_000_000
ALIGNMENT = 8
AGAIN = "get the file again: it was cut short, or is not a safetensors file"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One entry of a header: bytes [begin, end) of the data hold `shape` elements of `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a whole safetensors file; ModelError where anything is amiss."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(path, file.read(8), size)
        entries = _parse(path, file.read(length))
    tensors = {name: _tensor(path, name, entry) for name, entry in entries.items()}
    _check_cover(path, sorted(tensors.values(), key=lambda t: (t.begin, t.end)), size - 8 - length)
    return tensors


def _header_length(path: Path, start: bytes, size: int) -> int:
    """The header's length, when the file can hold one that long."""
    length: int = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
    if length > LARGEST_HEADER:
        raise ModelError(
            f"{path} is not a safetensors file",
            why="its first eight bytes are not the length of a header",
            remedy=AGAIN,
        )
    if 8 + length > size:
        raise ModelError(
            f"{path} is cut short", why=f"{size} bytes end inside its header", remedy=AGAIN
        )
    return length


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The header's entries, without the free text some writers add as __metadata__."""
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise ModelError(
            f"{path} is damaged", why=f"its header is not JSON: {error}", remedy=AGAIN
        ) from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} is damaged", why="its header is not a mapping", remedy=AGAIN)
    header.pop("__metadata__", None)
    return header


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    """One entry, when its type, shape and place fit each other."""
    try:
        begin, end = (int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(side) for side in entry["shape"])
        tensor = Tensor(name=name, dtype=str(entry["dtype"]), shape=shape, begin=begin, end=end)
        bits = BITS[tensor.dtype] * tensor.elements
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged", why=f"its entry for {name} cannot be read", remedy=AGAIN
        ) from error
    if min((*shape, begin, end), default=0) < 0 or (end - begin) * 8 != bits:
        raise ModelError(
            f"{path} is damaged",
            why=f"{name} is {tensor.dtype} {list(shape)} but has {end - begin} bytes",
            remedy=AGAIN,
        )
    return tensor


def _check_cover(path: Path, tensors: Sequence[Tensor], data: int) -> None:
    """The tensors must lie end to end and fill exactly the `data` bytes after the header."""
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            raise ModelError(
                f"{path} is damaged",
                why=f"{tensor.name} begins at byte {tensor.begin}, expected {at}",
                remedy=AGAIN,
            )
        at = tensor.end
    if at != data:
        word = "is cut short" if data < at else "is too long"
        raise ModelError(
            f"{path} {word}", why=f"its header tells of {at} bytes, {data} are there", remedy=AGAIN
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A tensor that will be written: its bytes are made when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], bytes]

    @property
    def size(self) -> int:
        """Bytes its data will have."""
        return BITS[self.dtype] * math.prod(self.shape) // 8


def write(path: Path, tensors: Iterable[Plan], told: Callable[[int], None]) -> None:
    """Write a safetensors file; `told` hears how many bytes of data are done.

    Only one tensor is in memory at a time. Equal tensors give equal bytes on every run.
    """
    plans = list(tensors)
    header = _header(plans)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        done = 0
        for plan in plans:
            done += file.write(plan.data())
            told(done)
    read_header(path)


def _header(plans: Sequence[Plan]) -> bytes:
    """The header as JSON, padded with blanks so that the data begin at a multiple of eight."""
    # transformers before 4.4x refuses a file that does not say which framework wrote it.
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for plan in plans:
        end = at + plan.size
        entries[plan.name] = {"dtype": plan.dtype, "shape": plan.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)
