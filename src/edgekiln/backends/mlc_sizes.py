"""How much memory and disk the stages take, in bytes, estimated from the model's sizes.

Converting holds a file of the model and its largest matrix in 32 bits; compiling holds the
program, whose size hardly depends on the model's; the proof holds the weights and their copy.
Measured with SmolLM2-135M: converting 1.2 GB (1.9 by these formulas), compiling 0.65 GB; compiling
for a model of the shape of DeepSeek-R1-Distill-Qwen-1.5B 0.6 GB (1.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.backends.mlc_memory import Memory, memory

if TYPE_CHECKING:
    from edgekiln.backends.mlc_options import MlcOptions
    from edgekiln.models import Model

# Python with torch, TVM and mlc_llm loaded.
_LOADED = 900 << 20
_COMPILING = 1280 << 20
# Rows of logits at a time: scripts/texts.py, WINDOW_TOKENS.
_WINDOW = 256
_PACKAGE = 3 << 30


def memory_of(model: Model, options: MlcOptions) -> Memory:
    """What the model takes on the device; sizes as the model directory was found to have them."""
    from edgekiln.backends.mlc_checks import sizes_of, target_of, window_of

    found = {
        "model_type": model.family,
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.config.get("intermediate_size"),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied,
    }
    given = sizes_of(model, options)
    return memory(
        found,
        options.quantization,
        chunk=given.get("prefill_chunk_size"),
        batch=given.get("max_batch_size"),
        context=window_of(model, options),
        parameters=model.parameters,
        threads=target_of(options).threads,
    )


def weights_memory(model: Model) -> int:
    """Peak of convert_weight."""
    return _LOADED + model.weight_bytes + 16 * model.vocab_size * model.hidden_size


def weights_bytes(model: Model, options: MlcOptions) -> int:
    """The converted weights."""
    found = memory_of(model, options)
    return found.parameters + (16 << 20)


def compile_memory() -> int:
    """Peak of compile, for a phone or for this machine."""
    return _COMPILING


def prove_memory(model: Model, options: MlcOptions) -> int:
    """Peak of the runtime with all logits of a window."""
    found = memory_of(model, options)
    return _LOADED + 2 * found.parameters + found.temporary + 5 * 4 * _WINDOW * model.vocab_size


def reference_memory(model: Model) -> int:
    """Peak of the float model: its file, mapped, and its weights in 32 bits."""
    logits = 4 * _WINDOW * model.vocab_size
    return _LOADED + model.weight_bytes + 4 * model.parameters + 3 * logits


def package_memory() -> int:
    """Peak of CMake, Cargo and Gradle at work."""
    return _PACKAGE
