"""2:4 sparsity in safetensors files: which tensors, which weights, and looking that it is so.

Of every four neighbours along a weight's input dimension two become zero: those with the lowest
score. The score is the weight's magnitude, or (Sun et al., "A Simple and Effective Pruning
Approach for Large Language Models", arXiv:2306.11695) its magnitude times the norm of what that
input carries: |W[o, i]| * ||x[i]||.

A file is changed where it lies, one tensor at a time: what is not pruned keeps its bytes, and
memory holds one tensor whatever the file's size.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stagekit import BadInput

if TYPE_CHECKING:
    from torch import Tensor

KEPT, GROUP = 2, 4
# model.layers.3.mlp.up_proj.weight, transformer.h.3.attn.c_attn.weight: the layer and what
# follows it name a weight in the file and in the loaded model alike, whatever stands before.
_IN_A_LAYER = re.compile(r"(?:^|\.)((?:layers|h)\.\d+\..+)\.weight$")
# Parts of a model that sees or hears, and what tells experts apart; not the language decoder.
_OTHERS = re.compile(r"visual|vision|audio|talker|experts|router|(^|\.)mtp\.")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Rows at a time: the order of a whole output layer's groups would take many times its size.
_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor of a safetensors file: `start` and `end` are bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def key(self) -> str | None:
        """What names a linear layer's weight in a decoder layer; None for other tensors."""
        found = _IN_A_LAYER.search(self.name)
        if found is None or len(self.shape) != 2 or _OTHERS.search(self.name):
            return None
        return found[1]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What pruning did to one tensor. `lost` is its share of the squared scores, 0 to 1."""

    key: str
    weights: int
    zeros: int
    lost: float


def entries(file: Path) -> list[Entry]:
    """The tensors of a file, in the order they lie in it. Raises BadInput for what is none."""
    with file.open("rb") as source:
        head = source.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= file.stat().st_size - 8:
            raise BadInput(f"{file.name} is no safetensors file", remedy="fetch the model again")
        try:
            header = json.loads(source.read(length))
        except ValueError as error:
            raise BadInput(f"{file.name} has a broken header", remedy="fetch it again") from error
    header.pop("__metadata__", None)
    found = [_entry(name, told, 8 + length) for name, told in header.items()]
    if max((e.end for e in found), default=0) > file.stat().st_size:
        raise BadInput(f"{file.name} ends too early", remedy="fetch the model again")
    return sorted(found, key=lambda e: e.start)


def _entry(name: str, told: Mapping[str, Any], begin: int) -> Entry:
    start, end = told["data_offsets"]
    shape = tuple(told["shape"])
    return Entry(name=name, dtype=told["dtype"], shape=shape, start=begin + start, end=begin + end)


def wanted(file: Path) -> list[Entry]:
    """The tensors of a file that are pruned. Raises BadInput for one that cannot be."""
    found = [e for e in entries(file) if e.key is not None]
    for entry in found:
        if entry.dtype not in _DTYPES:
            raise BadInput(
                f"{entry.name} is of type {entry.dtype}: its weights are packed already",
                remedy="give the model's float weights",
            )
        if entry.shape[1] % GROUP:
            raise BadInput(
                f"{entry.name} has {entry.shape[1]} inputs, which are no groups of {GROUP}",
                remedy="build this model without --sparsity",
            )
    return found


def prune_file(file: Path, norms: Mapping[str, Tensor] | None) -> Iterator[Pruned]:
    """Prune a file where it lies; `norms` are the inputs' by key, None for magnitude alone."""
    with file.open("r+b") as place:
        for entry in wanted(file):
            assert entry.key is not None
            weight = _read(place, entry)
            seen = None if norms is None else norms.get(entry.key)
            if norms is not None and seen is None:
                raise BadInput(
                    f"the calibration text reached no input of {entry.name}",
                    remedy="take --sparsity-method magnitude",
                )
            lost = prune(weight, seen)
            place.seek(entry.start)
            place.write(weight.contiguous().view(_bytes_type()).numpy().tobytes())
            zeros = int((weight == 0).sum())
            yield Pruned(key=entry.key, weights=weight.numel(), zeros=zeros, lost=lost)


def check_file(file: Path) -> int:
    """Read a pruned file again; how many groups it holds. Raises where one has three or more."""
    groups = 0
    with file.open("rb") as place:
        for entry in wanted(file):
            kept = (_read(place, entry) != 0).view(-1, GROUP).sum(dim=1)
            if int(kept.max()) > KEPT:
                raise RuntimeError(f"{entry.name} has groups of {GROUP} with more than {KEPT} left")
            groups += kept.numel()
    return groups


def prune(weight: Tensor, norms: Tensor | None) -> float:
    """Make `weight` (outputs, inputs) 2:4 sparse in place; the share of squared scores lost."""
    lost = total = 0.0
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS]
        scores = rows.float().abs()
        if norms is not None:
            scores *= norms
        gone = lowest(scores)
        squares = scores.double().square()
        total += float(squares.sum())
        lost += float(squares[gone].sum())
        rows.masked_fill_(gone, 0)
    return lost / total if total else 0.0


def lowest(scores: Tensor) -> Tensor:
    """Where the two lowest of each four scores are; of equal ones the later."""
    import torch

    groups = scores.view(-1, GROUP)
    order = groups.argsort(dim=1, descending=True, stable=True)
    gone = torch.zeros_like(groups, dtype=torch.bool)
    return gone.scatter_(1, order[:, KEPT:], True).view(scores.shape)


def _read(place: BinaryIO, entry: Entry) -> Tensor:
    import torch

    place.seek(entry.start)
    content = bytearray(place.read(entry.end - entry.start))
    kind: torch.dtype = getattr(torch, _DTYPES[entry.dtype])
    return torch.frombuffer(content, dtype=kind).view(entry.shape)


def _bytes_type() -> Any:
    import torch

    return torch.uint8
