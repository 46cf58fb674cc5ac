"""What an MLC build found out: how close the model is, what it takes, what was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekiln import units
from edgekiln.backends import closeness
from edgekiln.backends.base import Finding, Outputs
from edgekiln.backends.mlc_checks import packaged, target_of
from edgekiln.backends.mlc_memory import Memory, memory
from edgekiln.backends.mlc_options import MlcOptions
from edgekiln.errors import QualityError

_MB = 1 << 20


def findings(options: MlcOptions, outputs: Outputs) -> Iterator[Finding]:
    """The answer, the closeness to the float model; what was made and what it takes."""
    if options.prove != "none":
        yield from _proved(outputs)
    yield from _converted(outputs)
    yield from _compiled(options, outputs)
    if target_of(options).android:
        yield _looked(outputs)
    if packaged(options):
        yield _packaged(outputs)
    if options.apk != "none":
        yield _app(outputs)


def judge(options: MlcOptions, figures: Mapping[str, Any]) -> None:
    """Raise QualityError for a model too far from the float one, or an estimate that is too low."""
    _judge_memory(figures["memory"])
    if options.prove != "none":
        closeness.judge(
            figures,
            min_cosine=options.min_cosine,
            max_perplexity_ratio=options.max_perplexity_ratio,
            remedy="take the preset precision or another quantization (q4f32_1, q0f16)",
        )


def _proved(outputs: Outputs) -> Iterator[Finding]:
    proof = outputs.json("prove", "prove", "prove.json")
    yield from closeness.findings(proof, "the float model")
    alike = sum(e["same_next_token"] for e in proof["prompts"])
    text = (
        f"compiled for this machine, it chooses the float model's next token for {alike} of "
        f"{len(proof['prompts'])} prompts"
    )
    yield Finding(name="proof", value=proof, text=f"{text}{_chat(proof['prompts'])}")


def _chat(prompts: list[Mapping[str, Any]]) -> str:
    """Whether an app's chat is what the model was made for: its own chat template's tokens."""
    other = sum(not e.get("same_tokens", True) for e in prompts)
    if not other:
        return ""
    return (
        f"\nthe conversation template writes {other} of {len(prompts)} prompts down in other "
        "tokens than the model's own chat template (its system prompt, as a rule): give another by "
        "--conv-template, or edit conv_template in mlc-chat-config.json"
    )


def _converted(outputs: Outputs) -> Iterator[Finding]:
    weights = outputs.json("weights", "weights-report", "weights.json")
    text = (
        f"weights: {weights['parameters']:,} parameters, {weights['bits_per_parameter']:.3f} bits "
        f"each, {units.size(weights['bytes'])}"
    )
    yield Finding(name="weights", value=weights, text=text)
    chat = outputs.json("config", "config-report", "config.json")
    how = "guessed" if chat["guessed"] else "asked for"
    text = f"conversation template: {chat['conv_template']}, {how} ({chat['why']})"
    shown = {k: v for k, v in chat.items() if k not in ("templates", "quantizations")}
    if chat.get("system_prompt"):
        text += f"\nsystem prompt: the model's own, in MLC's place: {chat['system_prompt']}"
    yield Finding(name="conv_template", value=shown, text=text)


def _compiled(options: MlcOptions, outputs: Outputs) -> Iterator[Finding]:
    library = outputs.json("library", "library-report", "library.json")
    named = f", model_lib {library['model_lib']}" if library["system_lib_prefix"] else ""
    text = f"library: {library['file']}, {units.size(library['bytes'])}{named}"
    yield Finding(name="library", value=library, text=text)
    config = outputs.json("config", "config", "mlc-chat-config.json")
    yield _memory(options, library["memory"], config)


def _memory(
    options: MlcOptions, log: Mapping[str, float | None], config: Mapping[str, Any]
) -> Finding:
    """What the log says the device needs, and what was worked out beforehand."""
    total, value = log["total_mb"], dict[str, Any](log)
    worked, window = _worked_out(options, config), _window(config)
    if worked is None or total is None:
        said = "its sizes are not known" if worked is None else "the compiler's log does not say"
        return Finding(name="memory", value=value, text=f"memory: {said}")
    estimate = worked.estimate(window, options.vram_safety)
    needed = round(total * _MB) + worked.cache_per_token * window
    value |= {"worked_out_mb": round(worked.base / _MB, 2), "known": worked.known}
    value |= {"off": round(worked.base / (total * _MB) - 1, 5), "window": window}
    value |= {"needed": needed, "estimated_vram_bytes": estimate}
    text = (
        f"memory: {total:.2f} MB (weights {log['parameters_mb']:.2f}, temporary "
        f"{log['temporary_mb']:.2f}), {worked.base / _MB:.2f} worked out; with a cache of {window} "
        f"tokens {needed / _MB:.2f} MB, estimated_vram_bytes {estimate}"
    )
    return Finding(name="memory", value=value, text=text)


def _window(config: Mapping[str, Any]) -> int:
    """The tokens that the cache holds at most; 0 for a model without one."""
    sliding = config.get("sliding_window_size") or -1
    return max(sliding if sliding > 0 else config.get("context_window_size") or 0, 0)


def _worked_out(options: MlcOptions, config: Mapping[str, Any]) -> Memory | None:
    """The same as before compiling, from mlc-chat-config.json; None where it lacks a size."""
    inner = config["model_config"]
    try:
        return memory(
            {**inner, "model_type": config["model_type"]},
            config["quantization"],
            chunk=config["prefill_chunk_size"],
            batch=inner.get("max_batch_size"),
            context=_window(config),
            threads=target_of(options).threads,
        )
    except (KeyError, TypeError):
        return None


def _judge_memory(value: Mapping[str, Any]) -> None:
    needed, estimate = value.get("needed"), value.get("estimated_vram_bytes")
    if needed is not None and estimate is not None and needed > estimate:
        raise QualityError(
            f"the library needs {needed / _MB:.0f} MB, and the app would be told "
            f"{estimate / _MB:.0f} MB",
            why="estimated_vram_bytes is worked out from config.json, and this family is not well "
            "known",
            remedy=f"give --vram-safety {needed / estimate * 1.2:.2f} or more",
        )


def _looked(outputs: Outputs) -> Finding:
    found = outputs.json("objects", "objects", "objects.json")
    text = f"in the library: objects for {found['machine']}, {found['kernels']} kernels"
    return Finding(name="objects", value=found, text=text)


def _packaged(outputs: Outputs) -> Finding:
    found = outputs.json("package", "package-report", "package.json")
    text = f"package: mlc4j with {len(found['libraries'])} models, pages of {found['page_size']}"
    return Finding(name="package", value=found, text=text)


def _app(outputs: Outputs) -> Finding:
    found = outputs.json("apk", "apk-report", "apk.json")
    text = f"app: MLCChat.apk, {units.size(found['bytes'])}, signed by {found['signed_by']}"
    return Finding(name="apk", value=found, text=text)
