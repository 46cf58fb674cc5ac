"""Stage: the quantised model out of what AIMET chose, measured like every quantised model.

Inputs: `graph`, `model`, `texts`, `calibrated` (aimet_onnx_ptq.py's or aimet_torch_ptq.py's), and
perhaps `calibration` and `evaluation`. Output: the folder `quantized`, as quantize.py leaves it.
Parameters: calibration_tokens.

AIMET's ranges and weight grids are kept; the writer's rules are this house's (qdq.py), so a model
is the same kind of file whoever calibrated it. AIMET leaves out a product in front of a bias,
which HTP fuses; such a tensor's range is looked up here, with the calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import quantize  # isort: skip - it sets BLAS to one thread, so it comes before numpy
import chunks
import corpus
import jsons
import numpy as np
import onnx
import onnxfile
import qdq
import quality
import quantspec
import ranges
import streams

from stagekit import BadInput, Stage, main

Floats = quantize.Floats


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """AIMET's choice: how far each activation reaches, the grid of each weight, and its name."""

    reach: ranges.Reach
    weights: Mapping[str, Mapping[str, Any]]
    quantizer: str

    @classmethod
    def of(cls, folder: Path) -> Chosen:
        """From a folder `calibrated`."""
        told = jsons.read(folder / "calibrated.json")
        found = jsons.read(folder / "encodings.json")
        reach = ranges.Reach()
        for entry in found["activation_encodings"]:
            low, high = span(entry)
            reach.widen(entry["name"], np.array([low]), np.array([high]))
        weights = {entry["name"]: entry for entry in found["param_encodings"]}
        return cls(reach=reach, weights=weights, quantizer=str(told["quantizer"]))

    def bits(self, name: str) -> int:
        """How wide a weight's integers are."""
        if name not in self.weights:
            raise BadInput(
                f"AIMET's encodings hold no weight {name}",
                remedy="calibrate the same graph that is quantised now",
            )
        return int(self.weights[name]["bw"])

    def rounded(self, name: str, weight: Floats) -> quantspec.Integers:
        """A weight [in, out] on AIMET's grid: a scale for each output, no zero point."""
        bits = self.bits(name)
        least, most = quantspec.limits(bits)
        scales = np.array(self.weights[name]["scale"], np.float32)
        if any(offset != least for offset in self.weights[name]["offset"]):
            raise BadInput(f"AIMET's grid of {name} is not symmetric, and HTP would miscompute it")
        if scales.shape != (weight.shape[1],):
            raise BadInput(f"AIMET's grid of {name} has {scales.size} scales for {weight.shape[1]}")
        values = np.clip(np.rint(weight / scales), least, most).astype(np.int8)
        return quantspec.Integers(values=values, scales=scales, bits=bits)


def span(entry: Mapping[str, Any]) -> tuple[float, float]:
    """The range of an activation's entry; of a symmetric one, as far as both sides go."""
    scale, offset = float(entry["scale"][0]), int(entry["offset"][0])
    high = scale * (offset + (1 << int(entry["bw"])) - 1)
    return (-high, high) if entry["is_sym"] else (scale * offset, high)


@dataclass(kw_only=True)
class Work(quantize.Work):
    """quantize's way through a decoder, with AIMET's choices in place of its own."""

    chosen: Chosen
    looking: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.looking = any(self._unseen(self._part(f"layer_{i}")) for i in range(self._layers))

    @property
    def _layers(self) -> int:
        return int(self.spec["layers"])

    def _unseen(self, part: onnx.ModelProto) -> list[str]:
        """Tensors that need a range of their own and have none from AIMET."""
        joined = {
            name for node in part.graph.node if node.op_type == "Concat" for name in node.output
        }
        return [n for n in ranges.made(part) if n not in self.chosen.reach.low and n not in joined]

    def _layer(self, number: int) -> None:
        part, prefix = self._part(f"layer_{number}"), f"layers.{number}."
        names = [t.name for t in part.graph.initializer if t.name.startswith(prefix)]
        weights = {name: np.array(self._values(name)) for name in names}
        with self.clock("ranges"):
            self._see(number, part)
        rounded = {
            name: self.chosen.rounded(name, values)
            for name, values in weights.items()
            if name.endswith("_proj.weight")
        }
        self._store(weights, rounded)
        self.grids |= qdq.ranged(part, self.chosen.reach)
        with self.clock("measure"):
            session = streams.session(part, self.graph)
            list(self.floats.layer(session, number, lambda *_: None))
            self._measure(number, part)

    def _see(self, number: int, part: onnx.ModelProto) -> None:
        """Send the calibration text through, where AIMET left a tensor out anywhere."""
        if not self.looking:
            return
        session = streams.session(ranges.watched(part, self._unseen(part)), self.graph)

        def keep(_: chunks.Chunk, results: streams.Arrays) -> ranges.Reach:
            own = ranges.Reach()
            own.take(results)
            return own

        for text in self.calibrating.layer(session, number, keep):
            for own in text:
                self.chosen.reach.add(own)

    def _head(self) -> None:
        part = self._part("head")
        with self.clock("head"):
            self._score("float", self.floats, streams.session(part, self.graph))
            self._store_vector("norm.weight", np.array(self._values("norm.weight")))
            head = self._values("head.weight")
            self._store_weight("head.weight", self.chosen.rounded("head.weight", head))
            self.grids |= qdq.ranged(part, self.chosen.reach)
            model = qdq.write(part, self.grids, self.stored)
            self._score("quantised", self.quantised, streams.session(model, self.out, plain=True))

    def report(self) -> dict[str, Any]:
        return {**super().report(), "quantizer": self.chosen.quantizer}


def run(stage: Stage) -> None:
    """Read AIMET's choice, write the model, measure it."""
    graph, model, texts = stage.input("graph"), stage.input("model"), stage.input("texts")
    chosen, spec = Chosen.of(stage.input("calibrated")), chunks.read_spec(graph)
    cutter = corpus.Cutter.of(model, prefill=spec["prefill"], context=spec["context"])
    tokens = stage.param("calibration_tokens", int, 4096)
    material = corpus.material(
        cutter,
        model=model,
        texts=texts,
        calibration=stage.input("calibration") if stage.has("calibration") else None,
        evaluation=stage.input("evaluation") if stage.has("evaluation") else None,
        calibration_tokens=tokens,
    )
    options = quantize.Options(
        weight_bits=chosen.bits("layers.0.q_proj.weight"),
        weight_block=0,
        head_bits=chosen.bits("head.weight"),
        embed_bits=chosen.bits("embed.weight") if "embed.weight" in chosen.weights else 16,
        rotate=False,
        gptq=False,
        calibration_tokens=tokens,
    )
    out = stage.output("quantized")
    out.mkdir(parents=True)
    with ThreadPoolExecutor(stage.cpus) as pool, qdq.Store(out / onnxfile.DATA) as store:
        work = Work(
            graph=graph,
            out=out,
            options=options,
            material=material,
            pool=pool,
            store=store,
            chosen=chosen,
        )
        for done, part in enumerate(work.parts(), 1):
            stage.progress(done, spec["layers"] + 3, unit="parts", what=part)
        work.finish()
    told = quality.answers(graph, material.prompts, cutter.tokenizer, cpus=stage.cpus)
    stage.progress(1, 1, unit="parts", what="answers")
    jsons.write(out / "quality.json", {**work.report(), "prompts": told})
    quantize.copy_beside(graph, model, out)
    stage.note(quantize.figures(work.report()))


if __name__ == "__main__":
    main(run)
