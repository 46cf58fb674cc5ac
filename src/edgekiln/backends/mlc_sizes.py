"""How much memory and disk the stages take, in bytes, estimated from the model's sizes.

Converting holds a file of the model and its largest matrix in 32 bits; compiling holds the
program, whose size hardly depends on the model's; the proof holds the weights and their copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.backends.mlc_memory import memory

if TYPE_CHECKING:
    from edgekiln.backends.mlc_options import MlcOptions
    from edgekiln.models import Model

# Python with torch, TVM and mlc_llm loaded.
_LOADED = 900 << 20
_COMPILING = 2 << 30
# Rows of logits at a time: scripts/mnn/texts.py, WINDOW_TOKENS.
_WINDOW = 256
_PACKAGE = 3 << 30


def weights_memory(model: Model) -> int:
    """Peak of convert_weight."""
    return _LOADED + model.weight_bytes + 16 * model.vocab_size * model.hidden_size


def weights_bytes(model: Model, options: MlcOptions) -> int:
    """The converted weights."""
    found = memory(model.config, options.quantization, parameters=model.parameters)
    return found.parameters + (16 << 20)


def compile_memory() -> int:
    """Peak of compile, for a phone or for this machine."""
    return _COMPILING


def prove_memory(model: Model, options: MlcOptions) -> int:
    """Peak of the runtime with all logits of a window."""
    found = memory(model.config, options.quantization, parameters=model.parameters)
    return _LOADED + 2 * found.parameters + found.temporary + 5 * 4 * _WINDOW * model.vocab_size


def reference_memory(model: Model) -> int:
    """Peak of the float model: its file, mapped, and its weights in 32 bits."""
    logits = 4 * _WINDOW * model.vocab_size
    return _LOADED + model.weight_bytes + 4 * model.parameters + 3 * logits


def package_memory() -> int:
    """Peak of CMake, Cargo and Gradle at work."""
    return _PACKAGE
