"""The child's side: mends a few things of mlc_llm, then is `python -m mlc_llm ARGUMENTS`.

    --edgekiln-offers              prints what this mlc_llm has (one line of JSON), and ends
    --edgekiln-prefix PREFIX       compile takes this prefix for every device: upstream drops an
                                   explicit one unless the device is android, iphone or macabi
    --edgekiln-objects             compile writes object files into the .tar, and links nothing

Always: TVM lists the statements of a shape function in the order of a table whose hashes are
addresses, another one on every run. They are put in the order of what they write. And products on
a processor are scheduled (hostkernels.py).

And where mlc_llm was given as Python files alone, without its library, what gen_config asks that
library about the tokenizer is answered here, by the same rules (cpp/tokenizers/tokenizers.cc).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hostkernels

_SPACE = "\u2581"  # the mark that SentencePiece puts for a space
_CODEGENS = ("opencl", "vulkan", "metal", "webgpu", "cuda", "rocm", "hexagon", "llvm")


def main(words: list[str]) -> None:
    """Take this program's own words off, mend, and hand over."""
    if words == ["--edgekiln-offers"]:
        _without_library()
        print(f"edgekiln-offers:{json.dumps(offers())}")
        return
    prefix = None
    objects = False
    while words and words[0].startswith("--edgekiln-"):
        word = words.pop(0)
        prefix = words.pop(0) if word == "--edgekiln-prefix" else prefix
        objects = objects or word == "--edgekiln-objects"
    _without_library()
    if words[0] == "convert_weight":
        _processor_is_here()
    if words[0] == "compile":
        _steady_shapes()
        hostkernels.install()
    if prefix is not None:
        _keep_prefix(prefix)
    if objects:
        _objects_only()
    sys.argv[1:] = words
    runpy.run_module("mlc_llm", run_name="__main__", alter_sys=True)


def offers() -> dict[str, Any]:
    """Names of quantisations, templates and models, and the code generators of its TVM."""
    tvm_ffi: Any = importlib.import_module("tvm_ffi")
    flow = importlib.import_module("mlc_llm.interface.gen_config")
    registry = importlib.import_module("mlc_llm.conversation_template").ConvTemplateRegistry
    registered = set(registry._conv_templates)
    return {
        "version": importlib.import_module("mlc_llm.libinfo").__version__,
        "quantizations": list(importlib.import_module("mlc_llm.quantization").QUANTIZATION),
        # Its command line takes some names that no template is registered for.
        "templates": sorted(registered & set(flow.CONV_TEMPLATES)),
        "models": list(importlib.import_module("mlc_llm.model").MODELS),
        "codegens": [
            name for name in _CODEGENS if tvm_ffi.get_global_func(f"target.build.{name}", True)
        ],
    }


def _without_library() -> bool:
    """Whether this mlc_llm has no compiled library, as a checkout that nobody has built.

    convert_weight, gen_config and compile can do without. The package is then entered without its
    __init__, which imports the server and so the library's classes.
    """
    found = importlib.util.find_spec("mlc_llm")
    if found is None or not found.submodule_search_locations:
        return False
    places = _library_places(Path(found.submodule_search_locations[0]).resolve())
    if any(any(place.glob("libmlc_llm_module.*")) for place in places if place.is_dir()):
        return False
    os.environ["SKIP_LOADING_MLCLLM_SO"] = "1"
    package = types.ModuleType("mlc_llm")
    package.__path__ = list(found.submodule_search_locations)
    package.__file__, package.__spec__ = found.origin, found
    sys.modules["mlc_llm"] = package
    sys.modules["mlc_llm.tokenizers"] = _tokenizers()
    return True


def _processor_is_here() -> None:
    """mlc_llm need not start itself anew, in seconds, to find out whether there is a processor."""
    devices: Any = importlib.import_module("mlc_llm.support.auto_device")
    getattr(devices, "_RESULT_CACHE", {})["cpu:0"] = True


def _library_places(package: Path) -> list[Path]:
    """Where mlc_llm.libinfo looks for its library (Linux)."""
    build = package.parents[1] / "build"
    words = (os.environ.get(name, "") for name in ("MLC_LIBRARY_PATH", "LD_LIBRARY_PATH"))
    named = [Path(part.strip()) for word in words for part in word.split(":") if part.strip()]
    return [package, package / "lib", build, build / "Release", *named]


@dataclass
class TokenizerInfo:
    """What gen_config writes down of a tokenizer, by mlc_llm's names."""

    token_postproc_method: str
    prepend_space_in_encode: bool
    strip_space_in_decode: bool


def _tokenizers() -> types.ModuleType:
    """In place of mlc_llm.tokenizers, whose classes live in the library."""

    class Tokenizer:
        @staticmethod
        def detect_tokenizer_info(folder: str) -> TokenizerInfo:
            file = Path(folder) / "tokenizer.json"
            told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            return TokenizerInfo(**tokenizer_info(told))

    module: Any = types.ModuleType("mlc_llm.tokenizers")
    module.Tokenizer, module.TokenizerInfo = Tokenizer, TokenizerInfo
    return cast(types.ModuleType, module)


def tokenizer_info(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What mlc_llm wants to know of a tokenizer, out of its tokenizer.json ({} for none)."""
    decoders = list(_parts(tokenizer.get("decoder"), "decoders"))
    methods = {"ByteLevel": "byte_level", "ByteFallback": "byte_fallback"}
    said = [methods[part["type"]] for part in decoders if part["type"] in methods]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    return {
        "token_postproc_method": said[-1] if said else "byte_fallback",
        "prepend_space_in_encode": prepend in _parts(tokenizer.get("normalizer"), "normalizers"),
        "strip_space_in_decode": strip in decoders,
    }


def _parts(value: Any, name: str) -> Iterator[dict[str, Any]]:
    """A step of a tokenizer, or the steps of a sequence."""
    if isinstance(value, dict):
        yield from value[name] if value.get("type") == "Sequence" else [value]


def _steady_shapes() -> None:
    """Sort what VMShapeLower writes, as soon as it has.

    A TVM whose functions are made another way compiles as it would without.
    """
    tvm: Any = importlib.import_module("tvm")
    transform: Any = importlib.import_module("tvm.relax.transform")
    lower = getattr(transform, "VMShapeLower", None)
    if lower is None:
        return

    def steadied(mod: Any, _: Any) -> Any:
        try:
            for name, function in list(mod.functions_items()):
                if name.name_hint.startswith("shape_func"):
                    mod[name] = steady_shape(function)
        except (AttributeError, TypeError) as error:
            print(f"shape functions are left as they are: {error}", file=sys.stderr)
        return mod

    steady = tvm.transform.module_pass(steadied, opt_level=0)

    def lower_steadily(*words: Any, **more: Any) -> Any:
        return tvm.transform.Sequential([lower(*words, **more), steady])

    transform.VMShapeLower = lower_steadily


def steady_shape(function: Any) -> Any:
    """A function that stores shapes, its statements in the order of the slots they write.

    One that reads what it writes, or does anything else, stays as it is.
    """
    tvm: Any = importlib.import_module("tvm")
    tir = tvm.tirx if hasattr(tvm, "tirx") else tvm.tir
    stores = list(function.body) if isinstance(function.body, tir.SeqStmt) else []
    if not stores or not all(_is_slot(tir, store) for store in stores):
        return function
    read: list[Any] = []

    def note(node: Any) -> None:
        if isinstance(node, tir.BufferLoad):
            read.append(node.indices)

    for store in stores:
        tir.stmt_functor.post_order_visit(store.value, note)
    written = [int(store.indices[0]) for store in stores]
    plain = all(len(i) == 1 and isinstance(i[0], tir.IntImm) for i in read)
    if not plain or len(set(written)) < len(written) or {int(i[0]) for i in read} & set(written):
        return function
    ordered = sorted(stores, key=lambda store: int(store.indices[0]))
    return function.with_body(tir.SeqStmt(ordered))


def _is_slot(tir: Any, store: Any) -> bool:
    """Whether a statement stores a value at a fixed place."""
    return (
        isinstance(store, tir.BufferStore)
        and len(store.indices) == 1
        and isinstance(store.indices[0], tir.IntImm)
    )


def _keep_prefix(prefix: str) -> None:
    """The name that compile's command line looks up is replaced by one that obeys."""
    program: Any = importlib.import_module("mlc_llm.cli.compile")
    program.detect_system_lib_prefix = lambda *_: prefix


def _objects_only() -> None:
    """Whatever the target's own way of linking, its objects go into a .tar."""
    program: Any = importlib.import_module("mlc_llm.cli.compile")
    relax: Any = importlib.import_module("tvm.relax")
    newer = importlib.util.find_spec("tvm.support.tar")
    tar: Any = importlib.import_module("tvm.support.tar" if newer else "tvm.contrib.tar")
    detect = program.detect_target_and_host

    def build(mod: Any, args: Any, pipeline: Any = None) -> None:
        if args.system_lib_prefix:
            mod = mod.with_attrs({"system_lib_prefix": args.system_lib_prefix})
        built = relax.build(mod, target=args.target, relax_pipeline=pipeline, system_lib=True)
        built.export_library(str(args.output), fcompile=tar.tar)

    program.detect_target_and_host = lambda *words, **more: (detect(*words, **more)[0], build)


if __name__ == "__main__":
    # This folder is of no business to mlc_llm, nor to what it starts.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    main(sys.argv[1:])
