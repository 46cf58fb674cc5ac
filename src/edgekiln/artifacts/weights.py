"""Weights as they are passed around: safetensors and GGUF, their heads only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgekiln.artifacts import Facts, damaged
from edgekiln.errors import ModelError
from edgekiln.models import weights as safetensors

_GGUF = b"GGUF"


def is_gguf(start: bytes) -> bool:
    """Whether a file that begins so is GGUF."""
    return start.startswith(_GGUF)


def is_safetensors(start: bytes) -> bool:
    """Eight bytes of a length that can be, then a JSON mapping."""
    length = int.from_bytes(start[:8], "little")
    return 2 <= length <= safetensors.LARGEST_HEADER and start[8:9] == b"{"


def read_safetensors(path: Path) -> Facts:
    """A safetensors file's tensors, found whole."""
    try:
        tensors = safetensors.read_header(path)
    except ModelError as error:
        raise damaged(path, "safetensors file", error) from error
    types = Counter(t.dtype for t in tensors.values())
    elements = sum(t.elements for t in tensors.values())
    facts = {
        "parameters": elements,
        "types": dict(types),
        "tensors": {t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in tensors.values()},
    }
    return Facts(kind="safetensors", facts=facts, rows=_rows("safetensors", elements, types))


def read_gguf(path: Path) -> Facts:
    """A GGUF file's architecture and tensors."""
    try:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        tensors = {
            t.name: {"dtype": t.tensor_type.name, "shape": [int(n) for n in reversed(t.shape)]}
            for t in reader.tensors
        }
        elements = sum(int(t.n_elements) for t in reader.tensors)
        about = {name: _field(reader, name) for name in _ABOUT}
    # Its reader maps the file and trusts its own offsets: a file cut short shows in many ways.
    except Exception as error:
        raise damaged(path, "GGUF file", error) from error
    types = Counter(str(t["dtype"]) for t in tensors.values())
    about = {name.removeprefix("general."): value for name, value in about.items() if value}
    facts = {"parameters": elements, "types": dict(types), "about": about, "tensors": tensors}
    rows = _rows("GGUF", elements, types)
    return Facts(kind="gguf", facts=facts, rows=(*rows, *((k, str(v)) for k, v in about.items())))


_ABOUT = ("general.architecture", "general.name", "general.size_label", "general.license")


def _field(reader: Any, name: str) -> str:
    found = reader.get_field(name)
    return str(found.contents()) if found else ""


def _rows(kind: str, elements: int, types: Counter[str]) -> tuple[tuple[str, str], ...]:
    listed = ", ".join(f"{count} {name}" for name, count in types.most_common())
    return (("kind", kind), ("parameters", f"{elements:,}"), ("tensors", listed or "none"))
