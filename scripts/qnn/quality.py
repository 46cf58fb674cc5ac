"""How good the quantised decoder is: perplexity beside the float one's, and where it loses.

Both are measured on the same tokens, which calibration did not see, in chunks with the cache
carried from one to the next, and the quantised graph is run as it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chunks
import corpus
import numpy as np
import onnxfile
import packed
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Rows of logits in 64 bits at a time: a vocabulary is wide.
_ROWS = 16
# Longest answer of the float model that is written down…
ANSWER_TOKENS = 24
# …and for one with more weights than this, which are read from disk for every token.
LARGE = 12 << 30
FEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Score:
    """Summed negative log likelihood of the tokens that were predicted."""

    nats: float = 0.0
    tokens: int = 0

    def plus(self, other: Score) -> Score:
        """Both together."""
        return Score(nats=self.nats + other.nats, tokens=self.tokens + other.tokens)

    @property
    def perplexity(self) -> float:
        """exp of the mean; infinite where it is past all counting."""
        mean = self.nats / max(self.tokens, 1)
        return math.exp(mean) if mean < 700 else math.inf


def score(logits: Floats, chunk: chunks.Chunk, text: Sequence[int]) -> Score:
    """What a chunk's logits [1, T, vocab] say of the token after each of its own."""
    wanted = text[chunk.start + 1 : chunk.start + 1 + len(chunk.ids)]
    rows = logits[0, chunk.rows][: len(wanted)]
    nats = 0.0
    for at in range(0, len(wanted), _ROWS):
        some = rows[at : at + _ROWS].astype(np.float64)
        top = some.max(axis=1)
        total = top + np.log(np.exp(some - top[:, None]).sum(axis=1))
        nats += float((total - some[np.arange(len(some)), wanted[at : at + _ROWS]]).sum())
    return Score(nats=nats, tokens=len(wanted))


def total(scores: Iterable[Score]) -> Score:
    """All together, in order."""
    whole = Score()
    for one in scores:
        whole = whole.plus(one)
    return whole


@dataclass(kw_only=True)
class Losses:
    """How far the quantised stream has moved from the float one behind each part."""

    names: list[str] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def heard(
        self, name: str, floats: Sequence[Sequence[Floats]], quantised: Sequence[Sequence[Floats]]
    ) -> None:
        """The hidden rows [1, T, hidden] of every chunk of every text, behind a part.

        What counts is the mean over tokens of |x̂ - x|² / |x|²: a token with a massive activation
        weighs no more than another.
        """
        shares = [
            np.square(b - a).sum(axis=-1) / np.maximum(np.square(a).sum(axis=-1), 1e-12)
            for one, other in zip(floats, quantised, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        self.names.append(name)
        self.noise.append(float(np.concatenate(shares, axis=None).astype(np.float64).mean()))

    def table(self) -> list[dict[str, Any]]:
        """Each part's SQNR in dB of the stream behind it, and its share of all noise added."""
        before = [0.0, *self.noise[:-1]]
        added = [max(now - was, 0.0) for now, was in zip(self.noise, before, strict=True)]
        whole = sum(added) or 1.0
        return [
            {"name": name, "sqnr_db": round(decibels(noise), 2), "share": round(more / whole, 4)}
            for name, noise, more in zip(self.names, self.noise, added, strict=True)
        ]


def decibels(noise: float) -> float:
    """A ratio of noise to signal as SQNR in dB; at most 200."""
    return min(-10 * math.log10(max(noise, 1e-20)), 200.0)


def answers(
    graph: Path, questions: Sequence[corpus.Question], tokenizer: Any, *, cpus: int
) -> list[dict[str, Any]]:
    """What the float model answers to each question, greedily, and how sure it is.

    margin: the least distance between the best and the second best logit over the answer's
    tokens; where it is small, another answer is no fault.
    """
    texts = [question.ids for question in questions]
    large = (graph / onnxfile.DATA).stat().st_size > LARGE
    count = FEW_TOKENS if large else ANSWER_TOKENS
    told = []
    every = packed.answers(graph, texts, count, cpus=cpus)
    for question, said in zip(questions, every, strict=True):
        told.append(
            {
                "prompt": question.prompt,
                "text": question.text,
                "ids": list(question.ids),
                "float_answer_ids": list(said.ids),
                "float_answer": tokenizer.decode(said.ids, skip_special_tokens=True),
                "margin": round(min(said.margins), 3),
                "margins": [round(margin, 3) for margin in said.margins],
            }
        )
    return told
