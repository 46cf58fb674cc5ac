"""JSON files that tools for phones write: which one it is, by its keys, and what it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekiln import units
from edgekiln.artifacts import Facts, damaged, unknown
from edgekiln.artifacts.genie_profile import TYPE, parse_profile

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def is_json(start: bytes) -> bool:
    """Whether a file that begins so can be a JSON mapping or list."""
    text = start.removeprefix(_BYTE_ORDER_MARK).lstrip()
    return text[:1] in (b"{", b"[") and b"\0" not in text[:256]


def read(path: Path) -> Facts:
    """A JSON file of a known kind."""
    try:
        value = json.loads(path.read_bytes().removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "JSON file", error) from error
    if not isinstance(value, dict):
        raise unknown(path, f"it is JSON, a {type(value).__name__}")
    for fits, kind in _KINDS:
        if fits(value):
            try:
                return kind(value, path)
            except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                raise damaged(path, "JSON file", f"not as expected: {error!r}") from error
    keys = ", ".join(list(value)[:8])
    raise unknown(path, f"it is JSON with the keys {keys}" if keys else "it is an empty mapping")


def _profile(value: dict[str, Any], path: Path) -> Facts:
    found = parse_profile(value, str(path))
    queries = [dict(vars(query)) for query in found.queries]
    rows = [("kind", f"Genie profile {found.version}"), ("questions", str(len(queries)))]
    if found.init_s is not None:
        rows.append(("loading", units.seconds(found.init_s)))
    for query in found.queries:
        rows.append(("tokens", f"{query.prompt_tokens} in, {query.generated_tokens} out"))
        if query.prompt_tokens_per_second is not None:
            rows.append(("prompt", f"{query.prompt_tokens_per_second:.1f} tokens/s"))
        if query.tokens_per_second is not None:
            rows.append(("answer", f"{query.tokens_per_second:.2f} tokens/s"))
        if query.time_to_first_token_s is not None:
            rows.append(("first token", f"after {query.time_to_first_token_s:.3f} s"))
    facts = {"version": found.version, "init_s": found.init_s, "queries": queries}
    return Facts(kind="genie_profile", facts=facts, rows=tuple(rows))


def _dialog(value: dict[str, Any], path: Path) -> Facts:
    """Genie's configuration of a dialog; the files it names are looked for beside it."""
    dialog = value["dialog"]
    engine, context = dialog["engine"], dialog["context"]
    model, backend = engine["model"], engine["backend"]
    binaries = model.get("binary", {}).get("ctx-bins", [])
    named = [*binaries, dialog.get("tokenizer", {}).get("path"), backend.get("extensions")]
    files = {name: (path.parent / name).is_file() for name in named if name}
    rope = model.get("positional-encoding", {})
    facts = {
        "type": dialog.get("type", ""),
        "backend": backend["type"],
        "context": context["size"],
        "vocabulary": context.get("n-vocab"),
        "eos": context.get("eos-token"),
        "sampler": dialog.get("sampler", {}),
        "rope": {k: v for k, v in rope.items() if k != "type"},
        "files": files,
    }
    rows = [
        ("kind", f"Genie configuration, dialog of type {facts['type']}"),
        ("backend", facts["backend"]),
        ("context", f"{facts['context']} tokens, vocabulary {facts['vocabulary']}"),
        ("ends with", str(facts["eos"])),
        *(("file", f"{n}{'' if there else ': missing'}") for n, there in files.items()),
    ]
    return Facts(kind="genie_config", facts=facts, rows=tuple(rows))


def _extensions(value: dict[str, Any], _: Path) -> Facts:
    """Settings of the HTP backend: which chip, how fast, whether weights are shared."""
    from edgekiln.backends.qnn_socs import socs

    rows = [("kind", "backend extensions of QNN's HTP")]
    devices = []
    for device in value["devices"]:
        number = device.get("soc_model", device.get("soc_id"))
        chip = next((s.title for s in socs() if s.soc_model == number), "")
        devices.append({"soc_model": number, "arch": device.get("dsp_arch"), "chip": chip})
        rows.append(("for", f"soc_model {number} {chip}, Hexagon {device.get('dsp_arch')}"))
    shared = bool(value.get("context", {}).get("weight_sharing_enabled")) or bool(
        value.get("groupContext", {}).get("share_resources")
    )
    rows.append(("weights", "shared between graphs" if shared else "each graph's own"))
    facts = {"devices": devices, "weight_sharing": shared}
    return Facts(kind="htp_extensions", facts=facts, rows=tuple(rows))


def _encodings(value: dict[str, Any], _: Path) -> Facts:
    """AIMET's encodings of any version, counted by bits."""
    facts: dict[str, Any] = {"version": str(value.get("version", "0.6.1"))}
    rows = [("kind", f"quantisation encodings, version {facts['version']}")]
    sides = {"activations": "activation_encodings", "parameters": "param_encodings"}
    if "encodings" in value:
        sides = {"tensors": "encodings"}
    for word, key in sides.items():
        counts = Counter(_bits(value.get(key, {})))
        facts[word] = dict(counts)
        text = ", ".join(f"{n} of {bits}" for bits, n in counts.most_common())
        rows.append((word, text or "none"))
    return Facts(kind="encodings", facts=facts, rows=tuple(rows))


def _bits(entries: Any) -> Iterator[str]:
    """Each tensor's type in a word: int4 per channel, int16, float16."""
    listed = entries.values() if isinstance(entries, dict) else entries
    for entry in listed:
        first = entry[0] if isinstance(entry, list) else entry
        channels = len(entry) if isinstance(entry, list) else 1
        if "output_dtype" in first:  # 2.0.0
            scale = first.get("y_scale", 0)
            kind, wide = str(first["output_dtype"]), isinstance(scale, list)
            yield f"{kind} per channel" if wide else kind
            continue
        bits = first.get("bw", first.get("bitwidth"))
        kind = str(first.get("dtype", "int")).lower()
        spread = str(first.get("enc_type", "PER_CHANNEL" if channels > 1 else "PER_TENSOR"))
        words = {"PER_CHANNEL": " per channel", "PER_BLOCK": " per block"}.get(spread, "")
        yield f"{kind}{bits}{words}"


def _mlc_chat(value: dict[str, Any], _: Path) -> Facts:
    names = ("model_type", "quantization", "context_window_size", "prefill_chunk_size")
    facts = {name: value.get(name) for name in (*names, "vocab_size", "version")}
    rows = [("kind", "MLC chat configuration"), ("model", f"{facts['model_type']}")]
    rows += [
        ("quantised", str(facts["quantization"])),
        ("context", f"{facts['context_window_size']}, read {facts['prefill_chunk_size']} at once"),
    ]
    return Facts(kind="mlc_config", facts=facts, rows=tuple(rows))


def _tensor_cache(value: dict[str, Any], path: Path) -> Facts:
    """The index of MLC's weights: shards beside it, each with its tensors."""
    shards = value["records"]
    count = sum(len(shard["records"]) for shard in shards)
    size = sum(int(shard["nbytes"]) for shard in shards)
    bad = [
        shard["dataPath"]
        for shard in shards
        if not _is_whole(path.parent / shard["dataPath"], int(shard["nbytes"]))
    ]
    about = value.get("metadata", {})
    facts = {"shards": len(shards), "tensors": count, "bytes": size, "broken": bad, **about}
    rows = [
        ("kind", f"MLC weights, {count} tensors in {len(shards)} shards"),
        ("weights", units.size(size)),
    ]
    if "BitsPerParam" in about:
        rows.append(("bits", f"{about['BitsPerParam']:.3f} a parameter"))
    rows += [("broken", f"{name}: missing, or not of its size") for name in bad]
    return Facts(kind="mlc_weights", facts=facts, rows=tuple(rows))


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _mnn_llm(value: dict[str, Any], _: Path) -> Facts:
    names = ("model_type", "hidden_size", "layer_nums", "attention_mask", "key_value_shape")
    facts = {name: value[name] for name in names if name in value}
    rows = [("kind", "MNN language model configuration (llm_config.json)")]
    rows += [(name, str(found)) for name, found in facts.items()]
    return Facts(kind="mnn_llm_config", facts=facts, rows=tuple(rows))


def _mnn_runtime(value: dict[str, Any], path: Path) -> Facts:
    files = {
        value[name]: (path.parent / value[name]).is_file()
        for name in ("llm_model", "llm_weight")
        if isinstance(value.get(name), str)
    }
    names = ("backend_type", "thread_num", "precision", "memory", "sampler_type", "max_new_tokens")
    facts = {**{name: value[name] for name in names if name in value}, "files": files}
    rows = [("kind", "MNN runtime configuration (config.json)")]
    rows += [(name, str(found)) for name, found in facts.items() if name != "files"]
    rows += [("file", f"{n}{'' if there else ': missing'}") for n, there in files.items()]
    return Facts(kind="mnn_config", facts=facts, rows=tuple(rows))


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: all(name in value for name in names)


def _is_profile(value: Mapping[str, Any]) -> bool:
    header = value.get("header")
    return isinstance(header, dict) and header.get("artifact_type") == TYPE


def _is_encodings(value: Mapping[str, Any]) -> bool:
    new = isinstance(value.get("encodings"), list) and "version" in value
    return new or {"activation_encodings", "param_encodings"} <= set(value)


_KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., Facts]], ...] = (
    (_is_profile, _profile),
    (_has("dialog"), _dialog),
    (_has("devices"), _extensions),
    (_is_encodings, _encodings),
    (_has("model_type", "quantization", "model_config"), _mlc_chat),
    (_has("metadata", "records"), _tensor_cache),
    (_has("hidden_size", "layer_nums"), _mnn_llm),
    (_has("llm_model", "llm_weight"), _mnn_runtime),
)
