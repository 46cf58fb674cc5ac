"""How much memory and disk the stages take, in bytes, estimated from the model's sizes.

The factors were measured on SmolLM2-135M (269 MB of weights, vocabulary 49152) and on a model of
the shape of Qwen2-0.5B (988 MB, vocabulary 151936) and rounded up. Peak resident memory there,
measured and by these formulas: export 1.47 and 4.85 GB (1.8 and 5.1), reference 1.21 and 3.36 GB
(1.8 and 4.2), prove 0.39 GB (0.8) for the smaller; prune 1.06 GB (1.7) with wanda, 0.29 GB (0.8)
by magnitude.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekiln.backends.mnn_options import MnnOptions
    from edgekiln.models import Model

# Python with torch, transformers and onnx loaded; with MNN alone.
_TORCH = 768 << 20
_MNN = 300 << 20
# Quantising works on the whole output layer at once, in several copies of 32 bits.
_HQQ_COPIES = 24
_PLAIN_COPIES = 14
# Rows of logits at a time: scripts/texts.py, WINDOW_TOKENS.
_WINDOW = 256


def export_memory(model: Model, options: MnnOptions) -> int:
    """Peak of llmexport."""
    copies = _HQQ_COPIES if options.hqq else _PLAIN_COPIES
    trained = 4 * model.parameters if options.awq or options.smooth or options.omni else 0
    return _TORCH + model.weight_bytes + copies * _head(model) + trained


def reference_memory(model: Model) -> int:
    """Peak of the float model: its file, mapped, and its weights in 32 bits."""
    return _TORCH + model.weight_bytes + 4 * model.parameters + 3 * _logits(model)


def prove_memory(model: Model, options: MnnOptions) -> int:
    """Peak of MNN's runtime, with all logits of a window."""
    copies = 3 if options.quant_bit == 16 else 2
    return _MNN + copies * exported_bytes(model, options) + 5 * _logits(model)


def prune_memory(model: Model, options: MnnOptions) -> int:
    """Peak of pruning: a tensor at a time; with wanda the model, a layer in 32 bits, the text."""
    tensor = 12 * model.hidden_size * max(model.hidden_size, _inner(model))
    if options.sparsity_method == "magnitude":
        return _TORCH + tensor
    layer = 12 * model.parameters // max(model.layers, 1)
    states = 8 * options.sparsity_tokens * model.hidden_size
    return _TORCH + tensor + 5 * model.weight_bytes // 4 + layer + states + 2 * _logits(model)


def _inner(model: Model) -> int:
    found = model.config.get("intermediate_size")
    return found if isinstance(found, int) else 4 * model.hidden_size


def exported_bytes(model: Model, options: MnnOptions) -> int:
    """The exported files: packed weights, their scales, the embedding, 16 MB of the rest."""
    head = _head(model)
    body = max(model.parameters - head * (1 if model.tied else 2), 0)
    scale = 0 if options.quant_bit == 16 else 64 // min(options.max_quant_block, 64)
    bits = body * (options.quant_bit + scale) + head * ((options.lm_quant_bit or 4) + scale)
    apart = head * options.embed_bit if options.seperate_embed or not model.tied else 0
    return (bits + apart) // 8 + (16 << 20)


def _head(model: Model) -> int:
    return model.vocab_size * model.hidden_size


def _logits(model: Model) -> int:
    return 4 * _WINDOW * model.vocab_size
