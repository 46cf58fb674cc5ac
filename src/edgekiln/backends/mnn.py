"""MNN: llmexport's model files, a config.json for the phone, and a proof on this machine.

    reference ─────────────┐         what the model says in 32-bit floats
    export ────┬───────────┤         output `mnn`: the model files
    draft ─────┤           │         the draft model's, where one is asked for
               └─ configure ─ prove  outputs `config` and `prove`

The bundle takes every file of export's `mnn` but its config.json and export_args.json, puts
configure's config.json beside them, and the same of the draft into draft/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.backends.base import Contents, Finding, Outputs
from edgekiln.backends.mnn_options import EXPORT, FILES, RUNTIME, SPECULATIVE, MnnOptions
from edgekiln.backends.mnn_sizes import (
    export_memory,
    exported_bytes,
    prove_memory,
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
        """One bundle serves every phone."""
        return self.name

    def models(self, options: MnnOptions) -> Mapping[str, str]:
        """The draft model, where one is asked for."""
        return {"draft": options.draft_model} if options.draft_model else {}

    def plan(self, options: MnnOptions, models: Mapping[str, Model]) -> Pipeline:
        """Reference and export, side by side; then configure and prove."""
        from edgekiln.backends.mnn_checks import check_model, check_options

        check_options(options)
        for role, model in models.items():
            check_model(model, options if role == "model" else _draft_options(options))
        return Pipeline(stages=tuple(_stages(options, models)))

    def findings(self, options: MnnOptions, outputs: Outputs) -> list[Finding]:
        """The answer, the closeness to the float model, the host's speed."""
        text = (outputs("prove", "prove") / "prove.json").read_text(encoding="utf-8")
        return list(_findings(json.loads(text)))

    def judge(self, options: MnnOptions, findings: list[Finding]) -> None:
        """Hold the figures against the floors."""
        figures = {f.name: f.value for f in findings}
        cosine, ratio = figures["cosine_mean"], figures["perplexity_ratio"]
        found = f"cosine {cosine:.4f}, perplexity {ratio:.3f} times the float model's"
        # Written so that a figure that is not a number fails.
        if not (cosine >= options.min_cosine and ratio <= options.max_perplexity_ratio):
            raise QualityError(
                f"the quantised model is too far from the float one: {found}",
                why=f"the floor is cosine {options.min_cosine:g} and "
                f"{options.max_perplexity_ratio:g} times the perplexity",
                remedy="take the preset precision, more bits or a smaller block; "
                "or lower min_cosine or raise max_perplexity_ratio",
            )

    def contents(
        self, options: MnnOptions, models: Mapping[str, Model], outputs: Outputs
    ) -> Contents:
        """mnn_models/NAME/ as it goes onto the phone."""
        from edgekiln.backends.mnn_phone import readme

        root = f"mnn_models/{models['model'].name}"
        config = outputs("configure", "config")
        files = _files(root, outputs("export", "mnn"), config / "config.json")
        if "draft" in models:
            draft = outputs("draft", "mnn")
            files |= _files(f"{root}/draft", draft, config / "draft" / "config.json")
        threads = options.threads or _THREADS[options.backend_type]
        words = readme(models["model"], options, threads)
        return Contents(files=files, readme=words)


BACKEND = Mnn()


def _stages(options: MnnOptions, models: Mapping[str, Model]) -> Iterator[Stage]:
    model, draft = models["model"], models.get("draft")
    texts = FromPath(path=project() / _TEXTS)
    yield _reference(model, options, texts)
    yield _export("export", model, options)
    inputs: dict[str, Input] = {"mnn": FromStage(stage="export", output="mnn")}
    if draft is not None:
        yield _export("draft", draft, _draft_options(options))
        inputs["draft"] = FromStage(stage="draft", output="mnn")
    yield _configure(inputs, options)
    yield _prove(inputs, texts, options, model, draft)


def _reference(model: Model, options: MnnOptions, texts: Input) -> Stage:
    params: dict[str, JSON] = {"trust_remote_code": True} if options.trust_remote_code else {}
    return Stage(
        name="reference",
        toolchain=_TOOLCHAIN,
        program="mnn/reference.py",
        inputs={"model": FromPath(path=model.path), "texts": texts},
        outputs=(Output(name="reference", files=("reference.json", "logits.npz")),),
        params=params,
        memory=reference_memory(model),
        disk=64 << 20,
    )


def _export(name: str, model: Model, options: MnnOptions) -> Stage:
    from edgekiln.backends.mnn_checks import block, lm_block

    inputs: dict[str, Input] = {"model": FromPath(path=model.path)}
    for option, source in FILES.items():
        if (path := getattr(options, option)) is not None:
            inputs[source] = FromPath(path=Path(path))
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
            "reference": FromStage(stage="reference", output="reference"),
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


def _findings(proof: Mapping[str, Any]) -> Iterator[Finding]:
    first = proof["answers"][0]
    text = f"{first['prompt']}\n  {first['answer']}"
    yield Finding(name="answer", value=first, text=text)
    cosine, least = proof["cosine_mean"], proof["cosine_min"]
    text = f"cosine of logits with the float model: {cosine:.4f} (least {least:.4f})"
    yield Finding(name="cosine_mean", value=cosine, text=text)
    before, after = proof["perplexity_float"], proof["perplexity_quantised"]
    ratio = proof["perplexity_ratio"]
    text = f"perplexity: {before:.2f} before, {after:.2f} after ({ratio:.3f} times)"
    yield Finding(name="perplexity_ratio", value=ratio, text=text)
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
    yield Finding(name="proof", value=proof, text=_words(proof))


def _words(proof: Mapping[str, Any]) -> str:
    alike = sum(e["same_next_token"] for e in proof["prompts"])
    return f"the same next token as the float model for {alike} of {len(proof['prompts'])} prompts"
