"""Folders: bundles, models for MLC and MNN, anyone's Genie bundles, Hugging Face models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekiln import units
from edgekiln.artifacts import Facts, damaged, jsons, mnnfile, unknown
from edgekiln.bundle import MANIFEST
from edgekiln.errors import ModelError

_CACHES = ("tensor-cache.json", "ndarray-cache.json")


def read_folder(path: Path) -> Facts:
    """A folder, by the files in it."""
    if (path / MANIFEST).is_file():
        return _bundle(path)
    if (path / "mlc-chat-config.json").is_file():
        return _mlc(path)
    if (path / "llm_config.json").is_file():
        return _mnn(path)
    if dialogs := [p for p in sorted(path.glob("*.json")) if _is_dialog(p)]:
        return jsons.read(dialogs[0])
    if (path / "config.json").is_file():
        return _model(path)
    names = sorted(p.name for p in path.iterdir())
    why = f"it holds {', '.join(names[:6])}" if names else "it is empty"
    raise unknown(path, why)


def _bundle(path: Path) -> Facts:
    """A bundle's manifest, and whether the files are those it tells of."""
    from edgekiln.build import open_store

    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Any] = manifest["files"]
        model, backend = manifest["model"], manifest["backend"]
        with open_store() as store:
            found = store.index.files(path)
        bad = {n: _state(n, f, found) for n, f in files.items() if _state(n, f, found)}
        rows = [("kind", f"bundle for {backend}, made by edgekiln {manifest.get('edgekiln', '')}")]
        rows.append(("model", f"{model['name']} from {model.get('source', 'not said')}"))
        size = sum(int(f["size"]) for f in files.values())
        rows.append(("files", f"{len(files)}, {units.size(size)}"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, "bundle", f"its manifest: {error!r}") from error
    rows += [("broken", f"{name}: {why}") for name, why in bad.items()]
    rows += [] if bad else [("whole", "every file is as the manifest has it")]
    shown = "\n".join(manifest.get("shown", []))
    facts = {"backend": backend, "model": model, "files": dict(files), "broken": bad}
    facts |= {"options": manifest.get("options", {}), "figures": manifest.get("figures", {})}
    return Facts(kind="bundle", facts=facts, rows=tuple(rows), tail=shown)


def _state(name: str, file: Mapping[str, Any], found: Mapping[str, tuple[int, str]]) -> str:
    if name not in found:
        return "missing"
    return "" if found[name][1] == file["sha256"] else "not as it was built"


def _mlc(path: Path) -> Facts:
    config = jsons.read(path / "mlc-chat-config.json")
    caches = [path / name for name in _CACHES if (path / name).is_file()]
    weights = jsons.read(caches[0]) if caches else None
    rows = [("kind", "MLC model"), *config.rows[1:]]
    rows += [*weights.rows[1:]] if weights else [("weights", "missing: no tensor-cache.json")]
    facts = {"config": dict(config.facts), "weights": dict(weights.facts) if weights else None}
    return Facts(kind="mlc_model", facts=facts, rows=tuple(rows))


def _mnn(path: Path) -> Facts:
    facts: dict[str, Any] = {"config": dict(jsons.read(path / "llm_config.json").facts)}
    rows = [("kind", "MNN language model")]
    rows += [(name, str(value)) for name, value in facts["config"].items()]
    if (path / "config.json").is_file():
        runtime = jsons.read(path / "config.json")
        facts["runtime"] = dict(runtime.facts)
        rows += runtime.rows[1:]
    facts["parts"] = dict(_parts(path))
    for name, about in facts["parts"].items():
        rows.append((name, units.size(about["size"]) + _words(about)))
    return Facts(kind="mnn_model", facts=facts, rows=tuple(rows))


def _parts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(path.glob("*")):
        if file.suffix in (".mnn", ".weight", ".bin", ".mtok", ".txt"):
            about: dict[str, Any] = {"size": file.stat().st_size}
            if file.suffix == ".mnn":
                about |= mnnfile.read(file).facts
            yield file.name, about


def _words(about: Mapping[str, Any]) -> str:
    if "operators" not in about:
        return ""
    made = f", converter {about['version']}" if about["version"] else ""
    return f", {about['operators']} operators{made}"


def _is_dialog(path: Path) -> bool:
    try:
        return "dialog" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _model(path: Path) -> Facts:
    """A Hugging Face model, as a build would take it."""
    from edgekiln.models.inspect import inspect

    try:
        model = inspect(path)
    except ModelError as error:
        raise damaged(path, "model", error) from error
    facts = {
        "family": model.family,
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "dtype": model.dtype,
        "layers": model.layers,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "context_length": model.context_length,
    }
    rows = [("kind", f"Hugging Face model of the family {model.family}")]
    rows += [
        ("parameters", f"{model.parameters:,}"),
        ("weights", f"{units.size(model.weight_bytes)} {model.dtype}"),
        ("layers", f"{model.layers}, {model.hidden_size} wide"),
    ]
    return Facts(kind="model", facts=facts, rows=tuple(rows))
