"""AIMET 1.34's torch flow on the decoder: what the stage aimet_torch_ptq does.

It imports torch and AIMET, which speak while they are imported, so it is imported by a stage that
runs already.

The flow: the decoder as a torch module (torch_decoder.py), AIMET's v2 simulation, mixed precision
(16-bit activations, 8-bit symmetric cache, 8-bit head), rules of our own for MatMul and Concat,
SeqMSE, then ranges. It runs under Python 3.10 with torch 2.1.2. AIMET 1.34.0 ships no HTP rules,
so the ones here stand in their place.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import calibrated
import chunks
import torch
import torch_decoder as td
from aimet_common.defs import QuantScheme
from aimet_torch.v2.nn.true_quant import QuantizationMixin
from aimet_torch.v2.quantization.affine import QuantizeDequantize
from aimet_torch.v2.quantsim import QuantizationSimModel

from stagekit import BadInput, Stage

NAME = "decoder"
OPSET = 17  # the newest that torch 2.1 writes
CANDIDATES = 20
# Tokens of the evaluation text whose perplexity is told along the way; the stage quantize
# measures it on the whole.
TOLD_TOKENS = 384
# What HTP does, as AIMET's htp_quantsim_config files of later releases say it: every output is
# quantised, weights are symmetric and per channel, biases stay in 32 bits.
RULES: dict[str, Any] = {
    "defaults": {
        "ops": {"is_output_quantized": "True"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "strict_symmetric": "False",
        "unsigned_symmetric": "False",
        "per_channel_quantization": "True",
    },
    "params": {"bias": {"is_quantized": "False"}},
    "op_type": {},
    "supergroups": [],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}
# Outputs of HTP's own tables, whose range is known without looking.
FIXED = {"softmax": (0.0, 1.0), "sigmoid": (0.0, 1.0)}
_CACHE = re.compile(r"layers\.(\d+)\.(keys|values|k_rotary\.joined|v_proj)")
_NORM = re.compile(r"norm|.*\.(input|post|q|k)_norm")

Feed = tuple[torch.Tensor, ...]


@QuantizationMixin.implements(td.RmsNorm)
class QuantizedRmsNorm(QuantizationMixin, td.RmsNorm):  # type: ignore[misc]
    """The norm with a quantised gain and output; what lies between stays in floats."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As RmsNorm's, its tensors rounded to their grids."""
        if self.input_quantizers[0]:
            x = self.input_quantizers[0](x)
        with self._patch_quantized_parameters():
            made: torch.Tensor = td.RmsNorm.forward(self, x)
        return self.output_quantizers[0](made) if self.output_quantizers[0] else made


def run(stage: Stage) -> None:
    """Build the module and AIMET's simulation of it, calibrate, write down."""
    wanted = calibrated.Wanted.of(stage)
    device = _device(stage)
    texts = calibrated.windows(stage, wanted.tokens)
    torch.set_num_threads(stage.cpus)
    torch.manual_seed(0)
    graph = stage.input("graph")
    spec, seconds = chunks.read_spec(graph), dict[str, float]()
    with calibrated.timed(seconds, "module"), torch.no_grad():
        model = td.Decoder(spec, td.load_weights(graph)).eval().to(device)
    with calibrated.timed(seconds, "feeds"):
        feeds = [feed for feed, _, _ in steps(model, spec, texts, device)]
    stage.note(f"calibration: {sum(map(len, texts))} tokens in {len(feeds)} chunks on {device}")
    evaluated = _evaluation(stage, spec)
    before = perplexity(model, spec, evaluated, device)
    with calibrated.timed(seconds, "simulation"):
        sim = simulation(model, feeds[0], wanted)
    if wanted.seq_mse:
        with calibrated.timed(seconds, "seq_mse"):
            _seq_mse(model, sim, calibrated.for_seq_mse(feeds), stage)
    with calibrated.timed(seconds, "encodings"):
        sim.compute_encodings(_forward(stage, feeds), None)
        tie_cache(sim, spec["layers"])
    after = perplexity(sim.model, spec, evaluated, device)
    stage.note(f"perplexity on {len(evaluated)} tokens: {before:.2f}, quantised {after:.2f}")
    stage.note(calibrated.words(seconds))
    out = stage.output("calibrated")
    report = _report(wanted, str(device), (len(evaluated), before, after))
    calibrated.write(out, encodings(sim, spec["layers"]), report)
    if stage.param("export_onnx", bool, False):
        export(out, model, sim, spec["layers"], feeds[0])


def _device(stage: Stage) -> torch.device:
    asked = stage.param("device", str, "auto")
    if asked not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device is {asked!r}, not auto, cpu or cuda")
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise BadInput(
            "there is no CUDA device here", remedy="leave the device to auto, which takes the CPU"
        )
    if not there:
        stage.note("no GPU here: AIMET runs on the CPU, which is many times slower")
    return torch.device("cpu" if asked == "cpu" or not there else "cuda")


def steps(
    model: Callable[..., Feed],
    spec: Mapping[str, Any],
    texts: Sequence[Sequence[int]],
    device: torch.device,
) -> Iterator[tuple[Feed, chunks.Chunk, Feed]]:
    """Each chunk of the texts through a model: what went in, the chunk, what came out.

    The cache is carried from chunk to chunk of a text, as on the phone.
    """
    tokens = spec["prefill"]
    past = spec["context"] - tokens
    names = td.input_names(spec["layers"])
    caches: list[chunks.Cache] = []
    for chunk in chunks.split(texts, tokens, spec["context"]):
        if chunk.start == 0:
            caches = [chunks.Cache.empty(spec) for _ in range(spec["layers"])]
        given = chunks.edges(spec, chunk)
        for i, cache in enumerate(caches):
            given |= cache.feeds(i, past)
        feed = tuple(torch.from_numpy(given[name]).to(device) for name in names)
        with torch.no_grad():
            made = model(*feed)
        for i, cache in enumerate(caches):
            key, value = (made[j].cpu().numpy() for j in (1 + 2 * i, 2 + 2 * i))
            cache.take(chunk, key, value)
        yield feed, chunk, made


def _evaluation(stage: Stage, spec: Mapping[str, Any]) -> list[int]:
    """The first tokens of the evaluation text, as many as one cache holds."""
    own = stage.has("evaluation")
    file = stage.input("evaluation") if own else stage.input("texts") / "evaluation.txt"
    tokenizer = calibrated.tokenizer(stage.input("model"))
    ids = tokenizer.encode(file.read_text(encoding="utf-8", errors="replace")).ids
    count = min(TOLD_TOKENS, spec["context"])
    return [int(i) for i in ids[:count]]


def perplexity(
    model: Callable[..., Feed],
    spec: Mapping[str, Any],
    ids: Sequence[int],
    device: torch.device,
) -> float:
    """exp of the mean surprise of each token of one text after its first."""
    rows = [made[0][0, chunk.rows].cpu() for _, chunk, made in steps(model, spec, [ids], device)]
    logits = torch.cat(rows)[:-1].double()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
    return math.exp(float(loss))


def simulation(model: td.Decoder, feed: Feed, wanted: calibrated.Wanted) -> Any:
    """AIMET's simulation with the precision the phone will have."""
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch) / "rules.json"
        rules.write_text(json.dumps(RULES), encoding="utf-8")
        sim = QuantizationSimModel(
            model,
            dummy_input=feed,
            quant_scheme=QuantScheme.post_training_tf,  # SeqMSE starts from it
            default_output_bw=16,
            default_param_bw=wanted.weight_bits,
            config_file=str(rules),
        )
    device = feed[0].device
    for name, module in sim.named_qmodules():
        _set_precision(name, module, wanted, device)
    return sim


def _set_precision(name: str, module: Any, wanted: calibrated.Wanted, device: torch.device) -> None:
    """Mixed precision, and the rules for MatMul and Concat: the cache on one 8-bit grid.

    HTP multiplies 16 by 8 bits faster than 16 by 16, so what attention reads as its second
    operand is 8-bit from where it is made; a Concat then joins equal grids and copies.
    """
    if _CACHE.fullmatch(name):
        module.output_quantizers[0] = grid((), calibrated.CACHE_BITS, symmetric=True).to(device)
    if name.endswith((".keys", ".values")):
        module.input_quantizers[0] = grid((), calibrated.CACHE_BITS, symmetric=True).to(device)
    if isinstance(module, torch.nn.Conv2d):
        bits = wanted.head_bits if name == "head" else wanted.weight_bits
        shape = (module.out_channels, 1, 1, 1)
        module.param_quantizers["weight"] = grid(shape, bits, symmetric=True).to(device)
    if name == "embed":
        module.param_quantizers["weight"] = grid((), wanted.embed_bits).to(device)
        module.output_quantizers[0] = None  # rows of the table are on its grid already
    if _NORM.fullmatch(name):
        module.param_quantizers["weight"] = grid((), 16).to(device)


def grid(shape: Sequence[int], bits: int, *, symmetric: bool = False) -> Any:
    """A quantizer. `symmetric` alone leaves 1.34's unsigned, which clips what is negative."""
    made = QuantizeDequantize(tuple(shape), bits, symmetric=symmetric)
    made.symmetric = symmetric
    made.signed = symmetric
    return made


def _seq_mse(model: td.Decoder, sim: Any, feeds: Sequence[Feed], stage: Stage) -> None:
    """Choose each channel's range by the error of its layer's output, layer after layer.

    The head is left out: at eight bits there is nothing to gain, and it is the largest matrix.
    """
    from aimet_torch.v2.seq_mse import SeqMseParams, SequentialMse

    count = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) - 1
    optimize, done = SequentialMse.optimize_module, 0

    def told(*arguments: Any) -> Any:
        nonlocal done
        made = optimize(*arguments)
        done += 1
        stage.progress(done, count, unit="layers", what="SeqMSE")
        return made

    class Heard(SequentialMse):  # type: ignore[misc]
        optimize_module = staticmethod(told)

    params = SeqMseParams(num_batches=len(feeds), num_candidates=CANDIDATES)
    Heard.apply_seq_mse(model, sim, feeds, params, modules_to_exclude=[model.head])


def _forward(stage: Stage, feeds: Sequence[Feed]) -> Callable[[Any, Any], None]:
    def forward(model: Any, _: Any) -> None:
        for done, feed in enumerate(feeds, 1):
            model(*feed)
            stage.progress(done, len(feeds), unit="chunks", what="ranges")

    return forward


def tie_cache(sim: Any, layers: int) -> None:
    """One grid for a layer's keys, one for its values: as they come in, go out and are joined."""
    modules = dict(sim.named_qmodules())
    for i in range(layers):
        for joined, new in (("keys", "k_rotary.joined"), ("values", "v_proj")):
            concat = modules[f"layers.{i}.{joined}"]
            tied = [concat.input_quantizers[0], concat.output_quantizers[0]]
            tied.append(modules[f"layers.{i}.{new}"].output_quantizers[0])
            reach = max(float(q.get_max().max()) for q in tied)
            for quantizer in tied:
                top = torch.full_like(quantizer.max, reach)
                quantizer.set_range(-top * 128 / 127, top)
    for name, module in modules.items():
        low, high = FIXED.get(name.rpartition(".")[2], (None, None))
        if low is not None and high is not None:
            quantizer = module.output_quantizers[0]
            quantizer.set_range(
                torch.full_like(quantizer.min, low), torch.full_like(quantizer.max, high)
            )


def encodings(sim: Any, layers: int) -> dict[str, list[dict[str, Any]]]:
    """What AIMET chose, by the names of the decoder graph: lists of its format 1.0.0."""
    modules = dict(sim.named_qmodules())
    found = [
        entry(td.graph_name(name), module.output_quantizers[0])
        for name, module in modules.items()
        if module.output_quantizers[0] is not None
    ]
    found += [entry(name, quantizer) for name, quantizer in _inputs(modules, layers)]
    parameters = [
        entry(f"{name}.{parameter}", quantizer)
        for name, module in modules.items()
        for parameter, quantizer in module.param_quantizers.items()
        if quantizer is not None
    ]
    return {"activation_encodings": found, "param_encodings": parameters}


def _inputs(modules: Mapping[str, Any], layers: int) -> Iterator[tuple[str, Any]]:
    """The quantizers of the model's inputs, which sit at the modules that read them first."""
    readers = {
        "attention_mask": ("layers.0.masked", 1),
        "position_ids_cos": ("layers.0.q_rotary.low_cos", 1),
        "position_ids_sin": ("layers.0.q_rotary.high_sin", 1),
    }
    for i in range(layers):
        readers[f"past_key_{i}_in"] = (f"layers.{i}.keys", 0)
        readers[f"past_value_{i}_in"] = (f"layers.{i}.values", 0)
    for name, (reader, which) in readers.items():
        quantizer = modules[reader].input_quantizers[which]
        if quantizer is None:
            raise RuntimeError(f"AIMET put no quantizer on the input {name}")
        yield name, quantizer


def entry(name: str, quantizer: Any) -> dict[str, Any]:
    """A quantizer in format 1.0.0: real = scale * (q + offset), q from 0 on."""
    low = quantizer.get_min().detach().cpu().double().reshape(-1)
    high = quantizer.get_max().detach().cpu().double().reshape(-1)
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise RuntimeError(f"AIMET found no range for {name}")
    scale = (high - low) / (2**quantizer.bitwidth - 1)
    return {
        "name": name,
        "bw": int(quantizer.bitwidth),
        "dtype": "INT",
        "enc_type": "PER_CHANNEL" if quantizer.get_min().dim() else "PER_TENSOR",
        "is_sym": bool(quantizer.symmetric),
        "scale": scale.tolist(),
        "offset": torch.round(low / scale).long().tolist(),
    }


def export(out: Path, model: td.Decoder, sim: Any, layers: int, feed: Feed) -> None:
    """The write-up's listing: onnx/ with AIMET's own export, and test_vectors/."""
    from aimet_torch.onnx_utils import OnnxExportApiArgs

    vectors = out / "test_vectors"
    vectors.mkdir(parents=True)
    (out / "onnx").mkdir()
    names = td.input_names(layers), td.output_names(layers)
    for file, module in (("fp_0.pkl", model), ("qt_0.pkl", sim.model)):
        with torch.no_grad():
            made = module(*feed)
        tensors = dict(zip((*names[0], *names[1]), (*feed, *made), strict=True))
        values = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        with (vectors / file).open("wb") as target:
            pickle.dump(values, target)
    order = json.dumps(names[1], indent=1) + "\n"
    (vectors / "layer_output_name_order.json").write_text(order, encoding="utf-8")
    args = OnnxExportApiArgs(opset_version=OPSET, input_names=names[0], output_names=names[1])
    sim.export(
        str(out / "onnx"), NAME, tuple(tensor.cpu() for tensor in feed), onnx_export_args=args
    )
    (out / "onnx" / "temp_onnx_model_with_all_markers.onnx").unlink(missing_ok=True)


def _report(
    wanted: calibrated.Wanted,
    device: str,
    told: tuple[int, float, float],
) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "quantizer": f"aimet-torch {version('aimet-torch')}, torch {torch.__version__}, {device}",
        "config": "rules of this program; 1.34 ships none for HTP",
        "seq_mse": wanted.seq_mse,
        "perplexity_tokens": told[0],
        "perplexity_float": told[1],
        "perplexity_simulated": told[2],
    }
