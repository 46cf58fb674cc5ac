"""Running a decoder graph on the CPU in chunks of T tokens, the cache carried from one to the next.

`Runner` holds the whole model, float or quantised. What it is made of (how text is cut, what a
chunk's inputs are, how a cache grows) also serves those who go through a model layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsons
import numpy as np
import onnx
import onnxfile
import rope
import shapes
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

# What the mask adds where a token may not look; Genie's own value.
CLOSED = np.float32(-100.0)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Up to T tokens of a text: ids of text `text`, of which `start` come before these.

    Where there are fewer, the other rows stand before the tokens (`left`) or after them, and
    their results mean nothing.
    """

    text: int
    start: int
    ids: tuple[int, ...]
    tokens: int
    left: bool = False

    @property
    def rows(self) -> slice:
        """Which of the T rows hold tokens."""
        first = self.tokens - len(self.ids) if self.left else 0
        return slice(first, first + len(self.ids))


@dataclass(kw_only=True)
class Cache:
    """One layer's keys [K, 1, D, C] and values [K, 1, C, D], the first `length` of C filled."""

    keys: Floats
    values: Floats
    length: int = 0

    @classmethod
    def empty(cls, spec: Mapping[str, Any]) -> Cache:
        """A cache with nothing in it for one layer of graph.json `spec`."""
        heads, width, context = spec["kv_heads"], spec["head_dim"], spec["context"]
        return cls(
            keys=np.zeros((heads, 1, width, context), np.float32),
            values=np.zeros((heads, 1, context, width), np.float32),
        )

    def feeds(self, layer: int, past: int) -> Arrays:
        """The layer's two inputs for a graph that takes `past` columns."""
        return {
            f"past_key_{layer}_in": np.ascontiguousarray(self.keys[..., :past]),
            f"past_value_{layer}_in": np.ascontiguousarray(self.values[..., :past, :]),
        }

    def take(self, chunk: Chunk, key: Floats, value: Floats) -> None:
        """Append a chunk's new keys and values, without its padding."""
        last = self.length + len(chunk.ids)
        self.keys[..., self.length : last] = key[..., chunk.rows]
        self.values[..., self.length : last, :] = value[..., chunk.rows, :]
        self.length = last


def read_spec(folder: Path) -> dict[str, Any]:
    """graph.json of a graph or quantised folder."""
    return jsons.read(folder / "graph.json")


def split(texts: Sequence[Sequence[int]], tokens: int, context: int) -> list[Chunk]:
    """Texts of token ids into chunks of `tokens`, in order; the last of a text may be short."""
    chunks = []
    for number, ids in enumerate(texts):
        if len(ids) > context:
            raise ValueError(f"text {number} has {len(ids)} tokens, the context {context}")
        for start in range(0, len(ids), tokens):
            piece = tuple(int(token) for token in ids[start : start + tokens])
            chunks.append(Chunk(text=number, start=start, ids=piece, tokens=tokens))
    return chunks


def edges(spec: Mapping[str, Any], chunk: Chunk) -> Arrays:
    """A chunk's input_ids, attention_mask and position rows.

    Columns of the mask: C - T of the cache, then the T new tokens. A padding row sees itself and
    what precedes it, since a softmax needs something open.
    """
    tokens, context, count = chunk.tokens, spec["context"], len(chunk.ids)
    past, rows = context - tokens, chunk.rows
    ids = np.zeros((1, tokens), np.int32)
    ids[0, rows] = chunk.ids
    positions = np.zeros(tokens, np.int64)
    positions[rows] = np.arange(chunk.start, chunk.start + count)
    mask = np.full((tokens, context), CLOSED, np.float32)
    mask[:, : chunk.start] = 0
    seen = np.tril(np.ones((tokens, tokens), bool))
    seen[rows, : rows.start] = False
    mask[:, past:][seen] = 0
    cos, sin = rope.tables(positions, frequencies(spec))
    return {
        "input_ids": ids,
        "attention_mask": mask[None, None],
        "position_ids_cos": cos,
        "position_ids_sin": sin,
    }


def frequencies(spec: Mapping[str, Any]) -> Floats:
    """How fast each pair of a head's dimensions turns, [head_dim / 2], for graph.json `spec`."""
    turn = spec["rope"]
    return rope.inverse_frequencies(spec["head_dim"], turn["theta"], turn["scaling"])


def session(model: onnx.ModelProto, folder: Path, *, cpus: int) -> Any:
    """An onnxruntime session on the CPU; external weights are found in `folder`.

    Memory goes back to the system between runs, and weights are used where they are mapped
    instead of being repacked: slower by little, smaller by a copy of the weights.
    """
    settings = session_options(folder, threads=cpus)
    settings.add_session_config_entry("session.disable_prepacking", "1")
    return opened(model, settings)


def session_options(folder: Path, *, threads: int) -> Any:
    """Options of a session on the CPU for a model whose external weights lie in `folder`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.enable_cpu_mem_arena = False
    key = "session.model_external_initializers_file_folder_path"
    settings.add_session_config_entry(key, str(folder))
    # Threads that spin while they wait starve whatever else runs on the machine.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def opened(model: onnx.ModelProto, settings: Any) -> Any:
    """A session on the CPU for a model that is not in a file."""
    import onnxruntime

    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


@dataclass(kw_only=True)
class Runner:
    """The whole model: prefill in chunks of its T tokens, then decode one by one."""

    folder: Path
    cpus: int
    model: onnx.ModelProto = field(init=False)
    spec: dict[str, Any] = field(init=False)
    caches: list[Cache] = field(init=False)
    _sessions: dict[int, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.model = onnxfile.load(self.folder / onnxfile.MODEL)
        self.spec = read_spec(self.folder)
        self.clear()

    def clear(self) -> None:
        """Forget every token."""
        self.caches = [Cache.empty(self.spec) for _ in range(self.spec["layers"])]

    @property
    def length(self) -> int:
        """How many tokens the cache holds."""
        return self.caches[0].length

    def run(self, ids: Sequence[int], *, tokens: int | None = None, left: bool = False) -> Floats:
        """Append `ids` in chunks of `tokens` (the graph's own T by default); their logits.

        [len(ids), vocab] float32. `left` puts the padding of a short chunk before its tokens.
        """
        width = tokens or shapes.tokens_of(self.model)
        out = []
        for first in range(0, len(ids), width):
            piece = tuple(int(token) for token in ids[first : first + width])
            chunk = Chunk(text=0, start=self.length, ids=piece, tokens=width, left=left)
            out.append(self._step(chunk))
        return np.concatenate(out)

    def answer(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest `count` tokens after `ids`, or fewer where an end token comes first."""
        self.clear()
        logits = self.run(ids)[-1]
        told: list[int] = []
        while len(told) < count:
            token = int(logits.argmax())
            told.append(token)
            if token in self.spec["eos"] or self.length >= self.spec["context"]:
                break
            if len(told) < count:
                logits = self.run([token], tokens=1)[-1]
        return told

    def _step(self, chunk: Chunk) -> Floats:
        past = self.spec["context"] - chunk.tokens
        if chunk.start > past:
            raise ValueError(f"a chunk of {chunk.tokens} has no room after {chunk.start} tokens")
        feeds = edges(self.spec, chunk)
        for i, cache in enumerate(self.caches):
            feeds |= cache.feeds(i, past)
        made = self._session(chunk.tokens)
        names = [output.name for output in made.get_outputs()]
        results = dict(zip(names, made.run(names, feeds), strict=True))
        for i, cache in enumerate(self.caches):
            cache.take(chunk, results[f"past_key_{i}_out"], results[f"past_value_{i}_out"])
        logits: Floats = results["logits"][0, chunk.rows]
        return logits

    def _session(self, tokens: int) -> Any:
        if tokens not in self._sessions:
            model = shapes.retarget(self.model, tokens)
            self._sessions[tokens] = session(model, self.folder, cpus=self.cpus)
        return self._sessions[tokens]
