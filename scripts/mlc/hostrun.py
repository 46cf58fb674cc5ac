"""A model library run by TVM's own runtime, without mlc_llm: what the app's engine does, in Python.

The library exports functions of its own (the names and arguments are upstream's, see
mlc_llm/testing/debug_chat.py): `_metadata` tells its sizes and the order of its parameters,
`create_tir_paged_kv_cache` makes the cache, `embed` turns tokens into vectors, `prefill` and
`decode` give the logits after the last token and `batch_verify` those after every one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagekit import BadInput

# The app's, too: mlc_llm/serve/engine_base. How many tokens one page of the cache holds.
PAGE_TOKENS = 16
_CACHE = "create_tir_paged_kv_cache"
_NEEDED = ("embed", "prefill", "decode", "batch_verify")
_BUILTIN = "vm.builtin.kv_state_{}"
_SEQUENCE = 0


@dataclass(kw_only=True)
class HostModel:
    """A library with its weights on this machine's processor; one conversation at a time."""

    vm: Any
    params: Any
    metadata: dict[str, Any]
    longest: int
    _cache: Any = field(default=None, init=False)
    _held: int = field(default=0, init=False)

    @property
    def chunk(self) -> int:
        """How many tokens the library takes at once."""
        return int(self.metadata["prefill_chunk_size"])

    def reset(self) -> None:
        """Forget the conversation."""
        if self._cache is None:
            self._cache = self._make_cache()
        else:
            _builtin("remove_sequence")(self._cache, _SEQUENCE)
        _builtin("add_sequence")(self._cache, _SEQUENCE)
        self._held = 0

    def rows(self, ids: list[int]) -> Any:
        """A row of logits after each of `ids`, from an empty conversation, float32."""
        import numpy as np

        self.reset()
        return np.concatenate([self._step("batch_verify", part) for part in self._chunks(ids)])

    def last(self, ids: list[int]) -> Any:
        """The logits after the last of `ids`, from an empty conversation, as the app gets them."""
        self.reset()
        return [self._step("prefill", part) for part in self._chunks(ids)][-1][-1]

    def next(self, token: int) -> Any:
        """The logits after one more token of this conversation."""
        return self._step("decode", [token])[-1]

    def answer(self, ids: list[int], limit: int, stops: set[int]) -> Iterator[int]:
        """The likeliest token after `ids`, then after that one too, …: at most `limit` of them."""
        row = self.last(ids)
        for count in range(1, limit + 1):
            token = int(row.argmax())
            if token in stops:
                return
            yield token
            if count < limit and self._held < self.longest:
                row = self.next(token)
            else:
                return

    def _chunks(self, ids: list[int]) -> Iterator[list[int]]:
        for start in range(0, len(ids), self.chunk):
            yield ids[start : start + self.chunk]

    def _step(self, function: str, ids: list[int]) -> Any:
        """Logits of one call, a row each. Raises BadInput where they are not finite."""
        import numpy as np

        if self._held + len(ids) > self.longest:
            raise BadInput(
                f"the library keeps {self.longest} tokens, and here are {self._held + len(ids)}",
                remedy="build with a larger context_window_size, or with prove none",
            )
        tvm = _tvm()
        vectors = self.vm["embed"](tvm.runtime.tensor(np.array(ids, dtype=np.int32)), self.params)
        shape = tvm.runtime.ShapeTuple([1, *vectors.shape])
        vectors = _global("vm.builtin.reshape")(vectors, shape)
        counts = (tvm.runtime.ShapeTuple([_SEQUENCE]), tvm.runtime.ShapeTuple([len(ids)]))
        _builtin("begin_forward")(self._cache, *counts)
        logits = self.vm[function](vectors, self._cache, self.params)[0].numpy()
        _builtin("end_forward")(self._cache)
        self._held += len(ids)
        rows = logits.reshape(-1, logits.shape[-1]).astype(np.float32, copy=True)
        if not bool(np.isfinite(rows[-1]).all()):
            raise BadInput(
                "the compiled model answers with numbers that are not finite",
                remedy="16-bit floats may be too narrow for it: try a quantization with f32",
            )
        return rows

    def _make_cache(self) -> Any:
        """A cache for one conversation of `longest` tokens."""
        slides = int(self.metadata.get("sliding_window_size", -1)) != -1
        sizes = (1, self.longest, self.chunk, PAGE_TOKENS, int(slides))
        shape = _tvm().runtime.ShapeTuple
        return self.vm[_CACHE](*(shape([size]) for size in sizes))


def load(library: Path, weights: Path, *, longest: int) -> HostModel:
    """A library and its weights, ready for conversations of `longest` tokens.

    Raises BadInput where the weights are not the library's, or it keeps no key-value cache.
    """
    tvm = _tvm()
    device = tvm.cpu()
    vm = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
    metadata: dict[str, Any] = json.loads(str(vm["_metadata"]()))
    kind = metadata.get("kv_state_kind", "kv_cache")
    lacking = [name for name in (*_NEEDED, _CACHE) if not vm.module.implements_function(name)]
    if kind != "kv_cache" or lacking:
        raise BadInput(
            f"a library with a state of kind {kind} cannot be run here"
            if kind != "kv_cache"
            else f"the library has no {', '.join(lacking)}, so it cannot be run here",
            remedy="build with prove none",
        )
    return HostModel(
        vm=vm,
        params=_params(weights, metadata, device),
        metadata=metadata,
        longest=_longest(metadata, longest),
    )


def _params(weights: Path, metadata: dict[str, Any], device: Any) -> Any:
    """The weights in the library's order, of its shapes and types."""
    from tvm.contrib import tvmjs

    held, _ = tvmjs.load_tensor_cache(str(weights), device)
    wanted = metadata["params"]
    missing = [p["name"] for p in wanted if p["name"] not in held]
    if missing or len(held) != len(wanted):
        name = missing[0] if missing else next(iter(set(held) - {p["name"] for p in wanted}))
        raise BadInput(
            f"library and weights are of two models: only one of them has {name}",
            remedy="make both with the same quantization and model_type",
        )
    for param in wanted:
        got = held[param["name"]]
        if str(got.dtype) != param["dtype"] or not _fits(got.shape, param["shape"]):
            raise BadInput(
                f"{param['name']} is {got.dtype} {tuple(got.shape)} in the weights and "
                f"{param['dtype']} {tuple(param['shape'])} in the library",
                remedy="make both with the same quantization",
            )
    return [held[param["name"]] for param in wanted]


def _fits(got: Any, wanted: list[Any]) -> bool:
    """Whether a shape is the wanted one, where a name (vocab_size) stands for any size."""
    pairs = zip(got, wanted, strict=False)
    return len(got) == len(wanted) and all(isinstance(w, str) or int(g) == w for g, w in pairs)


def _longest(metadata: dict[str, Any], wanted: int) -> int:
    """What the cache is made for: whole pages, and no more than the library's context."""
    window = int(metadata.get("context_window_size", -1))
    wanted = math.ceil(wanted / PAGE_TOKENS) * PAGE_TOKENS
    return wanted if window < 1 else min(wanted, window)


def _builtin(name: str) -> Any:
    return _global(_BUILTIN.format(name))


def _global(name: str) -> Any:
    import tvm_ffi

    return tvm_ffi.get_global_func(name)


def _tvm() -> Any:
    import tvm
    import tvm.relax

    return tvm
