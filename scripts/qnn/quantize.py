"""Stage: the float decoder into integers, layer by layer: ranges, rotation, GPTQ, measurement.

Inputs: `graph`, `model` (its tokenizer and chat template), `texts` (the folder with the texts that
come along), perhaps `calibration` and `evaluation` (files of the user's own, UTF-8). Output: the
folder `quantized` with model.onnx and model.data (QDQ), encodings.json (AIMET 1.0.0), graph.json,
vectors.npz (logits of both models), quality.json, and the tokenizer's files.

Parameters: weight_bits 4 or 8, weight_block 0 (one scale a channel), 16, 32 or 64 (if not given,
4-bit weights get 32, or 16 where 32 does not fit), head_bits 8, embed_bits 8 or 16, rotate, gptq,
calibration_tokens.

One layer is in memory at a time, beside the embedding and the head when their turn comes, and the
hidden rows of all texts. The bytes do not depend on how many cores there are: BLAS and
onnxruntime compute with one thread, and work is spread over the cores in pieces of fixed size.
They can differ between kinds of processors, whose kernels add in another order.
"""

from __future__ import annotations

import os

# Before numpy is imported for the first time.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import chunks
import corpus
import gptq
import jsons
import numpy as np
import onnx
import onnxfile
import qdq
import quality
import quantspec
import ranges
import rotate
import streams
from numpy.typing import NDArray

import npz
from stagekit import BadInput, Stage, main

Floats = NDArray[np.float32]

# Inputs that may share a scale, and what is taken where nothing is asked for, the first that fits.
# SmolLM2's perplexity at 4 bits is 1.14 times the float one's with a scale a channel, 1.09 with
# one for 32 inputs or for 64; with 64 it names no capital when it is asked for France's.
BLOCKS = (16, 32, 64)
_FIRST_CHOICES = (32, 16)
_FITTING = -1
# Weights that read the same inputs are rounded together.
GROUPS: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
# Output channels of one piece of work; fixed, so that the pieces are the same on every machine.
_PIECE = 1024
# Rows of the embedding, and columns of the head, at a time.
_ROWS = 4096
# 16-bit ranges are widened by this part of themselves: other texts reach a little farther.
_MARGIN = 0.1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The stage's parameters, checked."""

    weight_bits: int
    weight_block: int
    head_bits: int
    embed_bits: int
    rotate: bool
    gptq: bool
    calibration_tokens: int

    @classmethod
    def of(cls, stage: Stage, spec: Mapping[str, Any]) -> Options:
        """Raises BadInput for what is not known, or does not fit the decoder."""
        made = cls(
            weight_bits=_one_of(stage, "weight_bits", (4, 8), 4),
            weight_block=_one_of(stage, "weight_block", (0, *BLOCKS), _FITTING),
            head_bits=_one_of(stage, "head_bits", (8,), 8),
            embed_bits=_one_of(stage, "embed_bits", (8, 16), 8),
            rotate=stage.param("rotate", bool, True),
            gptq=stage.param("gptq", bool, True),
            calibration_tokens=stage.param("calibration_tokens", int, 4096),
        )
        widths = (spec["hidden"], spec["heads"] * spec["head_dim"], spec["intermediate"])
        if made.weight_block == _FITTING:
            wanted = _FIRST_CHOICES if made.weight_bits == 4 else ()
            fitting = [size for size in wanted if not any(width % size for width in widths)]
            made = replace(made, weight_block=next(iter(fitting), 0))
        if made.weight_block and made.weight_bits != 4:
            raise BadInput(
                "blocks are for 4-bit weights; 8-bit ones have one scale a channel",
                remedy="set --weight-block 0, or --weight-bits 4",
            )
        for width in widths if made.weight_block else ():
            if width % made.weight_block:
                raise BadInput(
                    f"this model's weights have {width} inputs, "
                    f"no whole number of blocks of {made.weight_block}",
                    remedy="set --weight-block 0",
                )
        if made.calibration_tokens < spec["prefill"]:
            raise BadInput(
                f"calibration_tokens is {made.calibration_tokens}, less than one chunk "
                f"of {spec['prefill']}"
            )
        return made


def _one_of(stage: Stage, name: str, known: Sequence[int], default: int) -> int:
    value: int = stage.param(name, int, default)
    if value not in (*known, default):
        raise BadInput(f"{name} is {value}, not {' or '.join(map(str, known))}")
    return value


def run(stage: Stage) -> None:
    """Quantise, measure, write."""
    graph, model, texts = stage.input("graph"), stage.input("model"), stage.input("texts")
    spec = chunks.read_spec(graph)
    options = Options.of(stage, spec)
    cutter = corpus.Cutter.of(model, prefill=spec["prefill"], context=spec["context"])
    material = corpus.material(
        cutter,
        model=model,
        texts=texts,
        calibration=stage.input("calibration") if stage.has("calibration") else None,
        evaluation=stage.input("evaluation") if stage.has("evaluation") else None,
        calibration_tokens=options.calibration_tokens,
    )
    out = stage.output("quantized")
    out.mkdir(parents=True)
    steps = spec["layers"] + 3
    with (
        ThreadPoolExecutor(stage.cpus) as pool,
        qdq.Store(out / onnxfile.DATA) as store,
    ):
        work = Work(
            graph=graph, out=out, options=options, material=material, pool=pool, store=store
        )
        for done, part in enumerate(work.parts(), 1):
            stage.progress(done, steps, unit="parts", what=part)
        work.finish()
    with work.clock("answers"):
        told = quality.answers(graph, material.prompts, cutter.tokenizer, cpus=stage.cpus)
    stage.progress(steps, steps, unit="parts", what="answers")
    jsons.write(out / "quality.json", {**work.report(), "prompts": told})
    copy_beside(graph, model, out)
    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in work.seconds.items())
    stage.note(f"{figures(work.report())}; {seconds}")


@dataclass(kw_only=True)
class Work:
    """One decoder on its way: what is known of it so far, and the texts behind its last part."""

    graph: Path
    out: Path
    options: Options
    material: corpus.Material
    pool: ThreadPoolExecutor
    store: qdq.Store
    spec: dict[str, Any] = field(init=False)
    whole: onnx.ModelProto = field(init=False)
    turns: rotate.Turns = field(init=False)
    calibrating: streams.Stream = field(init=False)
    floats: streams.Stream = field(init=False)
    quantised: streams.Stream = field(init=False)
    grids: dict[str, quantspec.Grid] = field(init=False, default_factory=dict)
    stored: dict[str, qdq.Stored] = field(init=False, default_factory=dict)
    parameters: list[quantspec.Parameter] = field(init=False, default_factory=list)
    losses: quality.Losses = field(init=False, default_factory=quality.Losses)
    scores: dict[str, quality.Score] = field(init=False, default_factory=dict)
    seconds: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.spec = chunks.read_spec(self.graph)
        self.whole = onnxfile.load(self.graph / onnxfile.MODEL)
        self.turns = rotate.Turns.of(self.spec, rotate=self.options.rotate)
        self.calibrating = self._stream(self.material.calibration)
        self.floats = self._stream(self.material.evaluation)
        self.quantised = self._stream(self.material.evaluation)

    def _stream(self, texts: corpus.Windows) -> streams.Stream:
        return streams.Stream(spec=self.spec, texts=texts, pool=self.pool)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add what the block takes to `seconds`."""
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def parts(self) -> Iterator[str]:
        """Part after part; yields the name of each one done."""
        self._embed()
        yield "embed"
        for number in range(self.spec["layers"]):
            self._layer(number)
            yield f"layer_{number}"
        self._head()
        yield "head"

    # -- the embedding

    def _embed(self) -> None:
        """Turn the table, put it on one grid, look the texts up."""
        with self.clock("embed"):
            table = self._values("embed.weight")
            low, high = np.inf, -np.inf
            for block in self._turned_rows(table):
                least, most = float(block.min()), float(block.max())
                _finite("embed.weight", least, most)
                low, high = min(low, least), max(high, most)
            grid = quantspec.between(low, high, bits=self.options.embed_bits)
            rows = self._turned_rows(table)
            self.stored["embed.weight"] = self.store.table("embed.weight", grid, table.shape, rows)
            self.parameters.append(quantspec.Parameter(name="embed.weight", grid=grid))
            self.grids |= {"embed.weight": grid, "hidden_0": quantspec.between(low, high)}

            def floats(ids: NDArray[np.int32]) -> Floats:
                return self.turns.embedding(table[ids])

            self.calibrating.start(floats)
            self.floats.start(floats)
            self.quantised.start(lambda ids: grid.floats(grid.integers(floats(ids))))
            self.losses.heard("embed", self.floats.hidden, self.quantised.hidden)

    def _turned_rows(self, table: Floats) -> Iterator[Floats]:
        for first in range(0, len(table), _ROWS):
            yield self.turns.embedding(np.ascontiguousarray(table[first : first + _ROWS]))

    # -- a layer

    def _layer(self, number: int) -> None:
        """Turn, look, round, store and measure one layer."""
        part = self._part(f"layer_{number}")
        weights = self._turned(number, part)
        with self.clock("ranges"):
            reach, rows = self._look(number, part, weights)
        self._balance(number, weights, reach)
        with self.clock("gptq"):
            rounded = self._rounded(number, weights, rows)
        del rows
        self._store(weights, rounded)
        del weights, rounded
        self.grids |= qdq.ranged(part, reach, margin=_MARGIN)
        with self.clock("measure"):
            self._measure(number, part)

    def _turned(self, number: int, part: onnx.ModelProto) -> dict[str, Floats]:
        """The layer's tensors by their full names, turned."""
        prefix = f"layers.{number}."
        names = [t.name for t in part.graph.initializer if t.name.startswith(prefix)]
        with self.clock("rotate"):
            own = {name.removeprefix(prefix): np.array(self._values(name)) for name in names}
            for name, values in own.items():
                _finite(prefix + name, float(values.min()), float(values.max()))
            turned = rotate.layer(own, self.turns)
        return {prefix + name: np.ascontiguousarray(turned[name]) for name in own}

    def _look(
        self, number: int, part: onnx.ModelProto, weights: Mapping[str, Floats]
    ) -> tuple[ranges.Reach, dict[str, Floats]]:
        """Send the float streams through; the ranges, and the inputs of each group of weights."""
        names = [_input_of(number, group) for group in GROUPS]
        seen = ranges.tapped(ranges.watched(part, ranges.made(part)), names)
        session = streams.session(seen, self.graph, weights)
        kept: dict[str, list[Floats]] = {name: [] for name in names}
        reach = ranges.Reach()

        def keep(_: chunks.Chunk, results: streams.Arrays) -> tuple[ranges.Reach, list[Floats]]:
            own = ranges.Reach()
            own.take(results)
            return own, [results[name][0] for name in names]

        for text in self.calibrating.layer(session, number, keep):
            for own, inputs in text:
                reach.add(own)
                for name, rows in zip(names, inputs, strict=True):
                    kept[name].append(rows)
        # Minimum and maximum may pass over a number that is none; the sums behind it do not.
        finite = all(np.isfinite(rows).all() for text in self.calibrating.hidden for rows in text)
        broken = reach.broken() or ("" if finite else f"hidden_{number + 1}")
        if broken:
            raise BadInput(
                f"the model computes numbers that are not finite, first in {broken}",
                remedy="check the weights: the same text through the float model fails too",
            )
        del session  # which holds the weights once more, packed
        session = streams.session(part, self.graph, weights)
        list(self.floats.layer(session, number, lambda *_: None))
        return reach, {name: np.concatenate(rows) for name, rows in kept.items()}

    def _balance(self, number: int, weights: dict[str, Floats], reach: ranges.Reach) -> None:
        """Scale keys against queries, in the weights and in what was seen of them."""
        if not self.options.rotate:
            return
        scaling = rotate.Balance.of(number, reach.low, reach.high, self.spec)
        weights.update(scaling.weights(weights))
        for name, factor in scaling.factors(reach.low).items():
            reach.scaled(name, factor)

    def _rounded(
        self, number: int, weights: Mapping[str, Floats], rows: Mapping[str, Floats]
    ) -> dict[str, quantspec.Integers]:
        """The layer's weights as integers."""
        bits, block = self.options.weight_bits, self.options.weight_block
        names = {g: [f"layers.{number}.{role}_proj.weight" for role in g] for g in GROUPS}
        if not self.options.gptq:
            every = [name for group in GROUPS for name in names[group]]
            made = self.pool.map(
                lambda name: gptq.nearest(weights[name], bits=bits, block=block), every
            )
            return dict(zip(every, made, strict=True))
        moments = [ranges.moments(rows[_input_of(number, g)], self.pool) for g in GROUPS]
        tokens = len(rows[_input_of(number, GROUPS[0])])

        def factor(of: Floats) -> gptq.Factor:
            return gptq.factor(of, damped_by=gptq.damping(len(of), tokens), sort=not block)

        factors = self.pool.map(factor, moments)
        work = []
        for group, known in zip(GROUPS, factors, strict=True):
            for name in names[group]:
                for piece in _pieces(weights[name]):
                    one = self.pool.submit(gptq.quantise, piece, known, bits=bits, block=block)
                    work.append((name, one))
        found: dict[str, list[quantspec.Integers]] = {}
        for name, one in work:
            found.setdefault(name, []).append(one.result())
        return {name: quantspec.joined(pieces) for name, pieces in found.items()}

    def _store(
        self, weights: Mapping[str, Floats], rounded: Mapping[str, quantspec.Integers]
    ) -> None:
        """Write the layer's parameters, in the order of the graph."""
        for name, values in weights.items():
            if name in rounded:
                self._store_weight(name, rounded[name])
            else:
                self._store_vector(name, values)

    def _store_weight(self, name: str, integers: quantspec.Integers) -> None:
        self.stored[name] = self.store.weight(name, integers)
        self.parameters.append(
            quantspec.Parameter(
                name=name, bits=integers.bits, block=integers.block, scales=integers.scales
            )
        )

    def _store_vector(self, name: str, values: Floats) -> None:
        grid = quantspec.between(float(values.min()), float(values.max()))
        self.stored[name] = self.store.table(name, grid, values.shape, [values])
        self.parameters.append(quantspec.Parameter(name=name, grid=grid))

    def _measure(self, number: int, part: onnx.ModelProto) -> None:
        """Send the quantised stream through the layer as it was written."""
        model = qdq.write(part, self.grids, self.stored)
        session = streams.session(model, self.out, plain=True)
        list(self.quantised.layer(session, number, lambda *_: None))
        self.losses.heard(f"layer_{number}", self.floats.hidden, self.quantised.hidden)

    # -- the head

    def _head(self) -> None:
        """Turn and round the head; score both models, keep a chunk's logits of each."""
        part = self._part("head")
        with self.clock("head"):
            weights = self._turned_head()
            reach = ranges.Reach()
            watched = ranges.watched(part, ranges.made(part))
            session = streams.session(watched, self.graph, weights)
            for text in self.calibrating.head(session, _reached):
                for own in text:
                    reach.add(own)
            del self.calibrating
            self._score("float", self.floats, session)
            # A session holds the head once more, packed; two of them would be the peak.
            del session
            self._store_vector("norm.weight", weights["norm.weight"])
            self._store_weight("head.weight", self._rounded_head(weights.pop("head.weight")))
            self.grids |= qdq.ranged(part, reach, margin=_MARGIN)
            model = qdq.write(part, self.grids, self.stored)
            self._score("quantised", self.quantised, streams.session(model, self.out, plain=True))

    def _turned_head(self) -> dict[str, Floats]:
        head, gain = self._values("head.weight"), np.array(self._values("norm.weight"))
        _finite("norm.weight", float(gain.min()), float(gain.max()))
        turned = np.empty(head.shape, np.float32)

        def turn(first: int) -> None:
            columns = slice(first, first + _ROWS)
            turned[:, columns] = self.turns.reading(np.ascontiguousarray(head[:, columns]), gain)

        list(self.pool.map(turn, range(0, head.shape[1], _ROWS)))
        _finite("head.weight", float(turned.min()), float(turned.max()))
        return {"head.weight": turned, "norm.weight": np.ones_like(gain)}

    def _rounded_head(self, weight: Floats) -> quantspec.Integers:
        bits = self.options.head_bits
        pieces = [weight[:, first : first + _ROWS] for first in range(0, weight.shape[1], _ROWS)]
        made = self.pool.map(lambda piece: gptq.nearest(piece, bits=bits), pieces)
        return quantspec.joined(list(made))

    def _score(self, which: str, stream: streams.Stream, session: Any) -> None:
        texts = self.material.evaluation
        first: dict[int, Floats] = {}

        def keep(chunk: chunks.Chunk, results: streams.Arrays) -> quality.Score:
            if chunk.text == 0 and chunk.start == 0:
                first[0] = results["logits"][0]
            return quality.score(results["logits"], chunk, texts[chunk.text])

        scores = [one for text in stream.head(session, keep) for one in text]
        self.scores[which] = quality.total(scores)
        np.save(self.out / f".{which}.npy", first[0])

    # -- the end

    def finish(self) -> None:
        """Write the whole model, its encodings and the test vectors."""
        made = qdq.write(self.whole, self.grids, self.stored)
        onnxfile.save(made, self.out / onnxfile.MODEL)
        grids = qdq.every(self.whole, self.grids)
        quantspec.write_encodings(self.out / "encodings.json", grids, self.parameters)
        logits = {w: np.load(self.out / f".{w}.npy") for w in ("float", "quantised")}
        ids = np.array([self.material.evaluation[0][: self.spec["prefill"]]], np.int32)
        npz.write(
            self.out / "vectors.npz",
            input_ids=ids,
            **{f"logits_{which}": rows for which, rows in logits.items()},
            **{f"greedy_{which}": rows.argmax(axis=-1) for which, rows in logits.items()},
        )
        for which in logits:
            (self.out / f".{which}.npy").unlink()

    def report(self) -> dict[str, Any]:
        """quality.json, but for the prompts."""
        floats, quantised = (self.scores[w].perplexity for w in ("float", "quantised"))
        return {
            "quantizer": "edgekiln",
            "weight_bits": self.options.weight_bits,
            "weight_block": self.options.weight_block,
            "embed_bits": self.options.embed_bits,
            "perplexity_float": round(floats, 4),
            "perplexity_quantised": round(quantised, 4),
            "perplexity_ratio": round(quantised / floats, 5),
            "perplexity_tokens": self.scores["float"].tokens,
            "calibration_tokens": sum(map(len, self.material.calibration)),
            "layers": self.losses.table(),
        }

    def _part(self, name: str) -> onnx.ModelProto:
        part = next(p for p in self.spec["parts"] if p["name"] == name)
        return onnxfile.cut(self.whole, part["inputs"], part["outputs"])

    def _values(self, name: str) -> Floats:
        tensor = next(t for t in self.whole.graph.initializer if t.name == name)
        return onnxfile.values(tensor, self.graph)


def _reached(_: chunks.Chunk, results: streams.Arrays) -> ranges.Reach:
    own = ranges.Reach()
    own.take(results)
    return own


def _input_of(number: int, group: Sequence[str]) -> str:
    """The tensor that a group of weights multiplies."""
    names = {"q": "input_norm", "o": "attention", "gate": "post_norm", "down": "gated"}
    return f"layers.{number}.{names[group[0]]}"


def _pieces(weight: Floats) -> list[Floats]:
    width = weight.shape[1]
    return [weight[:, first : first + _PIECE] for first in range(0, width, _PIECE)]


def _finite(name: str, low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadInput(
            f"{name} holds numbers that are not finite",
            remedy="fetch the model again; if it stays so, its makers' weights are broken",
        )


def figures(report: Mapping[str, Any]) -> str:
    """The perplexities of a report in a line."""
    return (
        f"perplexity {report['perplexity_float']:.2f} → {report['perplexity_quantised']:.2f} "
        f"(ratio {report['perplexity_ratio']:.4f}) on {report['perplexity_tokens']} tokens"
    )


def copy_beside(graph: Path, model: Path, out: Path) -> None:
    """What later stages read of the graph and the model, into the folder `quantized`."""
    shutil.copyfile(graph / "graph.json", out / "graph.json")
    for name in TOKENIZER_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)


if __name__ == "__main__":
    main(run)
