"""A look into a model directory, before anything is spent on it.

Only headers are read, so that the look costs milliseconds for any size. What is missing, cut
short or not what it seems is named here rather than hours into a build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import ModelError, nearest
from edgekiln.models.files import check, check_json_ends, read_json, readable
from edgekiln.models.found import Weights, find_weights
from edgekiln.models.model import Model, name_of

# Where families keep their sizes: the common name first, then older ones.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "multi_query_group_num", "num_kv_heads")
VOCABULARY = ("vocab_size", "padded_vocab_size")
CONTEXT = ("max_position_embeddings", "seq_length", "n_positions", "model_max_length")
# Models of several parts keep the language model's sizes one level down.
PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
# Families whose head is known to be called lm_head; others may have it by another name.
HEADED = frozenset(
    ("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "phi3")
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt")


def inspect(
    path: Path, *, trust_pickle: bool = False, source: str = "local", name: str | None = None
) -> Model:
    """The model in the directory `path`; ModelError or AccessError where it is not whole."""
    path = Path(path).absolute()
    _check_folder(path)
    config = _config(path)
    part = _language_part(config)
    dtype = str(part.get("dtype") or part.get("torch_dtype") or "float16")
    weights = find_weights(path, trust_pickle=trust_pickle, dtype=dtype)
    _check_tokenizer(path)
    return _model(path, config, part, weights, source=source, name=name or name_of(path))


def _check_folder(path: Path) -> None:
    """It has to be a folder with something in it."""
    with readable(path):
        if path.is_file():
            raise ModelError(
                f"{path} is a file", why="a model is a directory", remedy=_for_file(path)
            )
        if not path.is_dir():
            raise ModelError(f"{path} does not exist", remedy=_sibling(path))
        if not any(path.iterdir()):
            raise ModelError(
                f"{path} is empty", remedy="put the model's files there, or name another folder"
            )


def _for_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return "take the model's original repository, with safetensors: a GGUF is for llama.cpp"
    return f"name the folder: {path.parent}"


def _sibling(path: Path) -> str:
    """The folder beside it that comes nearest to what was asked for."""
    with readable(path.parent):
        if not path.parent.is_dir():
            return f"{path.parent} does not exist either"
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    near = nearest(path.name, names)
    return near if near.startswith("did you") else f"look into {path.parent}"


def _config(path: Path) -> dict[str, Any]:
    """config.json, which has to name the family."""
    if not (path / "config.json").exists():
        raise _no_config(path)
    config = read_json(path / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise ModelError(
            f"{path / 'config.json'} does not name the model's family",
            why="it has no model_type",
            remedy="take config.json from the model's original repository",
        )
    return config


def _no_config(path: Path) -> ModelError:
    with readable(path):
        names = sorted(entry.name for entry in path.iterdir())
        deeper = [name for name in names if (path / name / "config.json").is_file()]
    ggufs = [name for name in names if name.endswith(".gguf")]
    remedy = "name a folder with config.json, the weights and the tokenizer"
    if ggufs:
        remedy = f"{ggufs[0]} is for llama.cpp: take the model's original repository"
    elif deeper:
        remedy = f"did you mean {path / deeper[0]}?"
    return ModelError(f"{path} is not a model directory", why="no config.json", remedy=remedy)


def _language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping that holds the language model's sizes, over what the whole says."""
    for name in PARTS:
        part = config.get(name)
        if isinstance(part, dict):
            return {**config, **_language_part(part)}
    return config


def _check_tokenizer(path: Path) -> None:
    """Some tokenizer that is known, with content."""
    with readable(path):
        names = {entry.name for entry in path.iterdir()}
        found = [name for name in TOKENIZERS if name in names]
        found += sorted(name for name in names if name.endswith(".tiktoken"))
        if {"vocab.json", "merges.txt"} <= names:
            found += ["vocab.json", "merges.txt"]
    if not found:
        raise ModelError(
            f"{path} has no tokenizer",
            why="neither tokenizer.json nor tokenizer.model nor vocab.json with merges.txt",
            remedy="get the tokenizer's files from the model's original repository",
        )
    for name in found:
        check_json_ends(path / name) if name.endswith(".json") else check(path / name)


def _model(
    path: Path,
    config: Mapping[str, Any],
    part: Mapping[str, Any],
    weights: Weights,
    *,
    source: str,
    name: str,
) -> Model:
    where = path / "config.json"
    hidden, heads = _size(part, HIDDEN, where), _size(part, HEADS, where)
    tied = _tied(path, part, weights)
    repeated = weights.head_parameters if tied else 0
    return Model(
        name=name,
        path=path,
        source=source,
        family=config["model_type"],
        config=config,
        parameters=weights.parameters - repeated,
        weight_bytes=weights.bytes,
        dtype=weights.dtype,
        layers=_size(part, LAYERS, where),
        hidden_size=hidden,
        heads=heads,
        kv_heads=_size(part, KV_HEADS, where, default=heads),
        head_dim=_size(part, ("head_dim", "kv_channels"), where, default=hidden // heads),
        vocab_size=_size(part, VOCABULARY, where),
        context_length=_size(part, CONTEXT, where, default=0),
        tied=tied,
    )


def _size(
    part: Mapping[str, Any], keys: Sequence[str], where: Path, default: int | None = None
) -> int:
    """The first of `keys` that is there; it has to be a whole number above zero."""
    key = next((key for key in keys if part.get(key) is not None), None)
    if key is None:
        if default is None:
            raise ModelError(f"{where} has no {keys[0]}", remedy="take the model's own config.json")
        return default
    value = part[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"{where}: {key} is not a size",
            why=f"found {value!r}, expected a whole number above 0",
            remedy="take the model's own config.json",
        )
    return value


def _tied(path: Path, part: Mapping[str, Any], weights: Weights) -> bool:
    """Whether the head is the embedding: config.json's word, or, without one, the weights'."""
    said = part.get("tie_word_embeddings")
    if weights.head is False and said is False and part.get("model_type") in HEADED:
        raise ModelError(
            f"{path} has no lm_head.weight",
            why="config.json says that the head is not the embedding (tie_word_embeddings)",
            remedy="get the model again, all of its files",
        )
    return bool(said) if said is not None else weights.head is False
