"""QNN: a context binary for one Snapdragon's NPU, Genie's configuration, and a proof here.

    graph ─ [calibrate] ─ quantize ─┬─ compile ─┬─ settings ─┐
                                    └───────────┴────────────┴─ proof

`graph` writes the decoder as ONNX, `quantize` makes integers of it and measures what that costs,
`compile` makes the binaries for the phone and their twins for this machine, `settings` writes
what Genie reads, `proof` lets Genie answer here. AIMET, where it is chosen, gives its ranges in a
stage of its own, `calibrate`; the graph they go into and the measure are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.backends import qnn_sizes as sizes
from edgekiln.backends.base import Contents, Finding, Outputs
from edgekiln.backends.qnn_options import QnnOptions
from edgekiln.backends.qnn_socs import DATA, Soc, find_soc
from edgekiln.errors import QualityError
from edgekiln.home import project
from edgekiln.options import Value
from edgekiln.pipeline import JSON, FromPath, FromStage, Input, Output, Pipeline, Stage

if TYPE_CHECKING:
    from edgekiln.backends.qairt_sdk import Sdk
    from edgekiln.models import Model

_TOOLCHAIN = "qnn"
_GRAPH = ("model.onnx", "model.data", "graph.json")
_QUANTISED = (*_GRAPH, "encodings.json", "vectors.npz", "quality.json", "tokenizer.json")
_CALIBRATION = {"aimet": "qnn/aimet_onnx_ptq.py", "aimet-1.34-cu121": "qnn/aimet_torch_ptq.py"}
_SETTINGS = ("genie_config.json", "htp_backend_ext_config.json", "run.sh")


class Qnn:
    """The QNN backend."""

    name = "qnn"
    options = QnnOptions

    def presets(self) -> Mapping[str, Mapping[str, Value]]:
        """default, precision, small."""
        from edgekiln.backends.qnn_checks import data

        found: Mapping[str, Mapping[str, Value]] = data()["presets"]
        return found

    def variant(self, options: QnnOptions) -> str:
        """A binary is for one chip, so each chip has its bundle."""
        return f"{self.name}-{find_soc(options.soc).soc}"

    def models(self, options: QnnOptions) -> Mapping[str, str]:
        """None beside the build's own; options are looked at here, before one is fetched."""
        from edgekiln.backends.qnn_checks import check_options

        check_options(options)
        return {}

    def plan(self, options: QnnOptions, models: Mapping[str, Model]) -> Pipeline:
        """Graph, quantize, compile, settings, and the proof unless it is left out."""
        from edgekiln.backends.qnn_checks import check_model, check_options

        check_options(options)
        check_model(models["model"], options)
        sdk = _sdk(options)
        return Pipeline(stages=tuple(_stages(options, models["model"], sdk)))

    def remedy(self, toolchain: str) -> str:
        """Without AIMET, edgekiln's own quantizer."""
        return "give --quantizer edgekiln" if toolchain.startswith("aimet") else ""

    def findings(self, options: QnnOptions, outputs: Outputs) -> list[Finding]:
        """The answer, the perplexity, the layers that lost most, the binaries."""
        found = _proved(outputs) if options.prove != "none" else []
        found += _measured(outputs.json("quantize", "quantized", "quality.json"))
        compiled = outputs.json("compile", "binaries", "compile.json")
        return [*found, *_compiled(compiled, find_soc(options.soc))]

    def judge(self, options: QnnOptions, findings: list[Finding]) -> None:
        """Hold the figures against the floors."""
        from edgekiln.backends.qnn_checks import remedies

        figures = {f.name: f.value for f in findings}
        ratio = figures["perplexity_ratio"]
        # Written so that a figure that is not a number fails.
        if not ratio <= options.max_perplexity_ratio:
            raise QualityError(
                f"the quantised model's perplexity is {ratio:.3f} times the float model's, above "
                f"{options.max_perplexity_ratio:g}",
                why=_blame(figures["worst_layers"]),
                remedy=remedies(options, "raise max_perplexity_ratio"),
            )
        cosine = figures.get("cosine_mean")
        if cosine is not None and not cosine >= options.min_cosine:
            raise QualityError(
                f"the binary's logits have a cosine of {cosine:.4f} with the float model's, below "
                f"{options.min_cosine:g}, although the perplexity is {ratio:.3f} times",
                why=f"the compiled graph does not compute what was quantised, or "
                f"{_blame(figures['worst_layers'])}",
                remedy=remedies(options, "lower min_cosine"),
            )

    def contents(
        self, options: QnnOptions, models: Mapping[str, Model], outputs: Outputs
    ) -> Contents:
        """The folder as it goes onto the phone."""
        from edgekiln.backends.qnn_phone import readme

        binaries, settings = outputs("compile", "binaries"), outputs("settings", "settings")
        compiled = outputs.json("compile", "binaries", "compile.json")
        files = {f"models/{b['file']}": binaries / b["file"] for b in compiled["binaries"]}
        files |= {name: settings / name for name in _SETTINGS}
        files |= {f"prompts/{p.name}": p for p in sorted((settings / "prompts").iterdir())}
        files["tokenizer.json"] = outputs("quantize", "quantized") / "tokenizer.json"
        libraries = _libraries(options)
        words = readme(models["model"], options, compiled, with_libraries=bool(libraries))
        return Contents(files=files | libraries, readme=words)


BACKEND = Qnn()


def _sdk(options: QnnOptions) -> Sdk | None:
    """The vendor's SDK where one was given, looked into, with a runtime that is new enough."""
    if options.qairt_sdk is None:
        return None
    from edgekiln.backends import qairt_sdk
    from edgekiln.backends.qnn_checks import QNN

    sdk = qairt_sdk.prepare(Path(options.qairt_sdk), arch=find_soc(options.soc).arch)
    if options.compiler == "ort":
        qairt_sdk.check_runtime(sdk, QNN)
    return sdk


def _libraries(options: QnnOptions) -> dict[str, Path]:
    """The phone's libraries by their names, all of one build; none without an SDK."""
    sdk = _sdk(options)
    if sdk is None:
        return {}
    from edgekiln.backends.qairt_sdk import device_libraries

    return device_libraries(sdk, find_soc(options.soc).arch)


def _stages(options: QnnOptions, model: Model, sdk: Sdk | None) -> Iterator[Stage]:
    texts: Input = FromPath(path=project() / DATA)
    source: Input = FromPath(path=model.path)
    yield _graph(source, options, model)
    read: dict[str, Input] = {
        "graph": FromStage(stage="graph", output="graph"),
        "model": source,
        "texts": texts,
    }
    if options.quantizer != "edgekiln":
        yield _calibrate(read, options, model)
        read["calibrated"] = FromStage(stage="calibrate", output="calibrated")
    yield _quantize(read, options, model)
    yield _compile(options, model, sdk)
    yield _settings(source, texts, options)
    if options.prove != "none":
        yield _proof(options, model)


def _graph(source: Input, options: QnnOptions, model: Model) -> Stage:
    return Stage(
        name="graph",
        toolchain=_TOOLCHAIN,
        program="qnn/graph.py",
        inputs={"model": source},
        outputs=(Output(name="graph", files=_GRAPH),),
        params=_given(options, "context_length", "prefill_length"),
        memory=sizes.graph_memory(model),
        disk=sizes.float_bytes(model),
    )


def _calibrate(read: Mapping[str, Input], options: QnnOptions, model: Model) -> Stage:
    from edgekiln.backends.qnn_checks import block

    names = ("weight_bits", "head_bits", "embed_bits", "seq_mse", "calibration_tokens")
    params = _given(options, *names) | find_soc(options.soc).params()
    params["weight_block"] = block(model, options)
    return Stage(
        name="calibrate",
        toolchain=options.quantizer,
        program=_CALIBRATION[options.quantizer],
        inputs={**read, **_texts(options, "calibration")},
        outputs=(Output(name="calibrated", files=("encodings.json", "calibrated.json")),),
        params=params,
        memory=sizes.calibrate_memory(model, options),
        disk=2 * sizes.float_bytes(model),  # AIMET saves the model to look at parts of it
        vram=sizes.vram(model, options),
    )


def _quantize(read: Mapping[str, Input], options: QnnOptions, model: Model) -> Stage:
    from edgekiln.backends.qnn_checks import block

    names = ["weight_bits", "head_bits", "embed_bits", "calibration_tokens"]
    own = options.quantizer == "edgekiln"
    params = _given(options, *names, *(("rotate", "gptq") if own else ()))
    return Stage(
        name="quantize",
        toolchain=_TOOLCHAIN,
        program="qnn/quantize.py" if own else "qnn/aimet_qdq.py",
        inputs={**read, **_texts(options, "calibration", "evaluation")},
        outputs=(Output(name="quantized", files=_QUANTISED),),
        params={**params, "weight_block": block(model, options)},
        memory=sizes.quantize_memory(model, options),
        disk=sizes.quantised_bytes(model, options),
    )


def _compile(options: QnnOptions, model: Model, sdk: Sdk | None) -> Stage:
    own = options.compiler == "ort"
    inputs: dict[str, Input] = {"quantized": FromStage(stage="quantize", output="quantized")}
    if sdk is not None and not own:
        inputs["sdk"] = FromPath(path=sdk.root)
    return Stage(
        name="compile",
        toolchain=_TOOLCHAIN if own else "qairt",
        program="qnn/compile.py" if own else "qnn/qairt_compile.py",
        inputs=inputs,
        outputs=(Output(name="binaries", files=("compile.json",)), Output(name="twins")),
        params=find_soc(options.soc).params() | _given(options, "splits", "optimization"),
        memory=sizes.compile_memory(model, options),
        disk=sizes.binaries_bytes(model, options),
    )


def _settings(source: Input, texts: Input, options: QnnOptions) -> Stage:
    sampler = ("greedy", "temperature", "top_k", "top_p", "sampler_seed")
    names = ("system_prompt", *sampler, "threads", "cpu_mask", "use_mmap", "poll")
    return Stage(
        name="settings",
        toolchain=_TOOLCHAIN,
        program="qnn/settings.py",
        inputs={
            "model": source,
            "texts": texts,
            "quantized": FromStage(stage="quantize", output="quantized"),
            "binaries": FromStage(stage="compile", output="binaries"),
        },
        outputs=(Output(name="settings", files=(*_SETTINGS, "settings.json")),),
        params=find_soc(options.soc).params() | _given(options, *names),
        memory=256 << 20,
        disk=1 << 20,
    )


def _proof(options: QnnOptions, model: Model) -> Stage:
    params = _given(options, "prove", "answer_tokens")
    return Stage(
        name="proof",
        toolchain=_TOOLCHAIN,
        program="qnn/proof.py",
        inputs={
            "quantized": FromStage(stage="quantize", output="quantized"),
            "twins": FromStage(stage="compile", output="twins"),
            "settings": FromStage(stage="settings", output="settings"),
        },
        outputs=(Output(name="proof", files=("proof.json",)),),
        params={**params, "seconds": options.prove_seconds},
        memory=sizes.proof_memory(model, options),
        disk=1 << 20,
    )


def _given(options: QnnOptions, *names: str) -> dict[str, JSON]:
    return {name: getattr(options, name) for name in names}


def _texts(options: QnnOptions, *names: str) -> dict[str, Input]:
    given = {name: getattr(options, name) for name in names}
    return {name: FromPath(path=Path(path)) for name, path in given.items() if path is not None}


def _proved(outputs: Outputs) -> list[Finding]:
    proof = outputs.json("proof", "proof", "proof.json")
    found = []
    if proof["answers"]:
        first = proof["answers"][0]
        text = f"{first['prompt']}\n  {first['answer']}"
        found.append(Finding(name="answer", value=first, text=text))
    cosine = proof.get("cosine_mean")
    if cosine is not None:
        least = proof.get("cosine_min", cosine)
        text = f"cosine of logits, NPU emulation and float model: {cosine:.4f} (least {least:.4f})"
        found.append(Finding(name="cosine_mean", value=cosine, text=text))
    return [*found, Finding(name="proof", value=proof, text=_agreement(proof))]


def _agreement(proof: Mapping[str, Any]) -> str:
    answers = proof["answers"]
    alike = sum(bool(answer.get("agrees")) for answer in answers)
    text = f"Genie's answers follow the float model for {alike} of {len(answers)} prompts"
    return f"{text}; emulated on this machine, which says nothing of a phone's speed"


def _measured(quality: Mapping[str, Any]) -> list[Finding]:
    from edgekiln.backends.qnn_checks import losses, worst_layers

    before, after = quality["perplexity_float"], quality["perplexity_quantised"]
    ratio, tokens = quality["perplexity_ratio"], quality["perplexity_tokens"]
    text = (
        f"perplexity: {before:.2f} before, {after:.2f} after ({ratio:.3f} times), {tokens} tokens"
    )
    worst = worst_layers(quality)
    shown = {k: v for k, v in quality.items() if k not in ("layers", "prompts")}
    return [
        Finding(name="perplexity_ratio", value=ratio, text=text),
        Finding(name="worst_layers", value=worst, text=f"layers that lost most: {losses(worst)}"),
        Finding(name="quality", value=shown, text=f"quantised by {quality['quantizer']}"),
    ]


def _blame(worst: list[dict[str, Any]]) -> str:
    from edgekiln.backends.qnn_checks import losses

    return f"these layers lost most: {losses(worst)}"


def _compiled(compiled: Mapping[str, Any], soc: Soc) -> list[Finding]:
    sized = ", ".join(f"{b['file']} {units.size(b['bytes'])}" for b in compiled["binaries"])
    text = (
        f"{sized}: for {soc.title}, Hexagon {soc.arch}, QNN {compiled['qnn_build']}, "
        f"{compiled['nodes_on_cpu']} nodes on the processor; {_sharing(compiled, soc)}"
    )
    return [Finding(name="binaries", value=dict(compiled), text=text)]


def _sharing(compiled: Mapping[str, Any], soc: Soc) -> str:
    if not compiled["shared"]:
        return f"a binary for each graph: Hexagon {soc.arch} cannot share weights between them"
    times = [b["times_larger_alone"] for b in compiled["binaries"] if "times_larger_alone" in b]
    grown = f", {max(times):.3f} times the larger of them alone" if times else ""
    return f"both graphs on one copy of the weights{grown}"
