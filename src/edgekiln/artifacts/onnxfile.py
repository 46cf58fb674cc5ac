"""ONNX models, read off protobuf's wire format: no weights are loaded, no toolchain is needed.

Field numbers are those of onnx.proto3 (ModelProto, GraphProto, NodeProto, TensorProto).
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekiln import units
from edgekiln.artifacts import Facts, damaged
from edgekiln.artifacts.tensors import alike

# ir_version first, then what writers put next: producer's name, opset, graph, domain, …
_BEGIN = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42\x72]", re.DOTALL)
_TYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
    **{16: "bfloat16", 17: "float8e4m3fn", 19: "float8e5m2", 21: "uint4", 22: "int4"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Field = tuple[int, int, int, int]


def is_onnx(start: bytes) -> bool:
    """Whether a file that begins so is an ONNX model."""
    return bool(_BEGIN.match(start))


def read(path: Path) -> Facts:
    """A model's graph: operators, inputs, outputs, parameters, and the files beside it."""
    try:
        with path.open("rb") as file, _map(file.fileno()) as data:
            facts = _Model(data).facts(path.parent)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise damaged(path, "ONNX model", error) from error
    return Facts(kind="onnx", facts=facts, rows=tuple(_rows(facts)))


def _map(number: int) -> mmap.mmap:
    return mmap.mmap(number, 0, access=mmap.ACCESS_READ)


class _Model:
    """A file's bytes and a walk over its messages; places are offsets."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data

    def facts(self, folder: Path) -> dict[str, Any]:
        ir, producer, opsets, graph = 0, "", {}, None
        for number, _, begin, end in self._fields(0, len(self._data)):
            if number == 1:
                ir = begin
            elif number == 2:
                producer = self._text(begin, end)
            elif number == 7:
                graph = (begin, end)
            elif number == 8:
                parts = {n: (b, e) for n, _, b, e in self._fields(begin, end)}
                domain = self._text(*parts[1]) if 1 in parts else ""
                opsets[domain] = parts[2][0] if 2 in parts else 0
        if graph is None:
            raise ValueError("it has no graph")
        head = {"ir_version": ir, "producer": producer, "opsets": opsets}
        return head | self._graph(*graph, folder)

    def _graph(self, begin: int, end: int, folder: Path) -> dict[str, Any]:
        nodes: Counter[str] = Counter()
        sides: dict[int, list[dict[str, Any]]] = {11: [], 12: []}
        outside: dict[str, int] = {}
        names, parameters = set(), 0
        for number, _, b, e in self._fields(begin, end):
            if number == 1:
                nodes[self._string(b, e, 4)] += 1
            elif number in sides:
                sides[number].append(self._value(b, e))
            elif number == 5:
                tensor = self._tensor(b, e, outside)
                names.add(tensor["name"])
                parameters += tensor["elements"]
        return {
            "nodes": dict(nodes.most_common()),
            # Writers before IR 4 list weights among the inputs.
            "inputs": [v for v in sides[11] if v["name"] not in names],
            "outputs": sides[12],
            "parameters": parameters,
            "external": [
                {"file": name, "bytes": size, "there": _there(folder / name, size)}
                for name, size in sorted(outside.items())
            ],
        }

    def _tensor(self, begin: int, end: int, outside: dict[str, int]) -> dict[str, Any]:
        elements, name, entry = 1, "", {}
        for number, kind, b, e in self._fields(begin, end):
            if number == 1:
                for dim in self._varints(b, e) if kind == _BYTES else [b]:
                    elements *= dim
            elif number == 8:
                name = self._text(b, e)
            elif number == 13:
                entry[self._string(b, e, 1)] = self._string(b, e, 2)
        if "location" in entry:
            last = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            outside[entry["location"]] = max(outside.get(entry["location"], 0), last)
        return {"name": name, "elements": elements}

    def _value(self, begin: int, end: int) -> dict[str, Any]:
        """A ValueInfoProto: name, element type, shape (a name where a size is open)."""
        dtype, shape = "", []
        for b, e in self._inside(begin, end, 2, 1):
            for number, _, b2, e2 in self._fields(b, e):
                if number == 1:
                    dtype = _TYPES.get(b2, str(b2))
                elif number == 2:
                    shape = [self._dim(*dim) for dim in self._inside(b2, e2, 1)]
        return {"name": self._string(begin, end, 1), "dtype": dtype, "shape": shape}

    def _dim(self, begin: int, end: int) -> int | str:
        for number, _, b, e in self._fields(begin, end):
            if number == 1:
                return b
            if number == 2:
                return self._text(b, e)
        return "?"

    def _inside(self, begin: int, end: int, *numbers: int) -> Iterator[tuple[int, int]]:
        """The messages at a path of field numbers."""
        if not numbers:
            yield begin, end
            return
        for number, kind, b, e in self._fields(begin, end):
            if number == numbers[0] and kind == _BYTES:
                yield from self._inside(b, e, *numbers[1:])

    def _string(self, begin: int, end: int, wanted: int) -> str:
        for number, kind, b, e in self._fields(begin, end):
            if number == wanted and kind == _BYTES:
                return self._text(b, e)
        return ""

    def _text(self, begin: int, end: int) -> str:
        return self._data[begin:end].decode("utf-8")

    def _fields(self, begin: int, end: int) -> Iterator[Field]:
        """Each field of a message: number, wire type, and its value or the bytes' two ends."""
        at = begin
        while at < end:
            tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield number, kind, value, 0
                continue
            if kind == _BYTES:
                length, at = self._varint(at, end)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"byte {at} is no field of a message")
            if at + length > end:
                raise ValueError(f"a field should end at byte {at + length}, its message at {end}")
            yield number, kind, at, at + length
            at += length

    def _varints(self, begin: int, end: int) -> Iterator[int]:
        at = begin
        while at < end:
            value, at = self._varint(at, end)
            yield value

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not byte & 0x80:
                return value, at
        raise ValueError(f"a number at byte {at} has no end")


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size >= size


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    opsets = ", ".join(f"{name or 'ai.onnx'} {v}" for name, v in facts["opsets"].items())
    yield "kind", f"ONNX, IR {facts['ir_version']}, opset {opsets}"
    if facts["producer"]:
        yield "made by", facts["producer"]
    yield "parameters", f"{facts['parameters']:,}"
    yield "nodes", ", ".join(f"{count} {name}" for name, count in facts["nodes"].items())
    for side in ("inputs", "outputs"):
        for name, dtype, shape, *_ in alike(facts[side]):
            yield side.removesuffix("s"), f"{name} {dtype} {shape}"
    for file in facts["external"]:
        state = "" if file["there"] else ": missing, or too short"
        yield "data", f"{file['file']} {units.size(file['bytes'])}{state}"
