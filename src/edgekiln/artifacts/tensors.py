"""Tensors in lines for people: those of every layer that differ in their number only share one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = tuple[str, str, str, str, str]


def alike(tensors: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Name, type, shape, scale and offset of tensors that have name, dtype and shape."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        shape = "x".join(str(n) for n in tensor["shape"])
        name = re.sub(r"\d+", "N", tensor["name"])
        groups.setdefault((name, tensor["dtype"], shape), []).append(tensor)
    for (name, dtype, shape), group in groups.items():
        shown = group[0]["name"] if len(group) == 1 else f"{name} ({len(group)} of them)"
        yield shown, dtype, shape, _range(group, "scale"), _range(group, "offset")


def _range(tensors: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [t[name] for t in tensors if t.get(name) is not None]
    if not values:
        return ""
    least, most = min(values), max(values)
    return f"{least:.6g}" if least == most else f"{least:.6g} to {most:.6g}"
