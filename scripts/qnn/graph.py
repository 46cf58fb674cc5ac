"""Stage: a Hugging Face checkpoint into a static-shape float decoder in ONNX.

Input: `model`. Output: the folder `graph` with model.onnx, model.data (its weights) and
graph.json (what it is). Parameters: context_length, prefill_length, in tokens.

The weights are streamed from the checkpoint into model.data block by block; nothing else of the
model is ever in memory. The same checkpoint gives the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import architecture
import checkpoint
import decoder
import jsons
import onnxfile

from stagekit import Stage, main

FORMAT = 1
CONTEXT_LENGTH = 1024
PREFILL_LENGTH = 128


def run(stage: Stage) -> None:
    """Check the model, then write it part by part."""
    model = stage.input("model")
    context = stage.param("context_length", int, CONTEXT_LENGTH)
    prefill = stage.param("prefill_length", int, PREFILL_LENGTH)
    arch = architecture.load(model)
    architecture.check_lengths(arch, context, prefill)
    architecture.check_ends(arch)
    architecture.check_tokenizer(model, arch.vocab)
    weights = checkpoint.Checkpoint(model)
    decoder.check_weights(arch, weights)
    out = stage.output("graph")
    out.mkdir(parents=True)
    with onnxfile.DataWriter(out / onnxfile.DATA) as data:
        writer = decoder.Decoder(arch, weights, data, tokens=prefill, context=context)
        for done, part in enumerate(writer.steps(), 1):
            stage.progress(done, arch.layers + 2, unit="parts", what=part)
    made = writer.model()
    onnxfile.save(made, out / onnxfile.MODEL)
    described = describe(arch, writer.roles, context=context, prefill=prefill)
    jsons.write(out / "graph.json", described)
    size = (out / onnxfile.DATA).stat().st_size
    stage.note(f"{len(made.graph.node)} nodes, {size:,} bytes of weights")


def describe(
    arch: architecture.Architecture, roles: dict[str, Any], *, context: int, prefill: int
) -> dict[str, Any]:
    """graph.json: the architecture, the lengths, each weight's role, the parts."""
    told = asdict(arch)
    del told["window"]
    return {
        "format": FORMAT,
        **told,
        "eos": list(arch.eos),
        "context": context,
        "prefill": prefill,
        "weights": roles,
        "parts": [asdict(part) for part in decoder.parts(arch.layers)],
    }


if __name__ == "__main__":
    main(run)
