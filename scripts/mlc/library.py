"""Stage: a model library, with mlc_llm compile: the code that runs a model on one kind of device.

Inputs: `config` (mlc-chat-config.json; its sizes decide), `source`. Parameters: target, file (the
name below library/), system_lib_prefix ("" for none, "auto" for upstream's), opt, quantization,
model_type, cuda_arch. Outputs: `library` with that one file, `library-report` with library.json.

A .tar is packed anew so that two runs give the same bytes, and its symbols are read: what it says
it is called must be what it was to be called.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import libtar
import mlclog
import mlctool
import objfile
import targets

import toolcall
from stagekit import BadInput, Stage, main

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*_")
_CHAT_CONFIG = "mlc-chat-config.json"


def run(stage: Stage) -> None:
    """Compile, pack anew, look into it, and write down what it is."""
    config = _read_config(stage.input("config"))
    name = stage.param("target", str, "android")
    target = targets.TARGETS.get(name)
    if target is None:
        raise BadInput(
            f"there is no target {name!r}", remedy=f"there are {', '.join(targets.TARGETS)}"
        )
    prefix = choose_prefix(stage, target, config)
    file = stage.param("file", str, "") or _file_name(prefix, target, config)
    offers = mlctool.offers(stage)
    target.check(name, file, offers.codegens)
    out = stage.output("library")
    out.mkdir(parents=True)
    words = _words(stage, name, target, prefix, out / file)
    stage.progress(0, 1, unit="libraries", what="compile")
    try:
        lines = mlctool.run(stage, words)
    except toolcall.ToolError as error:
        _explain(error, prefix)
        raise
    stage.progress(1, 1, unit="libraries", what="compile")
    said = mlclog.prefix(lines)
    if said not in (None, prefix):
        raise RuntimeError(f"compile used the system-lib prefix {said!r}, not {prefix!r}")
    report = finish(out, file, prefix, target)
    report |= {
        "target": name,
        "model_type": config["model_type"],
        "quantization": config["quantization"],
        "memory": mlclog.memory(lines),
        "overridden": {n: list(pair) for n, pair in mlclog.overridden(lines).items()},
        "mlc_llm": offers.version,
    }
    place = stage.output("library-report")
    place.mkdir()
    text = json.dumps(report, indent=2)
    (place / "library.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    stage.note(_told(report))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / _CHAT_CONFIG
    if not file.is_file():
        raise BadInput(
            f"{folder.name} holds no {_CHAT_CONFIG}", remedy="mlc_llm gen_config makes it"
        )
    config = json.loads(file.read_text(encoding="utf-8"))
    missing = [name for name in ("model_type", "quantization") if name not in config]
    if missing:
        raise BadInput(f"{_CHAT_CONFIG} does not say {' and '.join(missing)}")
    return dict(config)


def choose_prefix(stage: Stage, target: targets.Target, config: dict[str, Any]) -> str:
    """The prefix of the library's symbols: the one asked for, upstream's own, or none."""
    asked: str = stage.param("system_lib_prefix", str, "auto")
    if asked == "auto":
        own = f"{config['model_type']}_{config['quantization']}_".replace("-", "_")
        return own if target.phone else ""
    if asked and not _PREFIX.fullmatch(asked):
        raise BadInput(
            f"{asked!r} cannot be a system-lib prefix",
            remedy="letters, digits and underscores, not a digit first, an underscore last",
        )
    if not asked and target.phone:
        raise BadInput(
            "a library for a phone needs a system-lib prefix", remedy="give one, or auto"
        )
    return asked


def _file_name(prefix: str, target: targets.Target, config: dict[str, Any]) -> str:
    stem = prefix.removesuffix("_") or f"{config['model_type']}_{config['quantization']}"
    return f"{stem}{target.suffixes[0]}"


def _words(stage: Stage, name: str, target: targets.Target, prefix: str, output: Path) -> list[str]:
    """mlc_llm's arguments, after those of the child that mends it."""
    own = ["--edgekiln-prefix", prefix]
    if output.suffix == ".tar" and not target.phone:
        own.append("--edgekiln-objects")
    words = ["compile", str(stage.input("config")), "--output", str(output)]
    words += targets.device_words(name, target, stage.param("cuda_arch", str, "sm_80"))
    words += ["--opt", stage.param("opt", str, "O2"), "--system-lib-prefix", prefix]
    for option in ("quantization", "model_type"):
        value = stage.param(option, str, "auto")
        if value != "auto":
            words += [f"--{option.replace('_', '-')}", value]
    return [*own, *words]


def _explain(error: toolcall.ToolError, prefix: str) -> None:
    """Faults of which we know that the prefix is their cause. Others pass."""
    if prefix and any("SmallStr" in line for line in error.lines):
        raise BadInput(
            f"this TVM cannot take a system-lib prefix as short as {prefix!r}",
            remedy="give one of at least 8 characters, as MODEL_q4f16_1_",
        ) from error


def finish(out: Path, file: str, prefix: str, target: targets.Target) -> dict[str, Any]:
    """Pack anew and look inside. Raises RuntimeError where it is not called by its prefix."""
    library = out / file
    if not library.is_file():
        raise RuntimeError(f"compile ended well and wrote no {file}")
    if library.suffix == ".tar":
        libtar.normalise(library)
    for other in out.iterdir():
        if other != library:
            raise RuntimeError(f"compile wrote {other.name}, too")
    objects = objfile.read_library(library)
    names = objfile.model_libs(objects)
    model_lib = prefix.removesuffix("_")
    if target.phone and model_lib not in names:
        raise RuntimeError(
            f"the library was to be called {model_lib}, and its symbols say "
            f"{', '.join(names) or 'nothing'}"
        )
    return {
        "file": file,
        "bytes": library.stat().st_size,
        "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "system_lib_prefix": prefix,
        "model_lib": model_lib,
        "symbol": names.get(model_lib, ""),
        "objects": [o.facts() for o in objects],
    }


def _told(report: dict[str, Any]) -> str:
    memory = report["memory"]
    said = f"{report['file']}: {report['bytes']:,} bytes"
    if memory["total_mb"] is not None:
        said += (
            f"; on the device {memory['total_mb']:.2f} MB (parameters "
            f"{memory['parameters_mb']:.2f}, temporary {memory['temporary_mb']:.2f})"
        )
    if memory["total_4k_mb"] is not None:
        said += f", with a cache of 4096 tokens {memory['total_4k_mb']:.2f} MB"
    return said


if __name__ == "__main__":
    main(run)
