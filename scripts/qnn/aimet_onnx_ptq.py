"""Stage: ranges and weight grids of the decoder graph by aimet-onnx, with its SeqMSE.

Inputs: `graph` (the float decoder), `model` (for its tokenizer), `texts` (the folder with
calibration.txt) or `calibration` (a text of the user's own). Output: the folder `calibrated` with
encodings.json (AIMET's format 1.0.0, names of the graph's tensors) and calibrated.json (how it
was made). Parameters: arch, weight_bits, head_bits, embed_bits, seq_mse, calibration_tokens.

AIMET takes the graph as it is: opset 23, RMSNormalization whole. What it is told beside its own
HTP rules: 16-bit activations, an 8-bit symmetric cache, an 8-bit head. The stage `quantize`
(aimet_qdq.py) writes the model from what is found here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import calibrated
import chunks
import onnxfile
import shapes

from stagekit import BadInput, Stage, main

# Tensors of the cache and those that are joined with it: one 8-bit grid each layer and kind.
CACHE = re.compile(r"past_(key|value)_\d+_(in|out)|layers\.\d+\.(keys|values|k_rotary|v_proj)")
# SeqMSE tries this many ranges a channel, AIMET's own default.
CANDIDATES = 20


def run(stage: Stage) -> None:
    """Build AIMET's simulation, let it choose, write down what it chose."""
    wanted = calibrated.Wanted.of(stage)
    texts = calibrated.windows(stage, wanted.tokens)
    graph = stage.input("graph")
    seconds: dict[str, float] = {}
    with calibrated.timed(seconds, "feeds"):
        feeds = list(_feeds(graph, texts, cpus=stage.cpus))
    stage.note(f"calibration: {sum(map(len, texts))} tokens in {len(feeds)} chunks")
    with calibrated.timed(seconds, "simulation"):
        sim = _simulation(graph, wanted, cpus=stage.cpus)
    _set_widths(sim, wanted)
    if wanted.seq_mse:
        with calibrated.timed(seconds, "seq_mse"):
            _seq_mse(sim, calibrated.for_seq_mse(feeds), stage, chunks.read_spec(graph)["layers"])
    with calibrated.timed(seconds, "encodings"):
        sim.compute_encodings(_told(feeds, stage))
    stage.note(calibrated.words(seconds))
    calibrated.write(stage.output("calibrated"), encodings(sim), _report(sim, wanted))


def _feeds(graph: Path, texts: Sequence[Sequence[int]], *, cpus: int) -> Iterator[chunks.Arrays]:
    """What the float model is fed with for each chunk, the cache of the chunks before included."""
    spec = chunks.read_spec(graph)
    model = onnxfile.load(graph / onnxfile.MODEL)
    tokens, past = shapes.tokens_of(model), spec["context"] - shapes.tokens_of(model)
    made = chunks.session(model, graph, cpus=cpus)
    names = [output.name for output in made.get_outputs()]
    caches: list[chunks.Cache] = []
    for chunk in chunks.split(texts, tokens, spec["context"]):
        if chunk.start == 0:
            caches = [chunks.Cache.empty(spec) for _ in range(spec["layers"])]
        feeds = chunks.edges(spec, chunk)
        for i, cache in enumerate(caches):
            feeds |= cache.feeds(i, past)
        yield feeds
        results = dict(zip(names, made.run(names, feeds), strict=True))
        for i, cache in enumerate(caches):
            cache.take(chunk, results[f"past_key_{i}_out"], results[f"past_value_{i}_out"])


def _simulation(graph: Path, wanted: calibrated.Wanted, *, cpus: int) -> Any:
    """AIMET's model with a quantizer on every tensor its rules for that Hexagon name."""
    import aimet_onnx
    import onnx

    config = f"htp_{wanted.arch}"
    try:
        return aimet_onnx.QuantizationSimModel(
            onnx.load(str(graph / onnxfile.MODEL)),
            param_type=f"int{wanted.weight_bits}",
            activation_type="int16",
            quant_scheme="min_max",  # SeqMSE starts from it
            config_file=config,
            providers=["CPUExecutionProvider"],
            session_options_kwargs={"intra_op_num_threads": cpus},
        )
    except FileNotFoundError as error:
        raise BadInput(
            f"aimet-onnx has no rules for Hexagon {wanted.arch}: {error}",
            remedy="choose another --soc, or --quantizer edgekiln, which needs none",
        ) from error


def _set_widths(sim: Any, wanted: calibrated.Wanted) -> None:
    """Eight bits and no zero point for the cache; head and embedding as asked for."""
    for name, quantizer in sim.qc_quantize_op_dict.items():
        if CACHE.fullmatch(name):
            quantizer.set_bitwidth(calibrated.CACHE_BITS)
            quantizer.use_symmetric_encodings = True
    sim.qc_quantize_op_dict["head.weight"].set_bitwidth(wanted.head_bits)
    sim.qc_quantize_op_dict["embed.weight"].set_bitwidth(wanted.embed_bits)


def _seq_mse(sim: Any, feeds: Sequence[Mapping[str, Any]], stage: Stage, layers: int) -> None:
    """Choose each channel's range by the error of its layer's output, layer after layer.

    The head is left out: at eight bits there is nothing to gain, and it is the largest matrix.
    """
    import aimet_onnx
    from aimet_onnx.sequential_mse import seq_mse

    # q, k and v share an input, gate and up another: four groups a layer.
    _tell_progress(seq_mse, stage, 4 * layers)
    aimet_onnx.apply_seq_mse(
        sim, inputs=feeds, num_candidates=CANDIDATES, nodes_to_exclude=["head"]
    )


def _tell_progress(module: Any, stage: Stage, steps: int) -> None:
    """Hear the loop over candidates, which AIMET shows as a bar for each group of layers."""
    done = 0

    def told(candidates: Iterable[int], **_: Any) -> Iterator[int]:
        nonlocal done
        yield from candidates
        done += 1
        stage.progress(done, max(steps, done), unit="groups", what="SeqMSE")

    module.progress_bar = told


def _told(feeds: Sequence[Mapping[str, Any]], stage: Stage) -> Iterator[Mapping[str, Any]]:
    for done, feed in enumerate(feeds, 1):
        yield feed
        stage.progress(done, len(feeds), unit="chunks", what="ranges")


def encodings(sim: Any) -> dict[str, list[dict[str, Any]]]:
    """What AIMET chose, by the graph's names: lists of its format 1.0.0."""
    found: dict[str, list[dict[str, Any]]] = {"activation_encodings": [], "param_encodings": []}
    for name, quantizer in sim.qc_quantize_op_dict.items():
        if not quantizer.enabled:
            continue
        entry = quantizer.export_encodings("1.0.0")
        if entry is None:
            raise RuntimeError(f"AIMET found no range for {name}")
        kind = "param_encodings" if name in sim.param_names else "activation_encodings"
        found[kind].append({"name": name, **entry})
    return found


def _report(sim: Any, wanted: calibrated.Wanted) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "quantizer": f"aimet-onnx {version('aimet-onnx')}",
        "config": f"htp_{wanted.arch}",
        "seq_mse": wanted.seq_mse,
        "quantizers": len(sim.qc_quantize_op_dict),
    }


if __name__ == "__main__":
    main(run)
