"""MNN: llmexport's model files, a config.json for the phone, and a proof on this machine.

    reference ─────────────┐         what the model says in 32-bit floats
    export ────┬───────────┤         output `mnn`: the model files
    draft ─────┤           │         the draft model's, where one is asked for
               └─ configure ─ prove  outputs `config` and `prove`

With sparsity a pruned model is exported, and the proof is held against what that one says:

    reference                        the dense model, for the loss by pruning
    prune ─┬─ sparse_reference ─┐    the sparse one, in 32-bit floats still
           └─ export ───────────┴ …

What is built for the device beside it is in mnn_device. The bundle takes every file of export's
`mnn` but its config.json and export_args.json, puts configure's config.json beside them, and the
same of the draft into draft/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.backends import closeness
from edgekiln.backends.base import Contents, Finding, Outputs
from edgekiln.backends.mnn_options import EXPORT, FILES, RUNTIME, SPECULATIVE, MnnOptions
from edgekiln.backends.mnn_sizes import (
    export_memory,
    exported_bytes,
    prove_memory,
    prune_memory,
    reference_memory,
)
from edgekiln.errors import QualityError
from edgekiln.home import project
from edgekiln.options import Value
from edgekiln.pipeline import JSON, FromPath, FromStage, Input, Output, Pipeline, Stage

if TYPE_CHECKING:
    from edgekiln.models import Model

_TOOLCHAIN = "mnn"
_MODEL_FILES = ("llm.mnn", "llm.mnn.weight", "llm_config.json", "tokenizer.mtok")
# llmexport leaves these for people and for itself; the phone does not read them.
_NOT_FOR_THE_PHONE = ("config.json", "export_args.json", "llm.mnn.json")
_TEXTS = Path("scripts/mnn/data")
# What activations are looked at with where the user gives no text: the proof never reads it.
_CALIBRATION = Path("scripts/qnn/data/calibration.txt")
_THREADS = {"cpu": 4, "opencl": 68, "metal": 4}


class Mnn:
    """The MNN backend."""

    name = "mnn"
    options = MnnOptions

    def presets(self) -> Mapping[str, Mapping[str, Value]]:
        """default, precision, memory, extreme-speed."""
        from edgekiln.backends.mnn_checks import data

        found: Mapping[str, Mapping[str, Value]] = data()["presets"]
        return found

    def variant(self, options: MnnOptions) -> str:
        """One bundle serves every phone, unless it holds binaries for one chip's NPU."""
        if not options.npu or options.soc is None:
            return self.name
        from edgekiln.backends.qnn_socs import find_soc

        return f"{self.name}-{find_soc(options.soc).soc}"

    def models(self, options: MnnOptions) -> Mapping[str, str]:
        """The draft model, where one is asked for."""
        return {"draft": options.draft_model} if options.draft_model else {}

    def plan(self, options: MnnOptions, models: Mapping[str, Model]) -> Pipeline:
        """Reference and export, side by side; then configure and prove; then the device's."""
        from edgekiln.backends import mnn_device
        from edgekiln.backends.mnn_checks import as_built, check_model, check_options

        check_options(options)
        for role, model in models.items():
            check_model(model, options if role == "model" else _draft_options(options))
        built = as_built(options)
        device = mnn_device.stages(built, models["model"], mnn_device.sdk_of(built))
        return Pipeline(stages=(*_stages(built, models), *device))

    def remedy(self, toolchain: str) -> str:
        """The model itself is made without the toolchain for Android."""
        wanted = toolchain.startswith("mnn-android")
        return "leave out --runtime, --npu and --app to build the model alone" if wanted else ""

    def findings(self, options: MnnOptions, outputs: Outputs) -> list[Finding]:
        """The answer, the closeness to the float model, the host's speed, what was pruned."""
        from edgekiln.backends import mnn_device
        from edgekiln.backends.mnn_checks import as_built

        proof = outputs.json("prove", "prove", "prove.json")
        sparse = options.sparsity != "none"
        found = list(_findings(proof, "the sparse float model" if sparse else "the float model"))
        if sparse:
            found.insert(1, _pruned(proof, outputs))
        return [*found, *mnn_device.findings(as_built(options), outputs)]

    def judge(self, options: MnnOptions, findings: list[Finding]) -> None:
        """Hold the figures against the floors."""
        figures = {f.name: f.value for f in findings}
        if "sparsity" in figures:
            _judge_sparsity(options, figures["sparsity"])
        closeness.judge(
            figures,
            min_cosine=options.min_cosine,
            max_perplexity_ratio=options.max_perplexity_ratio,
            remedy="take the preset precision, more bits or a smaller block",
        )

    def contents(
        self, options: MnnOptions, models: Mapping[str, Model], outputs: Outputs
    ) -> Contents:
        """mnn_models/NAME/ as it goes onto the phone."""
        from edgekiln.backends import mnn_device
        from edgekiln.backends.mnn_checks import as_built
        from edgekiln.backends.mnn_phone import readme

        root = f"mnn_models/{models['model'].name}"
        config = outputs("configure", "config")
        files = _files(root, outputs("export", "mnn"), config / "config.json")
        if "draft" in models:
            draft = outputs("draft", "mnn")
            files |= _files(f"{root}/draft", draft, config / "draft" / "config.json")
        files |= mnn_device.files(as_built(options), models["model"].name, outputs)
        threads = options.threads or _THREADS[options.backend_type]
        words = readme(models["model"], options, threads)
        return Contents(files=files, readme=words)


BACKEND = Mnn()


def _stages(options: MnnOptions, models: Mapping[str, Model]) -> Iterator[Stage]:
    model, draft = models["model"], models.get("draft")
    texts = FromPath(path=project() / _TEXTS)
    source: Input = FromPath(path=model.path)
    yield _reference("reference", source, model, options, texts)
    if options.sparsity != "none":
        yield _prune(model, options)
        source = FromStage(stage="prune", output="sparse")
        yield _reference("sparse_reference", source, model, options, texts)
    yield _export("export", source, model, options)
    inputs: dict[str, Input] = {"mnn": FromStage(stage="export", output="mnn")}
    if draft is not None:
        yield _export("draft", FromPath(path=draft.path), draft, _draft_options(options))
        inputs["draft"] = FromStage(stage="draft", output="mnn")
    yield _configure(inputs, options)
    yield _prove(inputs, texts, options, model, draft)


def _prune(model: Model, options: MnnOptions) -> Stage:
    from edgekiln.backends.mnn_checks import wanda

    inputs: dict[str, Input] = {"model": FromPath(path=model.path)}
    params: dict[str, JSON] = {"method": options.sparsity_method}
    if wanda(options):
        inputs["calibration"] = FromPath(path=_calibration(options))
        params |= {"tokens": options.sparsity_tokens}
        params |= {"trust_remote_code": True} if options.trust_remote_code else {}
    return Stage(
        name="prune",
        toolchain=_TOOLCHAIN,
        program="mnn/prune2to4.py",
        inputs=inputs,
        outputs=(
            Output(name="sparse", files=("config.json",)),
            Output(name="pruned", files=("pruned.json",)),
        ),
        params=params,
        memory=prune_memory(model, options),
        disk=model.weight_bytes,
    )


def _calibration(options: MnnOptions) -> Path:
    return Path(options.calib_data) if options.calib_data else project() / _CALIBRATION


def _reference(name: str, source: Input, model: Model, options: MnnOptions, texts: Input) -> Stage:
    params: dict[str, JSON] = {"trust_remote_code": True} if options.trust_remote_code else {}
    return Stage(
        name=name,
        toolchain=_TOOLCHAIN,
        program="mnn/reference.py",
        inputs={"model": source, "texts": texts},
        outputs=(Output(name="reference", files=("reference.json", "logits.npz")),),
        params=params,
        memory=reference_memory(model),
        disk=64 << 20,
    )


def _export(name: str, source: Input, model: Model, options: MnnOptions) -> Stage:
    from edgekiln.backends.mnn_checks import block, lm_block

    inputs: dict[str, Input] = {"model": source}
    for option, file in FILES.items():
        if (path := getattr(options, option)) is not None:
            inputs[file] = FromPath(path=Path(path))
    if options.awq or options.smooth or options.omni:
        inputs["calib_data"] = FromPath(path=_calibration(options))
    else:
        inputs.pop("calib_data", None)  # wanda's alone
    params: dict[str, JSON] = {n: getattr(options, n) for n in EXPORT}
    params |= {"quant_block": block(model, options), "lm_quant_block": lm_block(model, options)}
    return Stage(
        name=name,
        toolchain=_TOOLCHAIN,
        program="mnn/export.py",
        inputs=inputs,
        outputs=(Output(name="mnn", files=(*_MODEL_FILES, "config.json")),),
        params=params,
        memory=export_memory(model, options),
        disk=exported_bytes(model, options),
    )


def _configure(inputs: Mapping[str, Input], options: MnnOptions) -> Stage:
    from edgekiln.backends.mnn_checks import mixed

    params: dict[str, JSON] = {n: getattr(options, n) for n in (*RUNTIME, *SPECULATIVE)}
    params["mixed_samplers"] = list(mixed(options))
    files = ("config.json", "draft/config.json") if "draft" in inputs else ("config.json",)
    return Stage(
        name="configure",
        toolchain=_TOOLCHAIN,
        program="mnn/configure.py",
        inputs=inputs,
        outputs=(Output(name="config", files=files),),
        params=params,
        memory=128 << 20,
        disk=1 << 20,
    )


def _prove(
    inputs: Mapping[str, Input],
    texts: Input,
    options: MnnOptions,
    model: Model,
    draft: Model | None,
) -> Stage:
    return Stage(
        name="prove",
        toolchain=_TOOLCHAIN,
        program="mnn/prove.py",
        inputs={
            **inputs,
            "config": FromStage(stage="configure", output="config"),
            "reference": FromStage(
                stage="reference" if options.sparsity == "none" else "sparse_reference",
                output="reference",
            ),
            "texts": texts,
        },
        outputs=(Output(name="prove", files=("prove.json",)),),
        memory=prove_memory(model, options) + (prove_memory(draft, options) if draft else 0),
        disk=1 << 20,
    )


def _draft_options(options: MnnOptions) -> MnnOptions:
    """A draft is exported plainly: its answers are checked by the model it drafts for."""
    return MnnOptions(
        quant_bit=options.draft_quant_bit,
        hqq=options.draft_quant_bit < 8,
        trust_remote_code=options.trust_remote_code,
    )


def _files(root: str, export: Path, config: Path) -> dict[str, Path]:
    found = {f"{root}/config.json": config}
    for file in sorted(export.iterdir()):
        if file.name not in _NOT_FOR_THE_PHONE:
            found[f"{root}/{file.name}"] = file
    return found


def _pruned(proof: Mapping[str, Any], outputs: Outputs) -> Finding:
    """What pruning cost, apart from what quantising did."""
    dense = outputs.json("reference", "reference", "reference.json")["perplexity"]
    told = outputs.json("prune", "pruned", "pruned.json")
    sparse, quantised = proof["perplexity_float"], proof["perplexity_quantised"]
    value = {
        **{k: told[k] for k in ("pattern", "method", "weights", "share_of_zeros", "lost_most")},
        "perplexity_dense": dense,
        "perplexity_sparse": sparse,
        "perplexity_sparse_quantised": quantised,
        "ratio": sparse / dense,
        "ratio_in_all": quantised / dense,
    }
    text = (
        f"{told['pattern']} sparse by {told['method']}: perplexity {dense:.2f} dense, "
        f"{sparse:.2f} sparse ({sparse / dense:.3f} times), "
        f"{quantised:.2f} sparse and quantised ({quantised / dense:.3f} times in all)"
    )
    return Finding(name="sparsity", value=value, text=text)


def _judge_sparsity(options: MnnOptions, value: Mapping[str, Any]) -> None:
    # Written so that a figure that is not a number fails.
    if not value["ratio"] <= options.max_sparsity_ratio:
        other = "" if options.sparsity_method == "wanda" else "take --sparsity-method wanda; or "
        raise QualityError(
            f"pruned to {value['pattern']} the float model's perplexity is "
            f"{value['ratio']:.3f} times the dense one's, above {options.max_sparsity_ratio:g}",
            why="half of its weights are gone, and nothing was trained to make up for them",
            remedy=f"{other}give calib_data that is closer to what the model will read, build "
            "without --sparsity, or raise max_sparsity_ratio",
        )


def _findings(proof: Mapping[str, Any], against: str) -> Iterator[Finding]:
    yield from closeness.findings(proof, against)
    fast, slow = proof["prefill_tokens_per_second"], proof["decode_tokens_per_second"]
    if fast and slow:
        threads = proof["threads"]
        text = f"on this machine: {fast:.0f} tokens/s in, {slow:.0f} out, {threads} threads"
        value = {"prefill": fast, "decode": slow, "threads": threads}
        yield Finding(name="host_tokens_per_second", value=value, text=text)
    if "draft" in proof:
        share = proof["draft"]["agreement"]
        text = f"the draft chooses the model's token {share:.0%} of the time"
        yield Finding(name="draft", value=proof["draft"], text=text)
    yield Finding(name="proof", value=proof, text=_words(proof, against))


def _words(proof: Mapping[str, Any], against: str) -> str:
    alike = sum(e["same_next_token"] for e in proof["prompts"])
    return f"the same next token as {against} for {alike} of {len(proof['prompts'])} prompts"
