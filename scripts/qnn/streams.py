"""Many texts through one part of the decoder at a time, side by side, with the same result always.

Each text is a chain of chunks, since a chunk needs the cache of those before it; texts do not
touch each other. So a session computes with one thread and the texts are spread over the cores:
no sum depends on how many cores there are, and what is told of the texts comes in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chunks
import numpy as np
import onnx
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

# What is kept of a chunk's outputs: (its chunk, all outputs by name) → anything.
Kept = Callable[[chunks.Chunk, Arrays], Any]


@dataclass(kw_only=True)
class Stream:
    """Texts on their way through the decoder: the hidden rows of every chunk, [1, T, hidden]."""

    spec: Mapping[str, Any]
    texts: Sequence[Sequence[int]]
    pool: ThreadPoolExecutor
    cut: list[list[chunks.Chunk]] = field(init=False)
    hidden: list[list[Floats]] = field(init=False)

    def __post_init__(self) -> None:
        every = chunks.split(self.texts, self.spec["prefill"], self.spec["context"])
        self.cut = [[c for c in every if c.text == number] for number in range(len(self.texts))]
        self.hidden = []

    def start(self, rows: Callable[[NDArray[np.int32]], Floats]) -> None:
        """Look every chunk's ids [1, T] up; `rows` gives [1, T, hidden]."""
        self.hidden = [
            [rows(chunks.edges(self.spec, c)["input_ids"]) for c in of_text] for of_text in self.cut
        ]

    def layer(self, session: Any, number: int, kept: Kept) -> Iterator[list[Any]]:
        """Through a layer; yields, text by text, what `kept` made of each chunk's outputs."""
        names = [output.name for output in session.get_outputs()]
        texts = range(len(self.cut))
        work = [self.pool.submit(self._text, session, number, t, names, kept) for t in texts]
        for done in work:
            yield done.result()

    def _text(
        self, session: Any, number: int, text: int, names: list[str], kept: Kept
    ) -> list[Any]:
        cache = chunks.Cache.empty(self.spec)
        found = []
        for place, chunk in enumerate(self.cut[text]):
            feeds = chunks.edges(self.spec, chunk)
            feeds |= cache.feeds(number, self.spec["context"] - chunk.tokens)
            feeds[f"hidden_{number}"] = self.hidden[text][place]
            del feeds["input_ids"]
            results = dict(zip(names, session.run(names, feeds), strict=True))
            cache.take(
                chunk, results[f"past_key_{number}_out"], results[f"past_value_{number}_out"]
            )
            self.hidden[text][place] = results[f"hidden_{number + 1}"]
            found.append(kept(chunk, results))
        return found

    def head(self, session: Any, kept: Kept) -> Iterator[list[Any]]:
        """Through the head; yields, text by text, what `kept` made of each chunk's logits."""
        entry = f"hidden_{self.spec['layers']}"
        names = [output.name for output in session.get_outputs()]

        def of(text: int) -> list[Any]:
            found = []
            for chunk, rows in zip(self.cut[text], self.hidden[text], strict=True):
                results = session.run(names, {entry: rows})
                found.append(kept(chunk, dict(zip(names, results, strict=True))))
            return found

        work = [self.pool.submit(of, text) for text in range(len(self.cut))]
        for done in work:
            yield done.result()


def session(
    model: onnx.ModelProto,
    folder: Path,
    weights: Mapping[str, Floats] | None = None,
    *,
    plain: bool = False,
) -> Any:
    """A session of one thread on the CPU; `weights` stand in for the model's own, without a copy.

    External weights are found in `folder`. `plain` computes a quantised graph as it is written:
    nothing is fused into integer kernels, which would round differently.
    """
    import onnxruntime

    options = chunks.session_options(folder, threads=1)
    if plain:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    return chunks.opened(model, options)
