"""What cannot be built with MLC, said before anything runs.

Which quantisations, conversation templates and architectures there are is the toolchain's mlc_llm
to say; the stages ask it. What is refused here is refused by every one of them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import yamls
from edgekiln.backends.mlc_options import MlcOptions
from edgekiln.backends.mlc_targets import TARGETS, Target
from edgekiln.errors import ModelError, ToolchainError, UsageError

if TYPE_CHECKING:
    from edgekiln.models import Model

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*_")
# TVM 0.26 keeps a text of seven bytes or fewer in its place, and then fails on the prefix.
_SHORTEST = 8
_LEVEL, _FLAG = re.compile(r"O[0-3]"), re.compile(r"([a-z_]+)=\w+")
# OptimizationFlags of mlc_llm/interface/compiler_flags.py.
_FLAGS = (
    *("flashinfer", "cublas_gemm", "faster_transformer", "cudagraph", "cutlass"),
    "ipc_allreduce_strategy",
)
_HUB = re.compile(r"HF://[\w.-]+/[\w.-]+")
_OLD_TVM = re.compile(r"^from tvm\.contrib import .*\bndk\b", re.MULTILINE)
# keyPassword may be left out: it is the storePassword then.
_KEYS = ("storeFile", "storePassword", "keyAlias")
_PHONE_CONTEXT, _PHONE_CHUNK = 4096, 128
Clash = tuple[str, str]


@lru_cache(maxsize=1)
def data() -> dict[str, Any]:
    """The presets and names of mlc.yaml."""
    found: dict[str, Any] = yamls.beside(__file__, "mlc.yaml")
    return found


def target_of(options: MlcOptions) -> Target:
    """What is compiled for."""
    return TARGETS[options.target]


def packaged(options: MlcOptions) -> bool:
    """Whether mlc4j is made."""
    return target_of(options).android if options.package is None else options.package


def also(options: MlcOptions) -> list[str]:
    """The other models of the package."""
    return _listed(options.also)


def hubs(options: MlcOptions) -> list[str]:
    """Where the app may fetch weights, in the order of the models."""
    return _listed(options.hub)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def check_options(options: MlcOptions) -> None:
    """Options that do not go together, or want another machine. Raises UsageError."""
    for what, remedy in _clashes(options):
        raise UsageError(what, remedy=remedy)
    _check_machine(options)


def _clashes(o: MlcOptions) -> Iterator[Clash]:
    yield from _compile_clashes(o)
    yield from _window_clashes(o)
    yield from _gpu_clashes(o)
    yield from _package_clashes(o)
    yield from _app_clashes(o)


def _compile_clashes(o: MlcOptions) -> Iterator[Clash]:
    if not _LEVEL.fullmatch(o.opt) and not all(map(_known_flag, o.opt.split(";"))):
        remedy = f"O0, O1, O2, O3, or NAME=VALUE;NAME=VALUE of {', '.join(_FLAGS)}"
        yield f"opt {o.opt} is nothing MLC knows", remedy
    if o.system_lib_prefix != "auto":
        yield from _prefix_clashes(o)
    if o.objects_only and not target_of(o).program:
        yield f"objects_only: for {o.target} nothing is left to another machine", "leave it out"
    if o.mlc_source is not None and not (Path(o.mlc_source) / "python" / "mlc_llm").is_dir():
        what = f"mlc_source: {o.mlc_source} has no folder python/mlc_llm"
        yield what, "give a checkout of github.com/mlc-ai/mlc-llm"


def _known_flag(text: str) -> bool:
    found = _FLAG.fullmatch(text)
    return found is not None and found[1] in _FLAGS


def _prefix_clashes(o: MlcOptions) -> Iterator[Clash]:
    prefix = o.system_lib_prefix
    if not target_of(o).static:
        yield f"system_lib_prefix: a library for {o.target} has none", "leave it out"
    elif not _PREFIX.fullmatch(prefix):
        remedy = "letters, digits and underscores, the last an underscore: qwen2_q4f16_1_"
        yield f"system_lib_prefix {prefix} cannot begin a symbol's name", remedy
    elif len(prefix) < _SHORTEST:
        what = f"system_lib_prefix {prefix} is too short: TVM 0.26 fails on fewer than 8 characters"
        yield what, "give a longer one, such as MODEL_q4f16_1_"


def _window_clashes(o: MlcOptions) -> Iterator[Clash]:
    context, window, chunk = o.context_window_size, o.sliding_window_size, o.prefill_chunk_size
    sliding = window is not None and window > 0
    if sliding and context is not None:
        yield "context_window_size and sliding_window_size do not go together", "give one of them"
    if o.attention_sink_size is not None and o.attention_sink_size > 0 and not sliding:
        yield "attention_sink_size needs sliding_window_size", "give both, or neither"
    if window == 0:
        yield "sliding_window_size 0 would attend to nothing", "-1 for none, or some tokens"
    limit = window if sliding else context
    if chunk is not None and limit is not None and chunk > limit:
        what = f"prefill_chunk_size {chunk} is larger than the window of {limit}"
        yield what, f"at most {limit}"


def _gpu_clashes(o: MlcOptions) -> Iterator[Clash]:
    shards, stages = o.tensor_parallel_shards or 1, o.pipeline_parallel_stages or 1
    if max(shards, stages) > 1 and o.target != "cuda":
        yield "tensor_parallel_shards and pipeline_parallel_stages are for cuda", "leave them out"
    if shards > 1 and o.quantization in ("q3f16_0", "q4f16_0"):
        what = f"the layout of {o.quantization} cannot be shared by GPUs"
        yield what, f"{o.quantization[:-1]}1 can"


def _package_clashes(o: MlcOptions) -> Iterator[Clash]:
    if packaged(o) and not target_of(o).android:
        yield f"package is for Android, not for {o.target}", "leave it out, or --target android"
    if o.also and not packaged(o):
        what = "also puts more models into one package, and there is none"
        yield what, "leave --no-package out, or --also"
    for address in hubs(o):
        if not _HUB.fullmatch(address):
            yield f"hub: {address} is no address of the Hub", "HF://OWNER/NAME"
    wanted = 1 + len(also(o))
    if hubs(o) and len(hubs(o)) != wanted:
        yield f"hub has {len(hubs(o))} addresses for {wanted} models", "one for each, in order"
    if packaged(o) and not o.bundle_weights and not hubs(o):
        what = "without bundle_weights the app must know where to fetch them"
        yield what, "give hub, HF://OWNER/NAME; or leave --no-bundle-weights out"


def _app_clashes(o: MlcOptions) -> Iterator[Clash]:
    if o.apk != "none" and not packaged(o):
        android = target_of(o).android
        what = "apk needs the package" if android else f"apk is for Android, not for {o.target}"
        yield what, f"leave --{'no-package' if android else 'target'} out, or --apk"
    if o.keystore is None:
        return
    if o.apk == "none":
        yield "keystore signs the app, and there is none", "give --apk release"
    elif not Path(o.keystore).is_file():
        yield f"keystore: there is no file {o.keystore}", "give a keystore.properties"
    else:
        yield from _key_clashes(Path(o.keystore))


def _key_clashes(properties: Path) -> Iterator[Clash]:
    """What a keystore.properties lacks: told now, not after the minutes that the app takes."""
    told = _properties(properties)
    lacking = [name for name in _KEYS if not told.get(name)]
    if len(lacking) == len(_KEYS):
        what = f"keystore: {properties} is no keystore.properties"
        yield what, f"give a text file with lines NAME=VALUE: {', '.join(_KEYS)}"
    elif lacking:
        yield f"keystore: {properties} has no {', '.join(lacking)}", "add them, as NAME=VALUE"
    elif not key_file(properties).is_file():
        what = f"keystore: storeFile is {key_file(properties)}, where no file is"
        yield what, "mend storeFile=PATH: it is taken from the folder of the properties"


def _properties(file: Path) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and line.lstrip()[:1] != "#")
    return {name.strip(): value.strip() for name, value in pairs}


def key_file(properties: Path) -> Path:
    """The keystore that a keystore.properties names."""
    named = _properties(properties).get("storeFile", "")
    return properties.parent / Path(named).expanduser() if named else properties / "none"


def _check_machine(o: MlcOptions) -> None:
    """What the target needs that no toolchain holds. Raises ToolchainError."""
    target = target_of(o)
    if o.mlc_source is not None:
        _check_age(Path(o.mlc_source))
    if target.vulkan and o.mlc_source is not None:
        raise ToolchainError(
            f"--target {o.target} cannot be compiled with Apache TVM",
            why="its wheel has no code generator for Vulkan; the one of MLC's own wheels has",
            remedy="leave --mlc-source out",
        )
    if target.metal and o.mlc_source is not None:
        raise ToolchainError(
            f"--target {o.target} cannot be compiled with Apache TVM 0.26",
            why="it crashes while it schedules matrix products for Metal (s_tir::Tensorize)",
            remedy="leave --mlc-source out, or compile on a Mac",
        )
    if o.target == "cuda" and o.mlc_source is None:
        raise ToolchainError(
            "--target cuda cannot be compiled with MLC's wheels for the CPU",
            why="they are built without CUDA; Apache TVM has the code generator",
            remedy="give --mlc-source DIR, a checkout of mlc-llm, which runs on Apache TVM",
        )
    if (
        not target.program
        or shutil.which(target.program)
        or (o.objects_only and not target.kernels)
    ):
        return
    here = "with --objects-only the archive of objects is made here, to be linked there"
    there = f"on a machine with it: --executor native, or mlc_llm compile --device {o.target}"
    raise ToolchainError(
        f"--target {o.target} needs {target.program}, which no toolchain here has",
        why=target.whence,
        remedy=there if target.kernels else f"{here}; or {there}",
    )


def _check_age(checkout: Path) -> None:
    """Sources that are written for an older TVM than the toolchain's. Raises ToolchainError."""
    file = checkout / "python" / "mlc_llm" / "support" / "auto_target.py"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if _OLD_TVM.search(text):
        raise ToolchainError(
            f"{checkout} is written for an older TVM than Apache TVM 0.26",
            why="its python/mlc_llm/support/auto_target.py imports tvm.contrib, which is "
            "tvm.support there; other names have changed with it",
            remedy="check out a commit whose sources import tvm.support; or leave --mlc-source "
            "out, to take MLC's own wheels",
        )


def check_model(model: Model, options: MlcOptions) -> None:
    """A model that cannot be built so. Raises ModelError or UsageError."""
    if "auto_map" in model.config and options.prove != "none" and not options.trust_remote_code:
        raise ModelError(
            f"{model.name} brings Python of its own (auto_map in config.json)",
            why="the float model that the result is compared with would run it",
            remedy="look at it, then set trust_remote_code; or --prove none",
        )
    context = options.context_window_size
    if context is not None and 0 < model.context_length < context:
        raise UsageError(
            f"context_window_size {context} is longer than {model.name} was made for, "
            f"{model.context_length}",
            remedy=f"at most {model.context_length}",
        )


def sizes_of(model: Model, options: MlcOptions) -> dict[str, int]:
    """The sizes to compile for, those that are given and what a phone can hold of the rest."""
    from edgekiln.backends.mlc_options import SIZES

    given = {name: getattr(options, name) for name in SIZES}
    phone = target_of(options).static
    sliding = (given["sliding_window_size"] or 0) > 0
    if phone and given["context_window_size"] is None and not sliding and model.context_length:
        given["context_window_size"] = min(model.context_length, _PHONE_CONTEXT)
    if phone and given["prefill_chunk_size"] is None:
        window = given["sliding_window_size"] if sliding else given["context_window_size"]
        given["prefill_chunk_size"] = min(_PHONE_CHUNK, window or _PHONE_CHUNK)
    return {name: value for name, value in given.items() if value is not None}


def window_of(model: Model, options: MlcOptions) -> int:
    """The tokens that the cache holds at most."""
    sizes = sizes_of(model, options)
    sliding = sizes.get("sliding_window_size", -1)
    return sliding if sliding > 0 else sizes.get("context_window_size") or model.context_length


def model_id(model: Model, options: MlcOptions) -> str:
    """What the app calls the model, and its weights' folder."""
    return f"{model.name}-{options.quantization}-MLC"


def prefixes(models: Mapping[str, Model], options: MlcOptions) -> dict[str, str]:
    """A prefix for each model, all of them different; none for what is no static library.

    MLC's own is TYPE_QUANTIZATION_, the same for any two models of a kind, which then collide in
    a package. Raises UsageError where two models would still have the same.
    """
    if not target_of(options).static:
        return dict.fromkeys(models, "")
    found = {role: _own_prefix(model, options) for role, model in models.items()}
    if options.system_lib_prefix != "auto":
        found["model"] = options.system_lib_prefix
    chosen = {
        role: _named_prefix(models[role], options)
        if list(found.values()).count(prefix) > 1 and not _explicit(role, options)
        else prefix
        for role, prefix in found.items()
    }
    _refuse_twins(models)
    if len(set(chosen.values())) < len(chosen):
        twice = next(p for p in chosen.values() if list(chosen.values()).count(p) > 1)
        raise UsageError(
            f"two models of the package would have the prefix {twice}",
            remedy="name them differently, or give the first a --system-lib-prefix of its own",
        )
    return chosen


def _refuse_twins(models: Mapping[str, Model]) -> None:
    places = [(model.path, model.name) for model in models.values()]
    for at, (place, name) in enumerate(places):
        if place in [path for path, other in places[:at] if other == name]:
            raise UsageError(
                f"{name} would be in the package twice",
                remedy="name each model once, by --model or by --also",
            )


def _explicit(role: str, options: MlcOptions) -> bool:
    return role == "model" and options.system_lib_prefix != "auto"


def _own_prefix(model: Model, options: MlcOptions) -> str:
    kinds = data()["model_types"]
    kind = options.model_type
    kind = kinds.get(model.family, model.family) if kind == "auto" else kind
    return _symbol(f"{kind}_{options.quantization}_")


def _named_prefix(model: Model, options: MlcOptions) -> str:
    return _symbol(f"{model.name}_{options.quantization}_")


def _symbol(text: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_]", "_", text)
    safe = f"_{safe}" if safe[0].isdigit() else safe
    return safe if len(safe) >= _SHORTEST else f"model_{safe}"
