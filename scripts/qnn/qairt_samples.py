"""Inputs for qairt-quantizer: each graph's own, as raw files and the list that names them.

AIMET's encodings cover the graph; what the quantizer looks at these samples for are the few
tensors that they leave out. The samples are chunks of the model's test vectors, sent through the
float graph, so that a later split gets what the one before it gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chunks
import numpy as np
import onnx
import onnxfile
import shapes
import splits
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
# Single tokens sampled after the chunk, for the graph that takes one at a time.
SINGLE_TOKENS = 2


@dataclass(kw_only=True)
class Samples:
    """The test vectors' tokens, and the float model to send them through."""

    spec: Mapping[str, Any]
    ids: list[int]
    model: Path
    cpus: int
    _opened: tuple[tuple[int, str], Any] | None = field(init=False, default=None)

    @classmethod
    def of(cls, quantized: Path, model: Path, *, cpus: int) -> Samples:
        """From a quantised folder's vectors.npz; `model` is a float model as a file."""
        with np.load(quantized / "vectors.npz") as vectors:
            ids = [int(i) for i in vectors["input_ids"].reshape(-1)]
        return cls(spec=chunks.read_spec(quantized), ids=ids, model=model, cpus=cpus)

    def write(self, split: splits.Split, tokens: int, folder: Path, name: str) -> str:
        """The raw files of one graph of one split; the name of their list, below `folder`.

        Every file holds 32-bit floats, tokens too: the tools turn them into what a tensor is.
        """
        lines = []
        for number, feeds in enumerate(self._feeds(split, tokens)):
            place = Path(f"test_inputs_{name}") / str(number)
            (folder / place).mkdir(parents=True)
            words = []
            for tensor in split.inputs:
                file = place / f"{tensor}.raw"
                feeds[tensor].astype(np.float32).tofile(folder / file)
                words.append(f"{tensor}:={file}")
            lines.append(" ".join(words))
        listed = f"input_list_{name}.txt"
        (folder / listed).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return listed

    def _feeds(self, split: splits.Split, tokens: int) -> Iterator[Arrays]:
        """Inputs of a split's graph: the first chunk for the wide one, what follows for AR-1."""
        last = len(self.ids) - (SINGLE_TOKENS if tokens == 1 else 0)
        caches = [chunks.Cache.empty(self.spec) for _ in range(self.spec["layers"])]
        wide = chunks.Chunk(
            text=0, start=0, ids=tuple(self.ids[:last]), tokens=int(self.spec["prefill"])
        )
        steps = [wide]
        if tokens == 1:
            steps += [
                chunks.Chunk(text=0, start=at, ids=(self.ids[at],), tokens=1)
                for at in range(last, len(self.ids))
            ]
        for chunk in steps:
            feeds, made = self._run(chunk, caches, split.enters)
            if chunk.tokens == tokens:
                yield {**feeds, **made}

    def _run(
        self, chunk: chunks.Chunk, caches: list[chunks.Cache], enters: str
    ) -> tuple[Arrays, Arrays]:
        """A chunk through the whole model: its inputs, and the tensor a split begins with."""
        past = self.spec["context"] - chunk.tokens
        feeds = chunks.edges(self.spec, chunk)
        for i, cache in enumerate(caches):
            feeds |= cache.feeds(i, past)
        session = self._session(chunk.tokens, enters)
        names = [output.name for output in session.get_outputs()]
        made = dict(zip(names, session.run(names, feeds), strict=True))
        for i, cache in enumerate(caches):
            cache.take(chunk, made[f"past_key_{i}_out"], made[f"past_value_{i}_out"])
        return feeds, {enters: made[enters]} if enters in made else {}

    def _session(self, tokens: int, enters: str) -> Any:
        """The float model for that many tokens; one at a time is kept open."""
        if self._opened is None or self._opened[0] != (tokens, enters):
            self._opened = None  # its memory goes before the next one's comes
            self._opened = (tokens, enters), self._open(tokens, enters)
        return self._opened[1]

    def _open(self, tokens: int, enters: str) -> Any:
        import onnxruntime

        model = shapes.retarget(onnxfile.load(self.model), tokens)
        graph = model.graph
        there = {value.name for value in (*graph.input, *graph.output)}
        graph.output.extend(v for v in graph.value_info if v.name == enters and enters not in there)
        file = self.model.with_name(f"samples_ar{tokens}.onnx")
        onnx.save(model, str(file))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.cpus
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
