"""What both AIMET flows share: their parameters, their text, and the folder they leave.

`calibrated/` holds encodings.json, lists of AIMET's format 1.0.0 by the names of the decoder
graph's tensors, and calibrated.json, which says how they were made. Runs under Python 3.10.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import corpus
import jsons

from stagekit import BadInput, Stage

Feed = TypeVar("Feed")

ENCODINGS = "encodings.json"
REPORT = "calibrated.json"
VERSION = "1.0.0"
CACHE_BITS = 8
DEFAULT_TOKENS = 1280
# SeqMSE sends each chunk through the model up to each layer, so its time grows with their number
# where the ranges' hardly does.
SEQ_MSE_CHUNKS = 10


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Bits and effort: the stage's parameters, checked."""

    arch: str
    weight_bits: int
    head_bits: int
    embed_bits: int
    seq_mse: bool
    tokens: int

    @classmethod
    def of(cls, stage: Stage) -> Wanted:
        """From a stage's parameters. Raises BadInput for what AIMET's flow cannot do."""
        if stage.param("weight_block", int, 0):
            raise BadInput(
                "AIMET's flow quantises weights per channel, not in blocks",
                remedy="set --weight-block 0, or take --quantizer edgekiln",
            )
        for name in ("rotate", "gptq"):
            if stage.param(name, bool, False):
                raise BadInput(f"{name} belongs to the quantizer edgekiln, not to AIMET's")
        weight_bits = _bits(stage, "weight_bits", (4, 8), 4)
        return cls(
            arch=stage.param("arch", str, "v79"),
            weight_bits=weight_bits,
            head_bits=_bits(stage, "head_bits", (8,), 8),
            embed_bits=_bits(stage, "embed_bits", (8, 16), 16),
            # At eight bits there is nothing to find: AIMET 1.34 skips such weights by itself.
            seq_mse=stage.param("seq_mse", bool, True) and weight_bits == 4,
            tokens=stage.param("calibration_tokens", int, None) or DEFAULT_TOKENS,
        )


def _bits(stage: Stage, name: str, known: Sequence[int], default: int) -> int:
    value: int = stage.param(name, int, default)
    if value not in known:
        raise BadInput(f"{name} is {value}, not one of {', '.join(map(str, known))}")
    return value


def windows(stage: Stage, tokens: int) -> list[list[int]]:
    """The texts to calibrate with as token ids, cut as the default quantizer cuts them."""
    spec = jsons.read(stage.input("graph") / "graph.json")
    model = stage.input("model")
    cutter = corpus.Cutter(
        tokenizer=tokenizer(model), prefill=spec["prefill"], context=spec["context"]
    )
    material = corpus.material(
        cutter,
        model=model,
        texts=stage.input("texts"),
        calibration=stage.input("calibration") if stage.has("calibration") else None,
        evaluation=None,
        calibration_tokens=tokens,
    )
    return material.calibration


def tokenizer(model: Path) -> Any:
    """A model folder's tokenizer, by whatever release of tokenizers there is.

    Releases before 0.20 know merges as "a b" only; newer ones also write ["a", "b"].
    """
    from tokenizers import Tokenizer

    text = (model / "tokenizer.json").read_text(encoding="utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # what tokenizers raises is a bare Exception
        told = json.loads(text)
        merges = [m for m in told.get("model", {}).get("merges", []) if isinstance(m, list)]
        if not merges or any(" " in token for merge in merges for token in merge):
            raise BadInput(
                f"tokenizer.json cannot be read: {error}".splitlines()[0],
                remedy="fetch the model again; or take another --quantizer, with newer tokenizers",
            ) from error
    told["model"]["merges"] = [" ".join(merge) for merge in merges]
    return Tokenizer.from_str(json.dumps(told))


def for_seq_mse(feeds: Sequence[Feed]) -> list[Feed]:
    """The chunks that SeqMSE looks at: SEQ_MSE_CHUNKS at most, evenly out of all."""
    count = min(len(feeds), SEQ_MSE_CHUNKS)
    return [feeds[i * len(feeds) // count] for i in range(count)]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add what the block takes to `seconds[name]`."""
    began = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began


def words(seconds: Mapping[str, float]) -> str:
    """What took how long; said, not written down, since it is never the same twice."""
    return ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())


def write(
    folder: Path, encodings: Mapping[str, list[dict[str, Any]]], report: Mapping[str, Any]
) -> None:
    """Leave the folder `calibrated`; the same findings give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, Any] = {"version": VERSION}
    whole |= {kind: sorted(entries, key=_name) for kind, entries in encodings.items()}
    for name, value in ((ENCODINGS, whole), (REPORT, report)):
        jsons.write(folder / name, value)


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"])
