"""The weights of a model directory: which files they are, and whether all of them are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import ModelError
from edgekiln.models.files import check, read_json, readable
from edgekiln.models.weights import Tensor, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLES = re.compile(r"(?!training_args|optimizer|scheduler|rng_state).+\.(bin|pt|pth|ckpt)")
HEAD = re.compile(r"(?:.*\.)?(?:lm_head|embed_out|output_layer)\.q?weight|output\.q?weight")
DTYPES: Mapping[str, str] = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F4": "float4"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool"},
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the headers of the weight files tell; `head` is None where they cannot tell."""

    parameters: int
    bytes: int
    dtype: str
    head: bool | None
    head_parameters: int = 0


def find_weights(folder: Path, *, trust_pickle: bool, dtype: str) -> Weights:
    """The weights of `folder` that transformers would load, checked; ModelError if none are whole.

    `dtype` is config.json's word, for pickles: they are not opened, only weighed.
    """
    with readable(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    if SINGLE in names:
        return _summary(folder, read_whole(folder / SINGLE))
    if INDEX in names:
        return _summary(folder, read_sharded(folder / INDEX))
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if safetensors:
        raise _not_loadable(folder, safetensors)
    pickles = [name for name in names if PICKLES.fullmatch(name)]
    if pickles:
        return _pickles(folder, pickles, names, trust_pickle=trust_pickle, dtype=dtype)
    raise _none(folder, names)


def read_whole(path: Path) -> dict[str, Tensor]:
    """The tensors of one weight file."""
    check(path)
    with readable(path):
        tensors = read_header(path)
    if not tensors:
        raise ModelError(f"{path} holds no tensor", remedy="get the model again")
    return tensors


def read_sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all files an index names, each in the file the index says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index} is damaged", why="it has no weight_map", remedy="get it again")
    files = {str(name): index.parent / str(name) for name in places.values()}
    _check_shards(index, files)
    found = {name: read_whole(path) for name, path in sorted(files.items())}
    for tensor, name in places.items():
        if tensor not in found[name]:
            raise ModelError(
                f"{files[name]} does not hold {tensor}",
                why=f"{index.name} says it does: index and file are from different models",
                remedy="get the model again, all of its files from one revision",
            )
    return {name: tensor for part in found.values() for name, tensor in part.items()}


def _check_shards(index: Path, files: Mapping[str, Path]) -> None:
    """Every file an index names must be there; a name may not lead out of the folder."""
    strays = [name for name in files if Path(name).name != name]
    if strays:
        raise ModelError(
            f"{index} is damaged",
            why=f"it names a file outside: {strays[0]}",
            remedy="get the model from its makers",
        )
    with readable(index):
        missing = sorted(name for name, path in files.items() if not path.exists())
    if missing:
        raise ModelError(
            f"{index.parent} lacks {missing[0]}",
            why=f"{len(missing)} of the {len(files)} weight files {index.name} names are missing",
            remedy="get the model again, all of its files",
        )


def _summary(folder: Path, tensors: Mapping[str, Tensor]) -> Weights:
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[tensor.dtype] += tensor.elements
    commonest = elements.most_common(1)[0][0]
    heads = [tensor for name, tensor in tensors.items() if HEAD.fullmatch(name)]
    return Weights(
        parameters=sum(elements.values()),
        bytes=sum(tensor.end - tensor.begin for tensor in tensors.values()),
        dtype=DTYPES.get(commonest, commonest.lower()),
        head=bool(heads),
        head_parameters=sum(tensor.elements for tensor in heads),
    )


def _not_loadable(folder: Path, names: Sequence[str]) -> ModelError:
    """Why safetensors files that are there are still not a model's weights."""
    if "adapter_model.safetensors" in names:
        return ModelError(
            f"{folder} holds an adapter, not a model",
            why="adapter_model.safetensors is what a LoRA adds to a model",
            remedy="name the base model, and the adapter by the option for it",
        )
    return ModelError(
        f"{folder} has neither {SINGLE} nor {INDEX}",
        why=f"found only {', '.join(names[:3])}, which nothing says how to put together",
        remedy=f"get the model again, {INDEX} included",
    )


def _pickles(
    folder: Path, pickles: Sequence[str], names: Sequence[str], *, trust_pickle: bool, dtype: str
) -> Weights:
    """Weigh pickles that the user trusts; refuse them otherwise."""
    if not trust_pickle:
        raise ModelError(
            f"{folder} has its weights as a pickle only: {pickles[0]}",
            why="opening a pickle runs whatever program it holds",
            remedy="take a revision with safetensors, or pass --trust-pickle if you trust it",
        )
    if PICKLE_INDEX in names:
        places = read_json(folder / PICKLE_INDEX).get("weight_map") or {}
        pickles = sorted({str(name) for name in places.values()})
        _check_shards(folder / PICKLE_INDEX, {name: folder / name for name in pickles})
    size = sum(_weigh(folder / name) for name in pickles)
    width = 4 if dtype == "float32" else 2
    return Weights(parameters=size // width, bytes=size, dtype=dtype, head=None)


def _weigh(path: Path) -> int:
    """Bytes of a pickle; torch writes a zip, whose directory at the end shows that it is whole."""
    import zipfile

    check(path)
    with readable(path), path.open("rb") as file:
        if file.read(2) == b"PK" and not zipfile.is_zipfile(path):
            raise ModelError(f"{path} is cut short", remedy="get that file again")
        return path.stat().st_size


def _none(folder: Path, names: Sequence[str]) -> ModelError:
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return ModelError(
            f"{folder} holds only a GGUF: {ggufs[0]}",
            why="a GGUF is already quantised, for llama.cpp",
            remedy="take the model's original repository, with safetensors",
        )
    return ModelError(
        f"{folder} has no weights",
        why=f"neither {SINGLE} nor {INDEX} is there",
        remedy="get the model again, its .safetensors files included",
    )
