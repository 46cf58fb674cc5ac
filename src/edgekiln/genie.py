"""A linter for Genie bundles, anyone's: what Genie or the phone would refuse, or get wrong quietly.

    folder/  *.json with a "dialog"      Genie's configuration
             *.json with "devices"       the backend extensions it names
             ctx-bins, tokenizer.json    as the configuration names them, from the folder
             *.so, genie-t2t-run         the phone's runtime, where it is in there
             config.json                 the model's own, where it is in there or given

Nothing is run. What was prepared for another length or chip is read off the names of the graphs
inside the binaries, or off the manifest of a bundle of our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgekiln.errors import ArtifactError, nearest
from edgekiln.genie_schema import (
    ENGINE,
    EXTENSION_CORE,
    EXTENSION_DEVICE,
    EXTENSIONS,
    POSITIONS,
    ROOT,
    Block,
    misfits,
)
from edgekiln.problems import Level, Problem, worst_first

# The vendor's own graph names: ar128-cl4096_1_of_3; ours: ar128_cl1024_1_of_1.
_GRAPH_NAME = re.compile(rb"ar(\d{1,4})[-_]cl(\d{2,6})[-_](\d{1,3})_of_(\d{1,3})")
_SHARED = "weight_sharing_enabled"
_LLAMA3_VOCABULARY = 128256
_READ = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A folder with one Genie configuration, and what else is known about it."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    model: Mapping[str, Any] | None
    manifest: Mapping[str, Any]

    @property
    def dialog(self) -> Mapping[str, Any]:
        """The dialog's block; an empty one where there is none."""
        return _block(self.config, "dialog")

    def engines(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each engine with its path: speculative dialogs have two."""
        engine = self.dialog.get("engine")
        if isinstance(engine, list):
            yield from ((f"dialog.engine[{i}]", e) for i, e in enumerate(engine) if _is_block(e))
        elif isinstance(engine, Mapping):
            yield "dialog.engine", engine

    def file(self, named: str) -> Path:
        """A file the configuration names: from the folder, or by its name for a phone's path."""
        path = PurePosixPath(named.replace("\\", "/"))
        return self.folder / (path.name if path.is_absolute() else Path(*path.parts))

    def htp(self, engine: Mapping[str, Any]) -> Mapping[str, Any]:
        """The QnnHtp block of an engine."""
        return _block(_block(engine, "backend"), "QnnHtp")


Rule = Callable[[Bundle], Iterator[Problem]]


def lint(folder: Path, model: Path | None = None) -> list[Problem]:
    """Everything wrong with a bundle, errors first.

    `model` is the model's own folder, or its config.json. Raises ArtifactError for a folder in
    which there is no Genie configuration.
    """
    found = [p for bundle in _bundles(folder, model) for rule in RULES for p in rule(bundle)]
    return worst_first(found)


def _bundles(folder: Path, model: Path | None) -> list[Bundle]:
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {folder}", remedy="give the bundle's folder")
    read = {path: _read(path) for path in sorted(folder.glob("*.json"))}
    configs = {p: c for p, c in read.items() if isinstance(c, dict) and "dialog" in c}
    if not configs:
        broken = [p.name for p, c in read.items() if c is None]
        raise ArtifactError(
            f"{folder} holds no Genie configuration",
            why='no JSON file with a "dialog" in it'
            + (f"; {', '.join(broken)} cannot be read" if broken else ""),
            remedy="give the folder with genie_config.json, or how it is called there",
        )
    about = _model(folder, model)
    manifest = read.get(folder / "manifest.json")
    return [
        Bundle(
            folder=folder,
            name=path.name,
            config=config,
            model=about,
            manifest=manifest if isinstance(manifest, dict) else {},
        )
        for path, config in configs.items()
    ]


def _model(folder: Path, given: Path | None) -> Mapping[str, Any] | None:
    """The model's config.json: the one given, or one that lies in the bundle."""
    place = given or folder
    file = place / "config.json" if place.is_dir() else place
    found = _read(file) if file.is_file() else None
    if given is not None and not (isinstance(found, dict) and "model_type" in found):
        raise ArtifactError(
            f"{given} is no model", why="it has no config.json with a model_type",
            remedy="give the model's folder or its config.json",
        )  # fmt: skip
    return found if isinstance(found, dict) and "model_type" in found else None


def _read(file: Path) -> Any:
    """A JSON file's content, None where it is not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keys(bundle: Bundle) -> Iterator[Problem]:
    """Every key, its type, and those that must be there."""
    yield from _fits(bundle.name, bundle.config, ROOT)
    if "engine" in bundle.dialog and not list(bundle.engines()):
        yield _error(f"{bundle.name}: dialog.engine", "is no engine", "an object, or two in a list")
    for where, engine in bundle.engines():
        yield from _fits(bundle.name, engine, ENGINE, where)
        positions = _block(engine, "model").get("positional-encoding")
        for each in positions if isinstance(positions, list) else [positions]:
            if each is not None:
                yield from _fits(bundle.name, each, POSITIONS, f"{where}.model.positional-encoding")


def rope_once(bundle: Bundle) -> Iterator[Problem]:
    """Genie takes the rotary positions from one place; from two it refuses to start."""
    for where, engine in bundle.engines():
        htp, model = bundle.htp(engine), _block(engine, "model")
        twice = [k for k in ("pos-id-dim", "rope-theta") if k in htp]
        if "positional-encoding" in model and twice:
            yield _error(
                f"{bundle.name}: {where}.backend.QnnHtp",
                f"has {' and '.join(twice)} beside positional-encoding",
                "leave them out: positional-encoding says the same with rope-dim and rope-theta",
            )
        if htp and "positional-encoding" not in model and "pos-id-dim" not in htp:
            yield _warning(
                f"{bundle.name}: {where}",
                "says nowhere how positions are turned",
                "add positional-encoding to model, or pos-id-dim and rope-theta to QnnHtp",
            )


def rope_size(bundle: Bundle) -> Iterator[Problem]:
    """rope-dim is half of a head, kv-dim the whole of it."""
    for where, engine in bundle.engines():
        whole, half, said = _sizes(bundle, engine)
        if whole and half and whole != 2 * half:
            yield _error(
                f"{bundle.name}: {where}",
                f"kv-dim is {whole}, {said} {half}",
                f"{said} is half of kv-dim: {whole // 2} for this kv-dim",
            )
        head = _head_dim(bundle.model)
        if whole and head and whole != head:
            yield _error(
                f"{bundle.name}: {where}.backend.QnnHtp.kv-dim",
                f"is {whole}, the model's heads are {head} wide",
                f"kv-dim {head}",
            )


def _sizes(bundle: Bundle, engine: Mapping[str, Any]) -> tuple[int, int, str]:
    htp, positions = bundle.htp(engine), _positions(engine)
    said = "rope-dim" if "rope-dim" in positions else "pos-id-dim"
    return _number(htp, "kv-dim"), _number(positions, said) or _number(htp, said), said


def rope_scaling(bundle: Bundle) -> Iterator[Problem]:
    """The scaling and base of the rotary positions against the model's own config.json."""
    for where, engine in bundle.engines():
        path = f"{bundle.name}: {where}.model.positional-encoding"
        positions = _positions(engine)
        if bundle.model is not None:
            yield from _against_model(path, positions, bundle, engine)
        elif (factor := _known_factor(bundle, engine)) is not None:
            found = _number(_block(positions, "rope-scaling"), "factor")
            if found and found != factor:
                yield _warning(
                    f"{path}.rope-scaling.factor",
                    f"is {found:g}; Llama 3.2's config.json says {factor:g}",
                    f"{factor:g}; published configurations of this model are known to have 8",
                )


def _against_model(
    path: str, positions: Mapping[str, Any], bundle: Bundle, engine: Mapping[str, Any]
) -> Iterator[Problem]:
    model = bundle.model or {}
    wanted = {**_block(model, "rope_scaling"), **_block(model, "rope_parameters")}
    theta = _number(wanted, "rope_theta") or _number(model, "rope_theta")
    found = _number(positions, "rope-theta") or _number(bundle.htp(engine), "rope-theta")
    if theta and found and found != theta:
        yield _error(
            f"{path}.rope-theta", f"is {found:g}; config.json says {theta:g}", f"{theta:g}"
        )
    scaling = _block(positions, "rope-scaling")
    kind = wanted.get("rope_type", wanted.get("type", "default"))
    if kind == "llama3" and not scaling:
        yield _error(path, "has no rope-scaling; config.json scales as llama3", "add rope-scaling")
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        key = name.replace("_", "-")
        if kind == "llama3" and scaling and scaling.get(key) != wanted.get(name):
            yield _error(
                f"{path}.rope-scaling.{key}",
                f"is {scaling.get(key)}; the model's config.json says {wanted.get(name)}",
                f"{wanted.get(name)}",
            )


def _known_factor(bundle: Bundle, engine: Mapping[str, Any]) -> float | None:
    """Llama 3.2's factor where this can only be one: 1B by its sizes, 3B by its name."""
    vocabulary = _number(_block(bundle.dialog, "context"), "n-vocab")
    if vocabulary != _LLAMA3_VOCABULARY:
        return None
    names = " ".join([bundle.folder.resolve().name, bundle.name]).lower()
    small = _number(bundle.htp(engine), "kv-dim") == 64
    return 32.0 if small or re.search(r"3[._v-]{0,2}2[^\d]|llama_?v?3[._]2", names) else None


def files(bundle: Bundle) -> Iterator[Problem]:
    """Every file that is named is there, and named so that the phone finds it."""
    for where, named in _named(bundle):
        if not bundle.file(named).is_file():
            near = nearest(Path(named).name, [p.name for p in bundle.folder.rglob("*")])
            yield _error(
                f"{bundle.name}: {where}",
                f"there is no {named}",
                near if near.startswith("did") else "put it there, or correct the path",
            )
        elif PurePosixPath(named).is_absolute():
            yield _warning(
                f"{bundle.name}: {where}",
                f"{named} is right in that one place only",
                "name it from the bundle's folder, and start there",
            )


def _named(bundle: Bundle) -> Iterator[tuple[str, str]]:
    path = _block(bundle.dialog, "tokenizer").get("path")
    if isinstance(path, str):
        yield "dialog.tokenizer.path", path
    for where, engine in bundle.engines():
        for i, name in enumerate(_binaries(engine)):
            yield f"{where}.model.binary.ctx-bins[{i}]", name
        for each in _as_list(_block(engine, "backend").get("extensions")):
            if isinstance(each, str):
                yield f"{where}.backend.extensions", each


def binaries(bundle: Bundle) -> Iterator[Problem]:
    """A model of type binary has binaries, all parts of them, made for this context length."""
    size = _number(_block(bundle.dialog, "context"), "size")
    for where, engine in bundle.engines():
        if _block(engine, "model").get("type") != "binary":
            continue
        names = _binaries(engine)
        if not names:
            yield _error(
                f"{bundle.name}: {where}.model.binary",
                "names no ctx-bins",
                'add "ctx-bins": [the .bin files, in order]',
            )
        yield from _parts(bundle, where, names)
        yield from _lengths(bundle, where, names, size)


def _parts(bundle: Bundle, where: str, names: list[str]) -> Iterator[Problem]:
    """model_1_of_3 and model_3_of_3 without model_2_of_3."""
    series: dict[tuple[str, int], set[int]] = {}
    for name in names:
        part = re.fullmatch(r"(.*?)(\d+)_of_(\d+)(.*)", PurePosixPath(name).name)
        if part:
            series.setdefault((part[1] + part[4], int(part[3])), set()).add(int(part[2]))
    for (_, total), found in series.items():
        missing = sorted(set(range(1, total + 1)) - found)
        if missing:
            yield _error(
                f"{bundle.name}: {where}.model.binary.ctx-bins",
                f"part {', '.join(map(str, missing))} of {total} is not named",
                "name every part, in order",
            )


def _lengths(bundle: Bundle, where: str, names: list[str], size: int) -> Iterator[Problem]:
    there = [bundle.file(name) for name in names if bundle.file(name).is_file()]
    known = {path.name: _contexts(bundle, path) for path in there}
    for path in there:
        for tokens, context in sorted(_graphs(bundle, path)):
            if context == 2 * tokens:
                yield _error(
                    f"{bundle.name}: {where}.model.binary",
                    f"{path.name} reads {tokens} tokens at a time in a context of {context}: "
                    "Genie takes the new keys for the old ones, and answers nonsense",
                    "build it with another context length",
                )
    for name, lengths in known.items():
        if lengths and size and size not in lengths:
            yield _error(
                f"{bundle.name}: dialog.context.size",
                f"is {size}; {name} was made for {' and '.join(map(str, sorted(lengths)))}",
                f"{max(lengths)}: it is fixed in the binary",
            )
    unknown = [name for name, lengths in known.items() if not lengths]
    if unknown:
        yield Problem(
            level="note",
            where=f"{bundle.name}: dialog.context.size",
            what=f"not held against {', '.join(unknown)}: their graphs' names do not tell lengths",
            remedy="`kiln inspect` shows what is in a binary",
        )


def _contexts(bundle: Bundle, file: Path) -> set[int]:
    """The context lengths of a binary's graphs."""
    return {context for _, context in _graphs(bundle, file)}


def _graphs(bundle: Bundle, file: Path) -> set[tuple[int, int]]:
    """Tokens and context length of each graph: by the manifest, or by the graphs' names."""
    figures = _block(_block(bundle.manifest, "figures"), "binaries")
    for binary in _list(figures, "binaries"):
        if _is_block(binary) and binary.get("file") == file.name:
            graphs = [g for g in _list(binary, "graphs") if _number(g, "context")]
            return {(_number(g, "tokens"), _number(g, "context")) for g in graphs}
    with file.open("rb") as content:
        head = content.read(_READ)
        content.seek(max(0, file.stat().st_size - _READ))
        tail = content.read()
    return {(int(m[1]), int(m[2])) for m in _GRAPH_NAME.finditer(head + tail)}


def vocabulary(bundle: Bundle) -> Iterator[Problem]:
    """n-vocab is the width of the logits: the tokenizer and the special tokens lie within it."""
    context, path = _block(bundle.dialog, "context"), f"{bundle.name}: dialog.context"
    size = _number(context, "n-vocab")
    if not size:
        return
    largest = _largest_token(bundle)
    if largest is not None and largest >= size:
        what = f"is {size}, the tokenizer has a token {largest}"
        yield _error(f"{path}.n-vocab", what, "take tokenizer.json and binaries of one model")
    wanted = (bundle.model or {}).get("vocab_size")
    if wanted is not None and wanted != size:
        yield _error(f"{path}.n-vocab", f"is {size}, config.json says {wanted}", f"{wanted}")
    for name in ("bos-token", "eos-token", "pad-token", "eot-token"):
        for token in _as_list(context.get(name)):
            if isinstance(token, int) and not -1 <= token < size:
                what = f"{token} is outside of the vocabulary of {size}"
                yield _error(f"{path}.{name}", what, "see the model's generation_config.json")


def ends(bundle: Bundle) -> Iterator[Problem]:
    """An answer has to end: every end token of the model is named."""
    given = _block(bundle.dialog, "context").get("eos-token")
    if given == -1:
        yield _error(
            f"{bundle.name}: dialog.context.eos-token",
            "is -1: no answer ends, and Genie fills up a prefill with a token that there is not",
            "the model's eos_token_id",
        )
    wanted = (bundle.model or {}).get("eos_token_id")
    wanted = wanted if isinstance(wanted, list) else [wanted]
    missing = [t for t in wanted if isinstance(t, int) and t not in _as_list(given)]
    if missing and given is not None:
        yield _warning(
            f"{bundle.name}: dialog.context.eos-token",
            f"lacks {', '.join(map(str, missing))}, which config.json names",
            f"name all of them: {[*_as_list(given), *missing]}",
        )


def sampler(bundle: Bundle) -> Iterator[Problem]:
    """Genie passes over greedy: with more than one token to choose from it draws lots."""
    block = _block(bundle.dialog, "sampler")
    if block.get("greedy") is True and block.get("top-k") != 1 and block.get("temp") != 0:
        yield _warning(
            f"{bundle.name}: dialog.sampler.greedy",
            "is passed over by Genie, which samples all the same",
            '"top-k": 1',
        )


def extensions(bundle: Bundle) -> Iterator[Problem]:
    """The backend's own file: its keys, and the chip it is for."""
    for where, engine in bundle.engines():
        name = _block(engine, "backend").get("extensions")
        if not isinstance(name, str) or not bundle.file(name).is_file():
            continue
        content = _read(bundle.file(name))
        if not isinstance(content, dict):
            yield _error(name, "is no JSON object", "see docs/qnn.md for what belongs in it")
            continue
        yield from _fits(name, content, EXTENSIONS, level="warning")
        yield from _devices(name, content)
        yield from _sharing(bundle, where, engine, name, content)


def _devices(name: str, content: Mapping[str, Any]) -> Iterator[Problem]:
    devices = _list(content, "devices")
    if not devices:
        yield _error(name, "names no device", 'add "devices": [{"soc_model": …, "dsp_arch": …}]')
        return
    for i, device in enumerate(devices):
        where = f"devices[{i}]"
        yield from _fits(name, device, EXTENSION_DEVICE, where, level="warning")
        if not isinstance(device, dict):
            continue
        for j, core in enumerate(_list(device, "cores")):
            yield from _fits(name, core, EXTENSION_CORE, f"{where}.cores[{j}]", level="warning")
        yield from _chip(f"{name}: {where}", device)


def _chip(where: str, device: Mapping[str, Any]) -> Iterator[Problem]:
    """soc_model and soc_id are two names of one number; its Hexagon version goes with it."""
    from edgekiln.backends.qnn_socs import socs

    model, number = device.get("soc_model"), device.get("soc_id")
    if model is not None and number is not None and model != number:
        yield _error(where, f"soc_model is {model}, soc_id {number}", "they are one: keep one")
    told = model if model is not None else number
    chip = next((s for s in socs() if s.soc_model == told), None)
    arch = device.get("dsp_arch")
    if chip is not None and arch is not None and arch != chip.arch:
        yield _error(
            f"{where}.dsp_arch", f"is {arch}; {chip.title} has {chip.arch}", f"{chip.arch}"
        )


def _sharing(
    bundle: Bundle, where: str, engine: Mapping[str, Any], name: str, content: Mapping[str, Any]
) -> Iterator[Problem]:
    """Binaries that share weights want it said, in one of two ways."""
    said = _block(content, "context").get(_SHARED) or _block(content, "groupContext").get(
        "share_resources"
    )
    sharing = [n for n in _binaries(engine) if "weight_sharing" in PurePosixPath(n).name]
    if sharing and not said:
        yield _warning(
            name,
            f"does not say that weights are shared, {sharing[0]} is called so",
            f'"context": {{"{_SHARED}": true}}, or "groupContext": {{"share_resources": true}}',
        )
    if said and _arch(content) in ("v68", "v69"):
        yield _error(
            name,
            f"wants shared weights on Hexagon {_arch(content)}",
            "sharing needs v73 or newer: give each graph its own binary",
        )


def libraries(bundle: Bundle) -> Iterator[Problem]:
    """The phone's runtime, where some of it is in there: whole, for this Hexagon, of one build."""
    from edgekiln.backends.qairt_sdk import device_files, mixed

    arch = _bundle_arch(bundle)
    there = {p.name: p for p in bundle.folder.iterdir() if _is_runtime(p)}
    if arch is None:
        return
    wanted = [file.name for file in device_files(arch)]
    missing = [name for name in wanted if name not in there]
    if not there:
        text = f"the phone's libraries are not in here: {', '.join(missing)}"
        yield Problem(level="note", where=str(bundle.folder.name), what=text)
        return
    for name in sorted(set(there) - set(wanted)):
        other = re.fullmatch(r"libQnnHtpV(\d+)(Stub|Skel)\.so", name)
        if other and f"v{other[1]}" != arch:
            yield _warning(name, f"is for Hexagon v{other[1]}, the chip has {arch}", "leave it out")
    if missing:
        yield _error(
            bundle.folder.name,
            f"of the phone's libraries {', '.join(missing)} are missing",
            "take them from the same SDK as the others",
        )
    if found := mixed({n: p for n, p in there.items() if p.suffix == ".so"}):
        yield _error(
            bundle.folder.name,
            f"the phone's libraries are not of one {found[0]}: {found[1]}",
            "take all of them from one SDK: a Stub refuses another build's Skel",
        )


def prompts(bundle: Bundle) -> Iterator[Problem]:
    """Prompt files are read as they are: a backslash and an n are no line end there."""
    for file in sorted(bundle.folder.rglob("*.txt")):
        text = file.read_text(encoding="utf-8", errors="replace")[:4096]
        if "\\n" in text and "\n" not in text.strip():
            yield _warning(
                file.relative_to(bundle.folder).as_posix(),
                "has \\n as two characters where a line should end",
                "write real line ends: genie-t2t-run reads the file as it is",
            )


def begun_twice(bundle: Bundle) -> Iterator[Problem]:
    """Genie puts bos-token before a prompt; one that begins with it has it twice."""
    token = _block(bundle.dialog, "context").get("bos-token")
    named = _block(bundle.dialog, "tokenizer").get("path")
    content = _read(bundle.file(named)) if isinstance(named, str) else None
    added = [a for a in _list(content, "added_tokens") if _is_block(a)]
    text = next((str(a.get("content") or "") for a in added if a.get("id") == token), "")
    for file in sorted(bundle.folder.rglob("*.txt")) if text else []:
        if file.read_text(encoding="utf-8", errors="replace").startswith(text):
            yield _warning(
                f"{bundle.name}: dialog.context.bos-token",
                f"Genie puts {text} before each prompt, and {file.name} begins with it already",
                "bos-token -1, or leave it out of the prompts",
            )
            return


RULES: tuple[Rule, ...] = (
    keys,
    rope_once,
    rope_size,
    rope_scaling,
    files,
    binaries,
    vocabulary,
    ends,
    sampler,
    extensions,
    libraries,
    prompts,
    begun_twice,
)


def _fits(
    name: str, value: Any, block: Block, where: str = "", level: Level = "error"
) -> Iterator[Problem]:
    for path, what, remedy in misfits(value, block, where):
        place = f"{name}: {path}" if path else name
        yield Problem(level=level, where=place, what=what, remedy=remedy)


def _error(where: str, what: str, remedy: str) -> Problem:
    return Problem(level="error", where=where, what=what, remedy=remedy)


def _warning(where: str, what: str, remedy: str) -> Problem:
    return Problem(level="warning", where=where, what=what, remedy=remedy)


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping)


def _block(value: Any, name: str) -> Mapping[str, Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _list(value: Any, name: str) -> list[Any]:
    """A list by its name, an empty one where there is none."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []


def _number(block: Any, name: str) -> Any:
    """A number by its name, 0 where there is none."""
    found = block.get(name) if isinstance(block, Mapping) else None
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else 0


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _positions(engine: Mapping[str, Any]) -> Mapping[str, Any]:
    """The positional encoding; of several the first."""
    found = _block(engine, "model").get("positional-encoding")
    first = found[0] if isinstance(found, list) and found else found
    return first if isinstance(first, Mapping) else {}


def _binaries(engine: Mapping[str, Any]) -> list[str]:
    named = _list(_block(_block(engine, "model"), "binary"), "ctx-bins")
    return [name for name in named if isinstance(name, str)]


def _head_dim(model: Mapping[str, Any] | None) -> Any:
    """How wide a head is, 0 where it is not told."""
    heads = _number(model, "num_attention_heads")
    shared = _number(model, "hidden_size") // heads if heads else 0
    return _number(model, "head_dim") or shared


def _largest_token(bundle: Bundle) -> int | None:
    named = _block(bundle.dialog, "tokenizer").get("path")
    file = bundle.file(named) if isinstance(named, str) else bundle.folder / "tokenizer.json"
    content = _read(file) if file.is_file() else None
    if not isinstance(content, dict):
        return None
    model = _block(content, "model")
    ids = [*_block(model, "vocab").values(), len(_list(model, "vocab")) - 1]
    ids += [_number(added, "id") for added in _list(content, "added_tokens")]
    return max((i for i in ids if isinstance(i, int)), default=None)


def _arch(content: Mapping[str, Any]) -> str | None:
    from edgekiln.backends.qnn_socs import socs

    devices = _list(content, "devices")
    device = devices[0] if devices else {}
    if not isinstance(device, Mapping):
        return None
    if isinstance(device.get("dsp_arch"), str):
        return str(device["dsp_arch"])
    number = device.get("soc_model", device.get("soc_id"))
    return next((s.arch for s in socs() if s.soc_model == number), None)


def _bundle_arch(bundle: Bundle) -> str | None:
    for _, engine in bundle.engines():
        name = _block(engine, "backend").get("extensions")
        content = _read(bundle.file(name)) if isinstance(name, str) else None
        if isinstance(content, dict) and (arch := _arch(content)):
            return arch
    return None


def _is_runtime(path: Path) -> bool:
    return path.name == "genie-t2t-run" or bool(re.fullmatch(r"lib(Qnn|Genie).*\.so", path.name))
