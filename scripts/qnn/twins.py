"""The unshared binaries under HTP emulation, driven like any other decoder graph.

`Twins` is chunks.Runner on context binaries instead of an ONNX graph: floats are put on the
binaries' own grids on the way in and taken off them on the way out, splits run one after the
other. Run it in a child process: the emulation can crash.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chunks
import context_binary
import htp
import numpy as np
import onnxfile
from numpy.typing import NDArray

from stagekit import BadInput

Arrays = dict[str, NDArray[Any]]
# What compile.py calls them.
_NAMED = re.compile(r"ar(\d+)_(\d+)_of_\d+\.bin")


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An input or output of a binary: real = (integer + offset) * scale."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None
    offset: int | None

    def integers(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the binary takes for real values; integers stay as they are."""
        if self.scale is None or not np.issubdtype(values.dtype, np.floating):
            return values
        limits = np.iinfo(self.dtype)
        turned = np.rint(values / np.float32(self.scale)) - self.offset
        made: NDArray[Any] = np.clip(turned, limits.min, limits.max).astype(self.dtype)
        return made

    def reals(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the binary's integers stand for."""
        if self.scale is None or self.offset is None:
            return values
        moved = values.astype(np.int32) + self.offset
        made: NDArray[Any] = moved.astype(np.float32) * np.float32(self.scale)
        return made


class Split:
    """One loaded binary that holds one graph."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        said = context_binary.read(file)
        if len(said["graphs"]) != 1:
            raise BadInput(
                f"{file.name} holds {len(said['graphs'])} graphs, a twin holds one",
                remedy="weights shared between graphs cannot be loaded on x86-64; take the twins",
            )
        (graph,) = said["graphs"]
        self.inputs, self.outputs = (
            [Edge(**{**t, "shape": tuple(t["shape"])}) for t in graph[side]]
            for side in ("inputs", "outputs")
        )
        with tempfile.TemporaryDirectory() as scratch:
            wrapper = Path(scratch) / "twin.onnx"
            (Path(scratch) / file.name).symlink_to(file.resolve())
            wrapper.write_bytes(_wrapped(file.name, said["qnn_build"], graph["name"], self))
            options = htp.session_options({})
            self._session = onnxruntime.InferenceSession(str(wrapper), options)

    def run(self, given: Arrays) -> Arrays:
        """Integers in, integers out."""
        names = [edge.name for edge in self.outputs]
        feeds = {edge.name: given[edge.name] for edge in self.inputs}
        return dict(zip(names, self._session.run(names, feeds), strict=True))


class Chain:
    """The splits of one graph, which together look like its onnxruntime session."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.splits = [Split(file) for file in files]

    def get_outputs(self) -> list[Edge]:
        """The decoder's outputs; what passes between splits is none."""
        inner = {edge.name for split in self.splits for edge in split.inputs}
        return [e for split in self.splits for e in split.outputs if e.name not in inner]

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Floats in, floats out."""
        held: Arrays = dict(feeds)
        reals: Arrays = {}
        for split in self.splits:
            held |= {edge.name: edge.integers(held[edge.name]) for edge in split.inputs}
            made = split.run(held)
            held |= made
            reals |= {edge.name: edge.reals(made[edge.name]) for edge in split.outputs}
        return [reals[name] for name in names]


@dataclass(kw_only=True)
class Twins(chunks.Runner):
    """chunks.Runner over `binaries`: the files of each graph in order, by its tokens."""

    binaries: Mapping[int, Sequence[Path]]
    _chains: dict[int, Chain] = field(init=False, default_factory=dict)

    def _session(self, tokens: int) -> Chain:
        if tokens not in self._chains:
            self._chains[tokens] = Chain(self.binaries[tokens])
        return self._chains[tokens]


def files(folder: Path) -> dict[int, list[Path]]:
    """The files of each graph, by its tokens, in the order of their splits."""
    found: dict[int, dict[int, Path]] = {}
    for file in sorted(folder.iterdir()):
        if named := _NAMED.fullmatch(file.name):
            tokens, split = int(named[1]), int(named[2])
            found.setdefault(tokens, {})[split] = file
    return {
        tokens: [splits[number] for number in sorted(splits)] for tokens, splits in found.items()
    }


def _wrapped(file: str, build: str, graph: str, split: Split) -> bytes:
    """The ONNX model by which onnxruntime loads a context binary: one EPContext node."""
    import onnx
    from onnx import helper

    node = helper.make_node(
        htp.CONTEXT_NODE,
        [edge.name for edge in split.inputs],
        [edge.name for edge in split.outputs],
        name=graph,
        domain="com.microsoft",
        main_context=1,
        embed_mode=0,
        ep_cache_context=file,
        ep_sdk_version=build,
        partition_name=graph,
        source=htp.PROVIDER,
        max_size=0,
    )
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                edge.name, helper.np_dtype_to_tensor_dtype(np.dtype(edge.dtype)), edge.shape
            )
            for edge in edges
        ]
        for edges in (split.inputs, split.outputs)
    )
    made = helper.make_graph([node], "twin", inputs, outputs)
    opsets = [helper.make_opsetid("", onnxfile.OPSET), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(made, opset_imports=opsets)
    model.ir_version = onnxfile.IR_VERSION
    data: bytes = model.SerializeToString()
    return data
