"""Android's binary XML, as far as an app's manifest needs it.

Format: AOSP, frameworks/base/libs/androidfw/include/androidfw/ResourceTypes.h. A file is a chunk
(type, size of its head, size of all) that holds chunks: a pool of strings, a map of resource
numbers, and the start and end of each element.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

_XML, _STRINGS, _MAP, _START = 0x0003, 0x0001, 0x0180, 0x0102
_UTF8 = 1 << 8
_NONE = 0xFFFFFFFF
# Res_value's types.
_STRING, _INT_DEC, _INT_HEX, _BOOLEAN = 0x03, 0x10, 0x11, 0x12
# Attributes of the android: name space, which tools may strip of their names: by R.attr's numbers.
_KNOWN = {
    0x01010003: "name",
    0x0101000F: "debuggable",
    0x0101020C: "minSdkVersion",
    0x0101021B: "versionCode",
    0x0101021C: "versionName",
    0x01010270: "targetSdkVersion",
    0x01010272: "testOnly",
    0x010104EA: "extractNativeLibs",
}

Value = str | int | bool | None


@dataclass(kw_only=True)
class Element:
    """An element's name, its attributes by name, and how deep it stands."""

    name: str
    attributes: dict[str, Value] = field(default_factory=dict)
    depth: int = 0


def is_axml(data: bytes) -> bool:
    """Whether bytes begin as binary XML does."""
    return len(data) >= 8 and struct.unpack_from("<HH", data) == (_XML, 8)


def elements(data: bytes) -> list[Element]:
    """Every element in its order. Raises ValueError for what does not hold together."""
    try:
        if not is_axml(data):
            raise ValueError("it does not begin as binary XML")
        return list(_elements(data))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"binary XML that is cut short ({error})") from error


def _elements(data: bytes) -> Iterator[Element]:
    strings: list[str] = []
    numbers: list[int] = []
    depth = 0
    for kind, at, size in _chunks(data):
        if kind == _STRINGS:
            strings = _pool(data[at : at + size])
        elif kind == _MAP:
            numbers = list(struct.unpack_from(f"<{(size - 8) // 4}I", data, at + 8))
        elif kind == _START:
            yield _element(data, at, strings, numbers, depth)
            depth += 1
        elif kind == _START + 1:
            depth -= 1


def _chunks(data: bytes) -> Iterator[tuple[int, int, int]]:
    at, end = 8, struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise ValueError(f"it should have {end} bytes and has {len(data)}")
    while at + 8 <= end:
        kind, _, size = struct.unpack_from("<HHI", data, at)
        if size < 8 or at + size > end:
            raise ValueError(f"the chunk at byte {at} has no proper size")
        yield kind, at, size
        at += size


def _pool(chunk: bytes) -> list[str]:
    _, head, _, count, _, flags, begin, _ = struct.unpack_from("<HHIIIIII", chunk)
    if count > len(chunk) // 4:
        raise ValueError("a pool of more strings than it has bytes")
    offsets = struct.unpack_from(f"<{count}I", chunk, head)
    read = _utf8 if flags & _UTF8 else _utf16
    return [read(chunk, begin + offset) for offset in offsets]


def _utf8(chunk: bytes, at: int) -> str:
    """Two lengths, in characters and in bytes, of one or two bytes each; then the bytes."""
    at += 2 if chunk[at] & 0x80 else 1
    length = chunk[at]
    if length & 0x80:
        length = (length & 0x7F) << 8 | chunk[at + 1]
        at += 1
    return chunk[at + 1 : at + 1 + length].decode("utf-8", "replace")


def _utf16(chunk: bytes, at: int) -> str:
    length = struct.unpack_from("<H", chunk, at)[0]
    if length & 0x8000:
        length = (length & 0x7FFF) << 16 | struct.unpack_from("<H", chunk, at + 2)[0]
        at += 2
    return chunk[at + 2 : at + 2 + 2 * length].decode("utf-16-le", "replace")


def _element(data: bytes, at: int, strings: list[str], numbers: list[int], depth: int) -> Element:
    head = struct.unpack_from("<H", data, at + 2)[0]
    body = at + head
    _, name, start, size, count = struct.unpack_from("<IIHHH", data, body)
    found = Element(name=strings[name], depth=depth)
    for n in range(count):
        place = body + start + n * size
        _, key, raw, _, _, kind, value = struct.unpack_from("<IIIHBBI", data, place)
        number = numbers[key] if key < len(numbers) else 0
        word = _KNOWN.get(number) or strings[key]
        found.attributes[word] = _value(kind, value, raw, strings)
    return found


def _value(kind: int, value: int, raw: int, strings: list[str]) -> Value:
    if kind == _STRING:
        return strings[value]
    if kind == _BOOLEAN:
        return value != 0
    if kind in (_INT_DEC, _INT_HEX):
        return value - (1 << 32) if value >> 31 else value
    # A reference into the app's resources: what it stands for is elsewhere.
    return strings[raw] if raw != _NONE else None
