"""Several questions answered at once by the float decoder: one pass a token for all of them.

The mask is an input, so texts that have nothing to do with each other can stand in one cache:
each row sees its own text's columns only, at its own text's positions. A pass costs reading all
weights once, whatever the number of rows, and a large model is read from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chunks
import numpy as np
import onnxfile
import rope
import shapes
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# A row of a pass: (text, token).
Row = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Said:
    """The likeliest tokens after a text, and how far each was ahead of the second."""

    ids: tuple[int, ...]
    margins: tuple[float, ...]


def groups(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Texts that together take no more than `room` columns; a longer one stands alone."""
    group: list[int] = []
    for number, length in enumerate(lengths):
        if group and sum(lengths[n] for n in group) + length > room:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def answers(folder: Path, texts: Sequence[Sequence[int]], count: int, *, cpus: int) -> list[Said]:
    """Up to `count` tokens after each text, greedily, by the decoder in `folder`."""
    model = onnxfile.load(folder / onnxfile.MODEL)
    spec = chunks.read_spec(folder)
    room = spec["context"] - spec["prefill"]
    fitting = [list(ids[: room - 1]) for ids in texts]
    wanted = [min(len(ids) + count, room) for ids in fitting]
    found: dict[int, Said] = {}
    made: dict[int, Any] = {}
    for group in groups(wanted, room):
        desk = Desk(folder=folder, model=model, spec=spec, cpus=cpus, sessions=made)
        told = desk.answer([fitting[n] for n in group], [wanted[n] for n in group])
        found |= dict(zip(group, told, strict=True))
    return [found[number] for number in range(len(texts))]


@dataclass(kw_only=True)
class Desk:
    """Some texts in one cache."""

    folder: Path
    model: Any
    spec: Mapping[str, Any]
    cpus: int
    sessions: dict[int, Any]
    caches: list[chunks.Cache] = field(init=False)
    owners: list[int] = field(init=False, default_factory=list)  # whose each column is

    def __post_init__(self) -> None:
        self.caches = [chunks.Cache.empty(self.spec) for _ in range(self.spec["layers"])]

    def answer(self, texts: Sequence[Sequence[int]], ends: Sequence[int]) -> list[Said]:
        """Each text's answer, until an end token or until text and answer are `ends` long."""
        last = self._prefill(texts)
        ids: list[list[int]] = [[] for _ in texts]
        margins: list[list[float]] = [[] for _ in texts]
        open_ = list(range(len(texts)))
        while open_:
            going = []
            for text, row in zip(open_, last, strict=True):
                second, first = np.partition(row, -2)[-2:]
                ids[text].append(int(row.argmax()))
                margins[text].append(float(first - second))
                full = len(texts[text]) + len(ids[text]) >= ends[text]
                if not full and ids[text][-1] not in self.spec["eos"]:
                    going.append(text)
            open_ = going
            if open_:
                last = self._pass([(text, ids[text][-1]) for text in open_], len(texts))
        return [Said(ids=tuple(i), margins=tuple(m)) for i, m in zip(ids, margins, strict=True)]

    def _prefill(self, texts: Sequence[Sequence[int]]) -> list[Floats]:
        """All texts into the cache; the logits of each one's last token."""
        rows = [(number, token) for number, ids in enumerate(texts) for token in ids]
        lasts = np.cumsum([len(ids) for ids in texts]) - 1
        width = self.spec["prefill"]
        kept: dict[int, Floats] = {}
        for start in range(0, len(rows), width):
            logits = self._pass(rows[start : start + width], width)
            kept |= {at: logits[at - start] for at in lasts if start <= at < start + width}
            del logits
        return [kept[at] for at in lasts]

    def _pass(self, rows: Sequence[Row], width: int) -> list[Floats]:
        """Append these rows to the cache; their logits."""
        feeds = self._feeds(rows, width)
        session = self._session(width)
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, feeds), strict=True))
        chunk = chunks.Chunk(
            text=0, start=len(self.owners), ids=tuple(token for _, token in rows), tokens=width
        )
        for layer, cache in enumerate(self.caches):
            cache.take(chunk, results[f"past_key_{layer}_out"], results[f"past_value_{layer}_out"])
        self.owners += [text for text, _ in rows]
        return list(results["logits"][0, : len(rows)])

    def _feeds(self, rows: Sequence[Row], width: int) -> chunks.Arrays:
        context, past = self.spec["context"], self.spec["context"] - width
        ids, positions = np.zeros((1, width), np.int32), np.zeros(width, np.int64)
        mask = np.full((width, context), chunks.CLOSED, np.float32)
        texts = np.array([text for text, _ in rows])
        owners = np.array(self.owners, np.int64)
        for at, (text, token) in enumerate(rows):
            ids[0, at] = token
            positions[at] = (owners == text).sum() + (texts[:at] == text).sum()
            mask[at, : len(owners)][owners == text] = 0
            mask[at, past : past + at + 1][texts[: at + 1] == text] = 0
        for at in range(len(rows), width):  # padding: a softmax needs something open
            mask[at, past + at] = 0
        cos, sin = rope.tables(positions, chunks.frequencies(self.spec))
        feeds: chunks.Arrays = {
            "input_ids": ids,
            "attention_mask": mask[None, None],
            "position_ids_cos": cos,
            "position_ids_sin": sin,
        }
        for layer, cache in enumerate(self.caches):
            feeds |= cache.feeds(layer, past)
        return feeds

    def _session(self, width: int) -> Any:
        if width not in self.sessions:
            same = width == shapes.tokens_of(self.model)
            model = self.model if same else shapes.retarget(self.model, width)
            # Each maps all weights; one at a time, or the peak is twice the model.
            self.sessions.clear()
            self.sessions[width] = chunks.session(model, self.folder, cpus=self.cpus)
        return self.sessions[width]
