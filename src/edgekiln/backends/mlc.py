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
from typing import TYPE_CHECKING

from edgekiln.backends import mlc_sizes as sizes
from edgekiln.backends.base import Contents, Finding, Outputs
from edgekiln.backends.mlc_options import MlcOptions
from edgekiln.backends.mlc_package import CONFIG, Packed, package_config
from edgekiln.backends.ndks import with_ndk
from edgekiln.home import project
from edgekiln.options import Value
from edgekiln.pipeline import JSON, FromPath, FromStage, Input, Output, Pipeline, Stage

if TYPE_CHECKING:
    from edgekiln.models import Model

_TEXTS = Path("scripts/mnn/data")
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
        from edgekiln.backends import mlc_findings

        return list(mlc_findings.findings(options, outputs))

    def judge(self, options: MlcOptions, findings: list[Finding]) -> None:
        """Hold the figures against the floors, and the estimated memory against the log's."""
        from edgekiln.backends import mlc_findings

        mlc_findings.judge(options, {f.name: f.value for f in findings})

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
            inputs["keystore"] = FromPath(path=key_file(told), secret=True)
            inputs["signing"] = FromPath(path=told, secret=True)
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
