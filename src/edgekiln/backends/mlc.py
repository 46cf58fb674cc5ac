"""MLC: weights and a model library for one kind of device, mlc4j and an app, and a proof here.

    reference ──────────────────────────────┐
    weights ──┬──────────────────────────── prove    the model compiled for this machine, too
    config ───┼─ host ──────────────────────┘
              ├─ library ── objects                  what is in it: machine, symbols, kernels
              └─────┴─ package ── apk                mlc4j and MLCChat, for Android

Each further model of a package (`also`) has weights, config, library and objects of its own, with
a number behind the name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.backends import mlc_sizes as sizes
from edgekiln.backends.base import Contents, Finding, Outputs
from edgekiln.backends.mlc_options import MlcOptions
from edgekiln.backends.mlc_package import CONFIG, Packed, package_config
from edgekiln.backends.ndks import with_ndk
from edgekiln.errors import QualityError
from edgekiln.home import project
from edgekiln.options import Value
from edgekiln.pipeline import JSON, FromPath, FromStage, Input, Output, Pipeline, Stage

if TYPE_CHECKING:
    from edgekiln.backends.mlc_memory import Memory
    from edgekiln.models import Model

_TEXTS = Path("scripts/mnn/data")
_MB = 1 << 20
_PAGE = 16384
_HOST = "host.so"
_REMEDIES: Mapping[str, str] = {
    "mlc": "give --mlc-source DIR, a checkout of mlc-llm, to take Apache TVM from the index",
    "mlc-android": "give --no-package, to make weights, library and configuration only",
}


class Mlc:
    """The MLC backend."""

    name = "mlc"
    options = MlcOptions

    def presets(self) -> Mapping[str, Mapping[str, Value]]:
        """default, precision, adreno."""
        from edgekiln.backends.mlc_checks import data

        found: Mapping[str, Mapping[str, Value]] = data()["presets"]
        return found

    def variant(self, options: MlcOptions) -> str:
        """A library is for one kind of device, so each has its bundle; `mlc` is Android's."""
        target = options.target.replace(":", "-")
        return self.name if target == "android" else f"{self.name}-{target}"

    def models(self, options: MlcOptions) -> Mapping[str, str]:
        """The further models of the package; options are looked at here, before one is fetched."""
        from edgekiln.backends.mlc_checks import also, check_options

        check_options(options)
        return {f"also-{n}": reference for n, reference in enumerate(also(options), 1)}

    def plan(self, options: MlcOptions, models: Mapping[str, Model]) -> Pipeline:
        """Weights, configuration, library and what they are looked at with; package and app."""
        from edgekiln.backends.mlc_checks import check_model, check_options

        check_options(options)
        for model in models.values():
            check_model(model, options)
        return Pipeline(stages=tuple(_Build(options, models).stages()))

    def remedy(self, toolchain: str) -> str:
        """What to do without a toolchain that cannot be had."""
        return _REMEDIES.get(toolchain.partition("@")[0], "")

    def findings(self, options: MlcOptions, outputs: Outputs) -> list[Finding]:
        """The answer, the closeness to the float model; what was made and what it takes."""
        from edgekiln.backends.mlc_checks import packaged, target_of

        found = list(_proved(outputs)) if options.prove != "none" else []
        found += _converted(outputs)
        found += _compiled(options, outputs)
        if target_of(options).android:
            found.append(_looked(outputs))
        if packaged(options):
            found.append(_packaged(outputs))
        return [*found, _app(outputs)] if options.apk != "none" else found

    def judge(self, options: MlcOptions, findings: list[Finding]) -> None:
        """Hold the figures against the floors, and the estimated memory against the log's."""
        figures = {f.name: f.value for f in findings}
        _judge_memory(figures["memory"])
        if options.prove == "none":
            return
        cosine, ratio = figures["cosine_mean"], figures["perplexity_ratio"]
        # Written so that a figure that is not a number fails.
        if not (cosine >= options.min_cosine and ratio <= options.max_perplexity_ratio):
            raise QualityError(
                "the quantised model is too far from the float one: "
                f"cosine {cosine:.4f}, perplexity {ratio:.3f} times the float model's",
                why=f"the floor is cosine {options.min_cosine:g} and "
                f"{options.max_perplexity_ratio:g} times the perplexity",
                remedy="take the preset precision or another quantization (q4f32_1, q0f16); or "
                "lower min_cosine or raise max_perplexity_ratio",
            )

    def contents(
        self, options: MlcOptions, models: Mapping[str, Model], outputs: Outputs
    ) -> Contents:
        """Weights and configuration as they go onto a device, the libraries, the package."""
        from edgekiln.backends.mlc_phone import readme

        build = _Build(options, models)
        files: dict[str, Path] = {}
        for role, name in build.names.items():
            files |= _below(name, outputs(f"weights{_number(role)}", "weights"))
            files |= _below(name, outputs(f"config{_number(role)}", "config"))
            files |= _below("lib", outputs(f"library{_number(role)}", "library"))
        texts = {}
        if build.android:
            config = package_config(build.packed(), bundle_weights=options.bundle_weights)
            texts[CONFIG] = json.dumps(config, indent=2) + "\n"
        if build.package:
            files |= _mlc4j(outputs("package", "package"))
        if options.apk != "none":
            files["MLCChat.apk"] = outputs("apk", "apk") / "MLCChat.apk"
        return Contents(files=files, texts=texts, readme=readme(build.packed(), options, files))


BACKEND = Mlc()


class _Build:
    """A build's models with their names, and the stages made of them."""

    def __init__(self, options: MlcOptions, models: Mapping[str, Model]) -> None:
        from edgekiln.backends import mlc_checks as checks

        self.options, self.models = options, models
        target = checks.target_of(options)
        self.android, self.package = target.android, checks.packaged(options)
        self.prefixes = checks.prefixes(models, options)
        self.names = {role: checks.model_id(model, options) for role, model in models.items()}
        self.suffix = ".tar" if options.objects_only else target.suffix
        self._hubs = checks.hubs(options)
        self._core = "tvm" if options.mlc_source else "mlc"
        self._source: dict[str, Input] = {}
        self._checkout: dict[str, Input] = {}
        if options.mlc_source is not None:
            place = Path(options.mlc_source)
            self._source["source"] = FromPath(path=place / "python")
            self._checkout["source"] = FromPath(path=place)

    def library(self, role: str) -> str:
        """The file name of a model's library."""
        stem = self.prefixes[role].removesuffix("_")
        target = self.options.target.replace(":", "-")
        return f"{stem or f'{self.names[role]}-{target}'}{self.suffix}"

    def packed(self) -> list[Packed]:
        """The models as the package and its configuration name them."""
        return [
            Packed(
                model_id=self.names[role],
                model_lib=Path(self.library(role)).stem,
                hub=self._hubs[n] if n < len(self._hubs) else None,
                vram=self._vram(model),
                sizes=self._sizes(model),
            )
            for n, (role, model) in enumerate(self.models.items())
        ]

    def stages(self) -> Iterator[Stage]:
        """All of them, each behind those it reads."""
        for role, model in self.models.items():
            yield self._weights(role, model)
            yield self._config(role, model)
            yield self._library(f"library{_number(role)}", role, self.options.target)
            if self.android:
                yield self._objects(role)
        if self.options.prove != "none":
            model, texts = self.models["model"], FromPath(path=project() / _TEXTS)
            yield self._reference(model, texts)
            yield self._library("host", "model", "cpu")
            yield self._prove(model, texts)
        if self.package:
            yield self._package()
        if self.options.apk != "none":
            yield from self._app()

    def _sizes(self, model: Model) -> dict[str, int]:
        from edgekiln.backends.mlc_checks import sizes_of

        return sizes_of(model, self.options)

    def _vram(self, model: Model) -> int:
        """estimated_vram_bytes."""
        from edgekiln.backends.mlc_checks import window_of

        found = sizes.memory_of(model, self.options)
        return found.estimate(window_of(model, self.options), self.options.vram_safety)

    def _kind(self, role: str) -> dict[str, JSON]:
        """What all stages of a model are told; model_type is the build's own model's."""
        kind = self.options.model_type if role == "model" else "auto"
        return {"quantization": self.options.quantization, "model_type": kind}

    def _weights(self, role: str, model: Model) -> Stage:
        return Stage(
            name=f"weights{_number(role)}",
            toolchain=self._core,
            program="mlc/weights.py",
            inputs={"model": FromPath(path=model.path), **self._source},
            outputs=(
                Output(name="weights", files=("tensor-cache.json",)),
                Output(name="weights-report", files=("weights.json",)),
            ),
            params=self._kind(role),
            memory=sizes.weights_memory(model),
            disk=sizes.weights_bytes(model, self.options),
        )

    def _config(self, role: str, model: Model) -> Stage:
        params: dict[str, JSON] = {**self._kind(role), **self._sizes(model)}
        params |= {"conv_template": self.options.conv_template if role == "model" else "auto"}
        return Stage(
            name=f"config{_number(role)}",
            toolchain=self._core,
            program="mlc/chatconfig.py",
            inputs={"model": FromPath(path=model.path), **self._source},
            outputs=(
                Output(name="config", files=("mlc-chat-config.json",)),
                Output(name="config-report", files=("config.json",)),
            ),
            params={**params, "model_name": model.name},
            memory=1 << 30,
            disk=64 << 20,
        )

    def _library(self, name: str, role: str, target: str) -> Stage:
        """A library for the device, or for this machine to prove the model on."""
        here = name == "host"
        file = _HOST if here else self.library(role)
        params: dict[str, JSON] = {
            **self._kind(role),
            "target": target,
            "file": file,
            "system_lib_prefix": "" if here else self.prefixes[role],
            "opt": self.options.opt,
        }
        if target == "cuda":
            params["cuda_arch"] = self.options.cuda_arch
        config = FromStage(stage=f"config{_number(role)}", output="config")
        return Stage(
            name=name,
            toolchain=self._core,
            program="mlc/library.py",
            inputs={"config": config, **self._source},
            outputs=(
                Output(name="library", files=(file,)),
                Output(name="library-report", files=("library.json",)),
            ),
            params=params,
            memory=sizes.compile_memory(),
            disk=64 << 20,
        )

    def _objects(self, role: str) -> Stage:
        return Stage(
            name=f"objects{_number(role)}",
            toolchain=self._core,
            program="mlc/objects.py",
            inputs={"library": FromStage(stage=f"library{_number(role)}", output="library")},
            outputs=(Output(name="objects", files=("objects.json",)),),
            params={
                "file": self.library(role),
                "system_lib_prefix": self.prefixes[role],
                "target": self.options.target,
            },
            memory=256 << 20,
            disk=1 << 20,
        )

    def _reference(self, model: Model, texts: Input) -> Stage:
        trusted: dict[str, JSON] = {"trust_remote_code": True}
        return Stage(
            name="reference",
            toolchain=self._core,
            program="mnn/reference.py",
            inputs={"model": FromPath(path=model.path), "texts": texts},
            outputs=(Output(name="reference", files=("reference.json", "logits.npz")),),
            params=trusted if self.options.trust_remote_code else {},
            memory=sizes.reference_memory(model),
            disk=64 << 20,
        )

    def _prove(self, model: Model, texts: Input) -> Stage:
        return Stage(
            name="prove",
            toolchain=self._core,
            program="mlc/proving.py",
            inputs={
                "library": FromStage(stage="host", output="library"),
                "weights": FromStage(stage="weights", output="weights"),
                "config": FromStage(stage="config", output="config"),
                "reference": FromStage(stage="reference", output="reference"),
                "texts": texts,
            },
            outputs=(Output(name="prove", files=("prove.json",)),),
            params={"prove": self.options.prove, "file": _HOST},
            memory=sizes.prove_memory(model, self.options),
            disk=1 << 20,
        )

    @property
    def _android(self) -> str:
        return with_ndk("mlc-android", self.options.ndk)

    def _package(self) -> Stage:
        inputs: dict[str, Input] = dict(self._checkout)
        entries: list[JSON] = []
        for role, packed in zip(self.models, self.packed(), strict=True):
            number = _number(role) or "-0"
            parts = {part: f"{part}{number}" for part in ("library", "weights", "config")}
            for part, name in parts.items():
                inputs[name] = FromStage(stage=f"{part}{_number(role)}", output=part)
            entry: dict[str, JSON] = {
                "model_id": packed.model_id,
                "model_lib": packed.model_lib,
                "file": self.library(role),
                "bundle_weight": self.options.bundle_weights,
                "hub": packed.hub,
                "estimated_vram_bytes": packed.vram,
                "overrides": dict(packed.sizes),
            }
            entries.append({**entry, **parts})
        weights = sum(sizes.weights_bytes(m, self.options) for m in self.models.values())
        return Stage(
            name="package",
            toolchain=self._android,
            program="mlc/mlcpackage.py",
            inputs=inputs,
            outputs=(
                Output(name="package", files=("mlc-app-config.json", "mlc4j/build.gradle")),
                Output(name="package-report", files=("package.json",)),
            ),
            params={"device": "android", "models": entries, "page_size": _PAGE},
            memory=sizes.package_memory(),
            disk=(4 << 30) + 2 * weights,
            network=True,
        )

    def _app(self) -> Iterator[Stage]:
        inputs: dict[str, Input] = {"package": FromStage(stage="package", output="package")}
        if self.options.keystore is not None:
            from edgekiln.backends.mlc_checks import key_file

            told = Path(self.options.keystore)
            inputs |= {"keystore": FromPath(path=key_file(told)), "signing": FromPath(path=told)}
        else:
            yield self._debug_key()
            inputs["debug_keystore"] = FromStage(stage="debugkey", output="key")
        yield Stage(
            name="apk",
            toolchain=self._android,
            program="mlc/apk.py",
            inputs={**inputs, **self._checkout},
            outputs=(
                Output(name="apk", files=("MLCChat.apk",)),
                Output(name="apk-report", files=("apk.json",)),
            ),
            params={"build": self.options.apk, "page_size": _PAGE},
            memory=sizes.package_memory(),
            disk=2 << 30,
            network=True,
        )

    def _debug_key(self) -> Stage:
        """Nothing goes into it, so the store keeps one key, and updates install over."""
        return Stage(
            name="debugkey",
            toolchain=self._android,
            program="mlc/debugkey.py",
            inputs={},
            outputs=(Output(name="key", files=("debug.keystore",)),),
            memory=512 << 20,
            disk=1 << 20,
        )


def _number(role: str) -> str:
    """What is behind the names of a further model's stages: -1, -2, …"""
    return role.removeprefix("also") if role != "model" else ""


def _below(name: str, folder: Path) -> dict[str, Path]:
    """The files of a folder, by their paths in the bundle."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {f"{name}/{p.relative_to(folder).as_posix()}": p for p in files}


def _mlc4j(package: Path) -> dict[str, Path]:
    """The package without the weights, which lie in the bundle already."""
    found = _below("mlc4j", package / "mlc4j")
    return {**found, "mlc-app-config.json": package / "mlc-app-config.json"}


def _proved(outputs: Outputs) -> Iterator[Finding]:
    proof = outputs.json("prove", "prove", "prove.json")
    first = proof["answers"][0]
    yield Finding(name="answer", value=first, text=f"{first['prompt']}\n  {first['answer']}")
    cosine, least = proof["cosine_mean"], proof["cosine_min"]
    text = f"cosine of logits with the float model: {cosine:.4f} (least {least:.4f})"
    yield Finding(name="cosine_mean", value=cosine, text=text)
    before, after = proof["perplexity_float"], proof["perplexity_quantised"]
    ratio = proof["perplexity_ratio"]
    text = f"perplexity: {before:.2f} before, {after:.2f} after ({ratio:.3f} times)"
    yield Finding(name="perplexity_ratio", value=ratio, text=text)
    alike = sum(e["same_next_token"] for e in proof["prompts"])
    text = (
        f"compiled for this machine, it chooses the float model's next token for {alike} of "
        f"{len(proof['prompts'])} prompts"
    )
    yield Finding(name="proof", value=proof, text=f"{text}{_chat(proof['prompts'])}")


def _chat(prompts: list[Mapping[str, Any]]) -> str:
    """Whether an app's chat is what the model was made for: its own chat template's tokens."""
    other = sum(not e.get("same_tokens", True) for e in prompts)
    if not other:
        return ""
    return (
        f"\nthe conversation template writes {other} of {len(prompts)} prompts down in other "
        "tokens than the model's own chat template (its system prompt, as a rule): give another by "
        "--conv-template, or edit conv_template in mlc-chat-config.json"
    )


def _converted(outputs: Outputs) -> Iterator[Finding]:
    weights = outputs.json("weights", "weights-report", "weights.json")
    text = (
        f"weights: {weights['parameters']:,} parameters, {weights['bits_per_parameter']:.3f} bits "
        f"each, {units.size(weights['bytes'])}"
    )
    yield Finding(name="weights", value=weights, text=text)
    chat = outputs.json("config", "config-report", "config.json")
    how = "guessed" if chat["guessed"] else "asked for"
    text = f"conversation template: {chat['conv_template']}, {how} ({chat['why']})"
    shown = {k: v for k, v in chat.items() if k not in ("templates", "quantizations")}
    if chat.get("system_prompt"):
        text += f"\nsystem prompt: the model's own, in MLC's place: {chat['system_prompt']}"
    yield Finding(name="conv_template", value=shown, text=text)


def _compiled(options: MlcOptions, outputs: Outputs) -> Iterator[Finding]:
    library = outputs.json("library", "library-report", "library.json")
    named = f", model_lib {library['model_lib']}" if library["system_lib_prefix"] else ""
    text = f"library: {library['file']}, {units.size(library['bytes'])}{named}"
    yield Finding(name="library", value=library, text=text)
    config = outputs.json("config", "config", "mlc-chat-config.json")
    yield _memory(options, library["memory"], config)


def _memory(
    options: MlcOptions, log: Mapping[str, float | None], config: Mapping[str, Any]
) -> Finding:
    """What the log says the device needs, and what was worked out beforehand."""
    total, value = log["total_mb"], dict[str, Any](log)
    worked, window = _worked_out(options, config), _window(config)
    if worked is None or total is None:
        said = "its sizes are not known" if worked is None else "the compiler's log does not say"
        return Finding(name="memory", value=value, text=f"memory: {said}")
    estimate = worked.estimate(window, options.vram_safety)
    needed = round(total * _MB) + worked.cache_per_token * window
    value |= {"worked_out_mb": round(worked.base / _MB, 2), "known": worked.known}
    value |= {"off": round(worked.base / (total * _MB) - 1, 5), "window": window}
    value |= {"needed": needed, "estimated_vram_bytes": estimate}
    text = (
        f"memory: {total:.2f} MB (weights {log['parameters_mb']:.2f}, temporary "
        f"{log['temporary_mb']:.2f}), {worked.base / _MB:.2f} worked out; with a cache of {window} "
        f"tokens {needed / _MB:.2f} MB, estimated_vram_bytes {estimate}"
    )
    return Finding(name="memory", value=value, text=text)


def _window(config: Mapping[str, Any]) -> int:
    """The tokens that the cache holds at most; 0 for a model without one."""
    sliding = config.get("sliding_window_size") or -1
    return max(sliding if sliding > 0 else config.get("context_window_size") or 0, 0)


def _worked_out(options: MlcOptions, config: Mapping[str, Any]) -> Memory | None:
    """The same as before compiling, from mlc-chat-config.json; None where it lacks a size."""
    from edgekiln.backends.mlc_checks import target_of
    from edgekiln.backends.mlc_memory import memory

    inner = config["model_config"]
    try:
        return memory(
            {**inner, "model_type": config["model_type"]},
            config["quantization"],
            chunk=config["prefill_chunk_size"],
            batch=inner.get("max_batch_size"),
            context=_window(config),
            threads=target_of(options).threads,
        )
    except (KeyError, TypeError):
        return None


def _judge_memory(value: Mapping[str, Any]) -> None:
    needed, estimate = value.get("needed"), value.get("estimated_vram_bytes")
    if needed is not None and estimate is not None and needed > estimate:
        raise QualityError(
            f"the library needs {needed / _MB:.0f} MB, and the app would be told "
            f"{estimate / _MB:.0f} MB",
            why="estimated_vram_bytes is worked out from config.json, and this family is not well "
            "known",
            remedy=f"give --vram-safety {needed / estimate * 1.2:.2f} or more",
        )


def _looked(outputs: Outputs) -> Finding:
    found = outputs.json("objects", "objects", "objects.json")
    text = f"in the library: objects for {found['machine']}, {found['kernels']} kernels"
    return Finding(name="objects", value=found, text=text)


def _packaged(outputs: Outputs) -> Finding:
    found = outputs.json("package", "package-report", "package.json")
    text = f"package: mlc4j with {len(found['libraries'])} models, pages of {found['page_size']}"
    return Finding(name="package", value=found, text=text)


def _app(outputs: Outputs) -> Finding:
    found = outputs.json("apk", "apk-report", "apk.json")
    text = f"app: MLCChat.apk, {units.size(found['bytes'])}, signed by {found['signed_by']}"
    return Finding(name="apk", value=found, text=text)
