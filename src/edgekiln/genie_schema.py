"""What Genie reads in a dialog configuration: every key, its type, whether it must be there.

Read from the schemas that libGenie 1.21 (QNN 2.51) carries and checked against what it accepts.
It refuses a configuration with a key it does not know, and so do its older releases. Blocks of
dialogs other than the plain ones (speculation, embeddings, LoRA) are named and not looked into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekiln.errors import nearest


@dataclass(frozen=True, kw_only=True)
class Block:
    """A JSON object: keys that must be there and keys that may, each with what it holds."""

    needed: Mapping[str, Kind]
    more: Mapping[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """Text that is one of these."""

    of: tuple[str, ...]


# "any" is not looked into; several names are alternatives.
Kind = str | Block | Words

_VERSION: dict[str, Kind] = {"version": "whole number"}
_DIALOGS = ("basic", "ssd-q1", "lade", "spd", "multistream", "eaglet", "kv-share")
_NUMBER, _WHOLE, _TEXT, _FLAG, _LIST = "number", "whole number", "text", "true or false", "list"


def _each(kind: Kind, names: str) -> dict[str, Kind]:
    """The same for several keys."""
    return dict.fromkeys(names.split(), kind)


_ALTERNATIVES = {
    "text or list": (_TEXT, _LIST),
    "whole number or list": (_WHOLE, _LIST),
}

ROPE_SCALING = Block(
    needed={},
    more={
        "rope-type": Words(
            (
                "llama3",
                "default",
                "longrope",
                "qwen2vl-mrope",
                "qwen3vl-mrope",
                "yarnrope",
                "linear",
                "hunyuan",
                "proportional",
            )
        ),
        **_each(
            _NUMBER,
            "factor low-freq-factor high-freq-factor "
            "original-max-position-embeddings time-step spatial-merge-size dim "
            "extrapolation-factor attn-factor beta-fast beta-slow "
            "partial-rotary-factor",
        ),
        "short-factor": _LIST,
        "long-factor": _LIST,
        "mrope-section": _LIST,
    },
)
POSITIONS = Block(
    needed={},
    more={
        "type": Words(("rope", "absolute", "alibi", "none")),
        "rope-dim": _WHOLE,
        "rope-theta": _NUMBER,
        "rope-freqs-type": _TEXT,
        "rope-scaling": ROPE_SCALING,
        "prefix": _TEXT,
    },
)
HTP = Block(
    needed={
        **_VERSION,
        "spill-fill-bufsize": _WHOLE,
        "mmap-budget": _WHOLE,
        "use-mmap": _FLAG,
        "cpu-mask": _TEXT,
        "poll": _FLAG,
    },
    more={
        "pos-id-dim": _WHOLE,
        "kv-dim": _WHOLE,
        "batch-size": _WHOLE,
        "batch-multiplier": _WHOLE,
        "data-alignment-size": _WHOLE,
        "rope-theta": _NUMBER,
        **_each(
            _FLAG,
            "shared-engine allow-async-init allow-async-enqueue "
            "enable-graph-switching weight-shared-lora skip-lora-validation "
            "multi-nsp-prefill direct-io",
        ),
        "graph-switching-lora-policy": Words(("lazy", "eager")),
        "graph-retention-order": _LIST,
        "execute-select-graphs": _LIST,
        "kv-update-method": _TEXT,
    },
)
BACKEND = Block(
    needed={**_VERSION, "type": Words(("QnnHtp", "QnnGenAiTransformer", "QnnGpu", "GTE"))},
    more={
        "QnnHtp": HTP,
        "QnnGenAiTransformer": "any",
        "QnnGpu": "any",
        "GTE": "any",
        "extensions": "text or list",
        "device": _TEXT,
    },
)
MODEL = Block(
    needed={**_VERSION, "type": Words(("binary", "library", "checkpoint", "scopgpt-gguf"))},
    more={
        "binary": Block(needed=_VERSION, more={"ctx-bins": _LIST, "fcb": _LIST, "lora": "any"}),
        "library": "any",
        "checkpoint": "any",
        "scopgpt-gguf": "any",
        "positional-encoding": "any",
        "cross-attention": _FLAG,
        "linear-attention": _FLAG,
        "mask-type": _TEXT,
        "draft-token-map": _TEXT,
    },
)
ENGINE = Block(
    needed={**_VERSION, "n-threads": _WHOLE, "backend": BACKEND, "model": MODEL},
    more={
        "role": _TEXT,
        "type": _TEXT,
        "longcontext": "any",
        "cache-groups": _LIST,
        "batching": "any",
        "training-config": "any",
        "optimizer-config": "any",
    },
)
DIALOG = Block(
    needed={
        **_VERSION,
        "type": Words(_DIALOGS),
        "context": Block(
            needed={
                **_VERSION,
                "size": _WHOLE,
                "n-vocab": _WHOLE,
                "bos-token": _WHOLE,
                "eos-token": "whole number or list",
            },
            more={
                **_each(
                    _WHOLE,
                    "eot-token img-token pad-token draft-n-vocab n-embd embedding-length",
                ),
                "grammar": "any",
            },
        ),
        "tokenizer": Block(needed={**_VERSION, "path": _TEXT}),
        "engine": "any",
    },
    more={
        "sampler": Block(
            needed=_VERSION,
            more={
                "type": Words(("basic", "custom")),
                "seed": _WHOLE,
                "temp": _NUMBER,
                "top-k": _WHOLE,
                "top-p": _NUMBER,
                "greedy": _FLAG,
                "callback-name": _TEXT,
                "token-penalty": Block(
                    needed=_VERSION,
                    more={
                        "penalize-last-n": _WHOLE,
                        "repetition-penalty": _NUMBER,
                        "presence-penalty": _NUMBER,
                        "frequency-penalty": _NUMBER,
                    },
                ),
            },
        ),
        "stop-sequence": _LIST,
        "max-num-tokens": _WHOLE,
        "accumulator-size": _WHOLE,
        "callback-type": _TEXT,
        **_each(
            "any",
            "embedding perlayer-embedding ssd-q1 lade spd multistream eaglet "
            "kv-share harmony debug nested-generator nested-policy",
        ),
    },
)
ROOT = Block(needed={"dialog": DIALOG})

# The backend extension file of the phone (libQnnHtpNetRunExtensions.so), keys that are known.
_CORE = Block(
    needed={},
    more={
        "core_id": "whole number or list",
        "core_type": _TEXT,
        "perf_profile": _TEXT,
        "rpc_control_latency": _WHOLE,
        "rpc_polling_time": _WHOLE,
        "hmx_timeout_us": _WHOLE,
    },
)
EXTENSIONS = Block(
    needed={},
    more={
        "devices": _LIST,
        "graphs": _LIST,
        "memory": Block(needed={}, more={"mem_type": _TEXT}),
        "context": "any",
        "groupContext": "any",
    },
)
EXTENSION_DEVICE = Block(
    needed={},
    more={
        "device_id": _WHOLE,
        "soc_id": _WHOLE,
        "soc_model": _WHOLE,
        "dsp_arch": _TEXT,
        "pd_session": _TEXT,
        "profiling_level": _TEXT,
        "use_client_context": _FLAG,
        "cores": _LIST,
    },
)
EXTENSION_CORE = _CORE


def misfits(value: Any, kind: Kind, where: str) -> Iterator[tuple[str, str, str]]:
    """(where, what, remedy) for each thing in `value` that is not as `kind` says."""
    if isinstance(kind, Block):
        if isinstance(value, dict):
            yield from _keys(value, kind, where)
        else:
            yield where, f"is {_shown(value)}, not a JSON object", "write {…}"
    elif isinstance(kind, Words):
        if value not in kind.of:
            yield where, f"is {_shown(value)}", nearest(str(value), kind.of)
    elif not any(_is(value, name) for name in _ALTERNATIVES.get(kind, (kind,))):
        yield where, f"is {_shown(value)}", f"give {_article(kind)}"


def _keys(value: Mapping[str, Any], block: Block, where: str) -> Iterator[tuple[str, str, str]]:
    known = {**block.needed, **block.more}
    for name in block.needed:
        if name not in value:
            yield f"{where}.{name}".lstrip("."), "is missing", "add it: Genie will not start"
    for name, held in value.items():
        path = f"{where}.{name}".lstrip(".")
        if name in known:
            yield from misfits(held, known[name], path)
        else:
            yield path, "is no key that Genie knows", nearest(name, known)


def _is(value: Any, name: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "any": True,
        _NUMBER: number,
        _WHOLE: number and float(value).is_integer() if number else False,
        _TEXT: isinstance(value, str),
        _LIST: isinstance(value, list),
        _FLAG: isinstance(value, bool),
    }[name]


def _article(kind: str) -> str:
    return kind if kind in (_TEXT, _FLAG) else f"a {kind}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]}…"
