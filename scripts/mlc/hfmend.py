"""A Hugging Face model directory as mlc_llm wants it: linked, with a config.json of today's mended.

mlc_llm writes an index beside single-file weights and reads rope_theta at the top level of
config.json; inputs are read only, and transformers 5 writes rope_parameters. So the model is laid
out anew: links to its files, and a copy of config.json where that needs mending.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagekit import BadInput

_NAMES = {"rope_theta", "rope_type", "type"}
# Models with two kinds of attention have one set of parameters for each.
_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model laid out for mlc_llm; `mended` names what was changed in its config.json."""

    folder: Path
    config: Mapping[str, Any]
    mended: tuple[str, ...]

    @property
    def rope_theta(self) -> float | None:
        """The base of its rotary embedding, as its mended config.json says it."""
        inner = self.config.get("text_config")
        value = self.config.get("rope_theta") or (inner or {}).get("rope_theta")
        return float(value) if value else None

    def type(self, asked: str) -> str:
        """The kind of model: `asked`, or for "auto" config.json's, by mlc_llm's name for it."""
        if asked != "auto":
            return asked
        name = self.config.get("model_type")
        if not isinstance(name, str):
            raise BadInput(
                "config.json names no model_type", remedy="say it with --model-type, as MLC does"
            )
        return "phi-msft" if name == "mixformer-sequential" else name


def lay_out(model: Path, folder: Path) -> Model:
    """Link a model's files into a new folder, and mend its config.json there."""
    source = model / "config.json"
    if not source.is_file():
        raise BadInput(f"{model.name} holds no config.json", remedy="give a model directory")
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadInput("config.json is not a JSON object", remedy="give a model directory")
    mended, changes = mend(config)
    folder.mkdir(parents=True)
    for file in sorted(model.iterdir()):
        if file.name != "config.json" or not changes:
            (folder / file.name).symlink_to(file.resolve())
    if changes:
        text = json.dumps(mended, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    return Model(folder=folder, config=mended, mended=tuple(changes))


def mend(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config.json as transformers 4 wrote it, and what had to change for that.

    Raises BadInput where rope_parameters have no base that could be lifted.
    """
    mended, changes = _rope(config)
    # mlc_llm's configurations have a field of that name, which means another thing.
    if "dtype" in mended:
        mended.setdefault("torch_dtype", mended.pop("dtype"))
        changes.append("dtype")
    inner = mended.get("text_config")
    if isinstance(inner, Mapping):
        mended["text_config"], more = mend(inner)
        changes += [f"text_config.{name}" for name in more]
    return mended, changes


def _rope(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return dict(config), []
    mended = {name: value for name, value in config.items() if name != "rope_parameters"}
    lifted: dict[str, Any] = {}
    if any(kind in rope for kind in _KINDS):
        for kind, name in _KINDS.items():
            if kind in rope:
                lifted[name] = _theta(rope[kind])
        scaling = _scaling(rope.get("full_attention", {}))
    else:
        lifted["rope_theta"] = _theta(rope)
        scaling = _scaling(rope)
    if scaling:
        lifted["rope_scaling"] = scaling
    changes = [name for name, value in lifted.items() if mended.get(name) is None]
    return {**mended, **{name: lifted[name] for name in changes}}, changes or ["rope_parameters"]


def _theta(rope: Mapping[str, Any]) -> Any:
    if not isinstance(rope, Mapping) or "rope_theta" not in rope:
        raise BadInput(
            "rope_parameters in config.json have no rope_theta",
            remedy="write it there: the number is the model's own",
        )
    return rope["rope_theta"]


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a stretched rotary embedding; nothing for the plain one."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    return {"rope_type": kind, **{k: v for k, v in rope.items() if k not in _NAMES}}
