"""mlc-package-config.json: made here, and checked here before mlc_llm or anything else is started.

mlc_llm packs every library named in `model_lib_path_for_prepare_libs` into one static library and
looks for the symbol MODEL_LIB___tvm_ffi__library_bin in it (interface/package.py). A library's
objects have PREFIX__tvm_ffi__library_bin, so model_lib is the prefix without its last underscore.
What does not fit it tells after downloads, and with exit code 255; some of it not at all.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import ArtifactError, KilnError, nearest
from edgekiln.problems import Level, Problem, worst_first

CONFIG = "mlc-package-config.json"
_PATHS = "model_lib_path_for_prepare_libs"
_DEVICES = ("android", "iphone", "macabi")
_TYPES: Mapping[str, tuple[type, str, bool]] = {
    "model": (str, "text", True),
    "model_id": (str, "text", True),
    "estimated_vram_bytes": (int, "a whole number", True),
    "model_lib": (str, "text", False),
    "bundle_weight": (bool, "true or false", False),
    "overrides": (dict, "an object", False),
}
# interface/compiler_flags.py, ModelConfigOverride; and opt, which only a package may override.
_OVERRIDES = (
    "context_window_size",
    "sliding_window_size",
    "prefill_chunk_size",
    "attention_sink_size",
    "max_batch_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
    "disaggregation",
    "opt",
)
_REMOTE = ("HF://", "https://")
_ARM = "arm64-v8a (AArch64)"
_APPLE = "(Apple)"
_OLD = "__tvm_dev_mblob"
_ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".a")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A model of a package: what it is called, where its parts lie in the bundle, its memory."""

    model_id: str
    model_lib: str
    hub: str | None
    vram: int
    sizes: Mapping[str, int]

    @property
    def library(self) -> str:
        """Its library in the bundle."""
        return f"lib/{self.model_lib}.tar"


def package_config(models: Sequence[Packed], *, bundle_weights: bool) -> dict[str, Any]:
    """The configuration, with paths from the bundle's folder."""
    entries = [
        {
            "model": m.model_id if bundle_weights or not m.hub else m.hub,
            "model_id": m.model_id,
            "estimated_vram_bytes": m.vram,
            "model_lib": m.model_lib,
            "bundle_weight": bundle_weights,
            "overrides": dict(m.sizes),
        }
        for m in models
    ]
    paths = {m.model_lib: m.library for m in models}
    return {"device": "android", "model_list": entries, _PATHS: paths}


_GIVE = f"give an {CONFIG}, or the folder it is in"


def check_file(file: Path) -> list[Problem]:
    """Everything wrong with a configuration and the libraries it names, errors first.

    Raises ArtifactError for a file that is not there, or no JSON object.
    """
    file = file / CONFIG if file.is_dir() else file
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        what = "cannot be read" if isinstance(error, OSError) else "is no JSON"
        raise ArtifactError(f"{file} {what}", why=why, remedy=_GIVE) from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{file} is no {CONFIG}", why="it holds no JSON object", remedy=_GIVE)
    return check(config, file.absolute().parent)


def check(config: Mapping[str, Any], folder: Path) -> list[Problem]:
    """The same for a configuration that was read; `folder` is where its paths begin."""
    device = config.get("device")
    if device not in _DEVICES:
        choice = f"one of: {', '.join(_DEVICES)}"
        return [_error("device", f"it is {json.dumps(device)}", choice)]
    entries, paths = config.get("model_list", []), config.get(_PATHS, {})
    if not isinstance(entries, list) or not entries:
        return [_error("model_list", "there is no list of models", "give one model at least")]
    if not isinstance(paths, dict) or not all(isinstance(p, str) for p in paths.values()):
        return [_error(_PATHS, "it is no object of names and paths", "MODEL_LIB: PATH")]
    libraries = {name: _look(name, path, folder, device) for name, path in paths.items()}
    found = [p for each in libraries.values() for p in each.problems]
    found += _collisions(list(libraries.values()))
    found += _same_ids(entries)
    for number, entry in enumerate(entries):
        found += _entry(f"model_list[{number}]", entry, libraries, folder)
    return worst_first(found)


@dataclass(frozen=True, kw_only=True)
class _Library:
    """A library as it was found: what it is called in the configuration, and its real names."""

    name: str
    path: Path
    prefixes: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def model_libs(self) -> list[str]:
        """What model_lib may be for it."""
        return [p.removesuffix("_") for p in self.prefixes]


def _look(name: str, said: str, folder: Path, device: str) -> _Library:
    path = folder / said
    where = f"{_PATHS}.{name}"
    found: list[Problem] = []
    prefixes: tuple[str, ...] = ()
    if not path.is_file():
        near = _near(path)
        found.append(
            _error(where, f"there is no file {path}", near or "compile it, or mend the path")
        )
    else:
        try:
            prefixes, found = _open(where, name, path, device)
        except KilnError as error:
            found = [_error(where, error.what, error.remedy)]
    return _Library(name=name, path=path, prefixes=prefixes, problems=tuple(found))


def _near(path: Path) -> str:
    """A library in the same folder that may be the one that was meant."""
    there = sorted(p.name for p in path.parent.glob("*") if p.suffix in _ARCHIVES)
    return nearest(path.name, there) if there else ""


def _open(where: str, name: str, path: Path, device: str) -> tuple[tuple[str, ...], list[Problem]]:
    from edgekiln.artifacts import archives

    with path.open("rb") as file:
        start = file.read(512)
    if not archives.is_tar(start):
        why = f"{path.name} is no .tar of objects, whatever its name"
        return (), [_error(where, why, f"`kiln inspect {path}` says what it is")]
    facts = archives.read_tar(path).facts
    found = []
    if path.suffix != ".tar":
        why = f"{path.name} is a .tar under another name: mlc_llm would pack it unopened"
        found.append(_error(where, why, f"call it {path.stem}.tar"))
    phone = device == "android"
    strange = [abi for abi in facts["abis"] if (abi != _ARM if phone else not abi.endswith(_APPLE))]
    if strange and phone:
        why = f"{path.name} holds objects for {', '.join(strange)}, not for {_ARM}"
        found.append(_error(where, why, "compile it for --target android"))
    elif strange:
        why = f"{path.name} holds ELF objects ({', '.join(strange)}), not Apple's"
        found.append(_error(where, why, "compile it for --target iphone"))
    if any(symbol.endswith(_OLD) for symbol in facts["tvm_symbols"]):
        why = f"{path.name} was made by MLC-LLM 0.19 or older, whose symbols the linker cannot find"
        found.append(_error(where, why, "compile it again: compiler and app must be of one age"))
    prefixes = tuple(facts["tvm_prefixes"])
    return prefixes, [*found, *_names(where, name, path, prefixes)]


def _names(where: str, name: str, path: Path, prefixes: tuple[str, ...]) -> Iterator[Problem]:
    """A library's name in the configuration against the prefixes inside."""
    if not prefixes:
        why = f"{path.name} has no symbol …__tvm_ffi__library_bin: no model library of TVM's"
        yield _error(where, why, "compile one with `kiln build --backend mlc` or mlc_llm compile")
        return
    if "" in prefixes:
        why = f"{path.name} was compiled without a prefix"
        remedy = "compile it with --system-lib-prefix; mlc_llm drops it for android:adreno"
        yield _error(where, why, remedy)
        return
    inside = [p.removesuffix("_") for p in prefixes]
    if name.replace("-", "_") in inside:
        return
    if name.endswith("_") and name.removesuffix("_").replace("-", "_") in inside:
        why = f"{name} is the prefix; model_lib is the prefix without its last underscore"
        yield _error(where, why, f"write {name.removesuffix('_')}, here and in model_list")
    elif path.stem == name:
        why = f"{path.name} holds {' and '.join(inside)}: the file was renamed, or is another's"
        yield _error(where, why, f"write {inside[0]}, or take the library of {name}")
    else:
        why = f"there is no {name} in {path.name}, which holds {' and '.join(inside)}"
        yield _error(where, why, f"write {inside[0]}, here and in model_list")


def _collisions(libraries: Sequence[_Library]) -> Iterator[Problem]:
    """Two files with one prefix: the linker takes one of them, silently."""
    by_prefix: defaultdict[str, list[_Library]] = defaultdict(list)
    for library in libraries:
        for prefix in library.prefixes:
            if all(library.path.resolve() != other.path.resolve() for other in by_prefix[prefix]):
                by_prefix[prefix].append(library)
    for prefix, ones in by_prefix.items():
        if prefix and len(ones) > 1:
            names = " and ".join(one.path.name for one in ones)
            why = f"{names} have the same prefix {prefix}: one app cannot hold both"
            remedy = "compile one of them with a --system-lib-prefix of its own"
            yield _error(_PATHS, why, remedy)


def _same_ids(entries: Sequence[Any]) -> Iterator[Problem]:
    ids = [e.get("model_id") for e in entries if isinstance(e, Mapping)]
    for name in sorted({i for i in ids if isinstance(i, str) and ids.count(i) > 1}):
        why = f"two models are called {name}: one's weights would be written over the other's"
        yield _error("model_list", why, "give each a model_id of its own")


def _entry(
    where: str, entry: Any, libraries: Mapping[str, _Library], folder: Path
) -> Iterator[Problem]:
    if not isinstance(entry, Mapping):
        yield _error(where, "it is no object", "see docs/mlc.md for what a model's entry holds")
        return
    wrong = list(_fields(where, entry))
    yield from wrong
    if not wrong:
        yield from _weights(where, entry, folder)
        yield from _library(where, entry, libraries)


def _fields(where: str, entry: Mapping[str, Any]) -> Iterator[Problem]:
    for name, (kind, words, needed) in _TYPES.items():
        if name not in entry:
            if needed:
                yield _error(f"{where}.{name}", "it is missing", f"give {words}")
            continue
        value = entry[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield _error(f"{where}.{name}", f"it is {json.dumps(value)}", f"give {words}")
    for name in entry:
        if name not in _TYPES:
            yield _problem("warning", f"{where}.{name}", "nothing reads it", nearest(name, _TYPES))
    overrides = entry.get("overrides")
    for name in overrides if isinstance(overrides, Mapping) else ():
        if name not in _OVERRIDES:
            at = f"{where}.overrides.{name}"
            yield _error(at, "mlc_llm knows no such override", nearest(name, _OVERRIDES))


def _weights(where: str, entry: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    model, bundled = entry["model"], entry.get("bundle_weight", False)
    if model.startswith(_REMOTE):
        return
    if not bundled:
        why = f"{model} is a folder of this machine, and bundle_weight is not set"
        remedy = "set bundle_weight to true, or give an address, HF://OWNER/NAME"
        yield _error(f"{where}.model", why, remedy)
    if not (folder / model).is_dir():
        yield _error(f"{where}.model", f"there is no folder {folder / model}", "mend the path")
    elif not (folder / model / "tensor-cache.json").is_file():
        old = (folder / model / "ndarray-cache.json").is_file()
        why = "it has the ndarray-cache.json of MLC-LLM 0.19" if old else "it holds no weights"
        remedy = "convert the weights again with `kiln build --backend mlc`"
        yield _error(f"{where}.model", f"{model} has no tensor-cache.json: {why}", remedy)


def _library(
    where: str, entry: Mapping[str, Any], libraries: Mapping[str, _Library]
) -> Iterator[Problem]:
    name, at = entry.get("model_lib"), f"{where}.model_lib"
    if name is None:
        why = "without it mlc_llm compiles a library of its own, named by a digest"
        yield _problem("note", at, why, f"name one of {_PATHS}" if libraries else "")
    elif name not in libraries:
        yield _unknown(at, name, libraries)
    if isinstance(name, str) and re.search(r"[^A-Za-z0-9_-]", name):
        yield _error(
            at, f"{name} cannot begin a symbol's name", "letters, digits, underscores only"
        )


def _unknown(at: str, name: str, libraries: Mapping[str, _Library]) -> Problem:
    """A model_lib that no path is given for: mlc_llm would start to compile one."""
    inside = sorted({lib for one in libraries.values() for lib in one.model_libs})
    if name.endswith("_") and name.removesuffix("_") in (*libraries, *inside):
        why = f"{name} is the prefix; model_lib is the prefix without its last underscore"
        return _error(at, why, f"write {name.removesuffix('_')}")
    why = f"{_PATHS} has no {name}: mlc_llm would compile one"
    known = [*libraries, *inside]
    return _error(at, why, nearest(name, known) if known else f"add it to {_PATHS}")


def _error(where: str, what: str, remedy: str) -> Problem:
    return _problem("error", where, what, remedy)


def _problem(level: Level, where: str, what: str, remedy: str) -> Problem:
    return Problem(level=level, where=where, what=what, remedy=remedy)
