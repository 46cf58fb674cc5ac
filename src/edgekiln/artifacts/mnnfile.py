"""MNN's model files: a FlatBuffer whose root is the table Net of MNN's schema/default/MNN.fbs.

The format has no magic. A file counts as MNN's when its root is a table that could be Net: a
list of operators, a list of tensors' names, each inside the file.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from edgekiln.artifacts import Facts, damaged

# Fields of Net by their number in the schema.
_EXTRA, _OPS, _OUTPUTS, _SOURCE, _TENSORS, _SUBGRAPHS, _UUID = 2, 3, 4, 6, 7, 10, 11
_MOST_FIELDS = 16
# Of ExtraInfo, which newer converters write there: buffer, name, version.
_VERSION = 2
_SOURCES = {1: "TensorFlow", 2: "TFLite", 3: "ONNX", 4: "torch"}


def is_mnn(start: bytes) -> bool:
    """Whether a file that begins so can be a FlatBuffer with a Net at its root."""
    try:
        buffer = _Buffer(start)
        fields = buffer.vtable(buffer.root())
    except (struct.error, ValueError):
        return False
    return _OPS < len(fields) <= _MOST_FIELDS and bool(fields[_OPS])


def read(path: Path) -> Facts:
    """A model's operators, tensors and the converter's version, as far as the file has it."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            facts = _facts(_Buffer(data))
    except (struct.error, ValueError, UnicodeDecodeError, IndexError) as error:
        raise damaged(path, "MNN model", error) from error
    weight = path.with_name(f"{path.name}.weight")
    rows = [("kind", f"MNN model, {facts['operators']} operators, {facts['tensors']} tensors")]
    named = (("version", "converter"), ("source", "converted from"), ("uuid", "uuid"))
    rows += [(word, facts[name]) for name, word in named if facts[name]]
    rows += [("outputs", ", ".join(facts["outputs"]))] if facts["outputs"] else []
    if weight.is_file():
        rows.append(("weights", f"{weight.name}, {weight.stat().st_size:,} bytes"))
    return Facts(kind="mnn", facts=facts, rows=tuple(rows))


def _facts(buffer: _Buffer) -> dict[str, Any]:
    root = buffer.root()
    # 0 stands for Caffe, and for a writer that did not say.
    source = buffer.byte(root, _SOURCE)
    extra = buffer.reference(root, _EXTRA)
    version = buffer.reference(extra, _VERSION) if extra else 0
    uuid = buffer.reference(root, _UUID)
    return {
        "operators": buffer.length(root, _OPS),
        "tensors": buffer.length(root, _TENSORS),
        "subgraphs": buffer.length(root, _SUBGRAPHS),
        "outputs": buffer.strings(root, _OUTPUTS),
        "source": _SOURCES.get(source, ""),
        "version": buffer.string(version) if version else "",
        "uuid": buffer.string(uuid) if uuid else "",
    }


class _Buffer:
    """A FlatBuffer: tables are offsets; all numbers are little-endian."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data

    def root(self) -> int:
        """The root table."""
        (root,) = struct.unpack_from("<I", self._data)
        if not 4 <= root <= len(self._data) - 4 or root > 1 << 16:
            raise ValueError("it has no root")
        return int(root)

    def vtable(self, table: int) -> tuple[int, ...]:
        """Where each field lies from the table's begin; 0 for one that is not there."""
        (back,) = struct.unpack_from("<i", self._data, table)
        at = table - back
        if at < 4 or at + 4 > len(self._data):
            raise ValueError(f"the table at byte {table} has no layout")
        size, inline = struct.unpack_from("<HH", self._data, at)
        if size < 4 or size % 2 or inline < 4:
            raise ValueError(f"the table at byte {table} has no layout")
        fields = struct.unpack_from(f"<{(size - 4) // 2}H", self._data, at + 4)
        if any(field >= inline for field in fields):
            raise ValueError(f"the table at byte {table} has a field outside of it")
        return fields

    def _field(self, table: int, number: int) -> int:
        fields = self.vtable(table)
        return table + fields[number] if number < len(fields) and fields[number] else 0

    def byte(self, table: int, number: int) -> int:
        """A field of one byte; 0 where it is not there."""
        at = self._field(table, number)
        return self._data[at] if at else 0

    def reference(self, table: int, number: int) -> int:
        """Where a field's string, vector or table lies; 0 where it is not there."""
        at = self._field(table, number)
        if not at:
            return 0
        target = at + int(struct.unpack_from("<I", self._data, at)[0])
        if target + 4 > len(self._data):
            raise ValueError(f"field {number} lies at byte {target} of {len(self._data)}")
        return target

    def length(self, table: int, number: int) -> int:
        """How many entries a vector has, each at least four bytes."""
        at = self.reference(table, number)
        if not at:
            return 0
        (count,) = struct.unpack_from("<I", self._data, at)
        if at + 4 + 4 * count > len(self._data):
            raise ValueError(f"field {number} has {count} entries, more than the file")
        return int(count)

    def strings(self, table: int, number: int) -> list[str]:
        """A vector of strings."""
        at, count = self.reference(table, number), self.length(table, number)
        places = [at + 4 + 4 * i for i in range(count)]
        return [self.string(p + struct.unpack_from("<I", self._data, p)[0]) for p in places]

    def string(self, at: int) -> str:
        """The string at an offset."""
        (count,) = struct.unpack_from("<I", self._data, at)
        if at + 4 + count > len(self._data):
            raise ValueError(f"a text at byte {at} is cut short")
        return self._data[at + 4 : at + 4 + count].decode("utf-8")
