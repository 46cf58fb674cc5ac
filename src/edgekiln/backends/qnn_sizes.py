"""How much memory and disk the stages take, in bytes, estimated from the model's sizes.

The factors were measured on SmolLM2-135M and on the shape of Llama-3.2-1B, and rounded up. Peak
resident memory there, measured and by these formulas: graph 98 and 142 MB (0.2 and 0.3 GB),
quantize 1.6 and 5.7 GB (1.7 and 10.6), compile 2.5 and 6.7 GB (2.5 and 8.2), proof 0.9 GB (1.6).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekiln.backends.qnn_options import QnnOptions
    from edgekiln.models import Model

# Python with numpy, onnx and onnxruntime loaded, and with the QNN libraries as well.
_PYTHON = 400 << 20
_QNN = 700 << 20
_TORCH = 1 << 30
# The HTP compiler's resident memory, as a multiple of the bytes of one binary's weights.
_COMPILE = 13
# The most weights a binary holds unless told otherwise: scripts/qnn/splits.py.
_SPLIT = 1 << 30
_MB = 1 << 20


def float_bytes(model: Model) -> int:
    """The float graph: every weight in 32 bits, a tied head written out once more."""
    return 4 * (model.parameters + (_head(model) if model.tied else 0)) + 4 * _MB


def quantised_bytes(model: Model, options: QnnOptions) -> int:
    """The quantised graph: packed weights, their scales, the embedding, the head."""
    from edgekiln.backends.qnn_checks import block

    head = _head(model)
    body = max(model.parameters - head * (1 if model.tied else 2), 0)
    shared = block(model, options)
    scale = 32 / shared if shared else 0.1
    bits = body * (options.weight_bits + scale)
    return int(bits + head * (options.head_bits + options.embed_bits)) // 8 + 4 * _MB


def graph_memory(model: Model) -> int:
    """Weights are streamed in blocks; of the model only its nodes are in memory."""
    return _PYTHON // 2 + _head(model) // 2


def quantize_memory(model: Model, options: QnnOptions) -> int:
    """A layer at a time: its weights in 32 and 64 bits, its inputs' second moments, the head."""
    layer = 4 * max(model.parameters - _head(model), 0) // model.layers
    inner = model.config.get("intermediate_size", 4 * model.hidden_size)
    moments = 3 * 8 * int(inner) ** 2
    states = 6 * 4 * options.calibration_tokens * max(int(inner), 2 * model.hidden_size)
    logits = 4 * 4 * options.prefill_length * model.vocab_size
    return 3 * _PYTHON // 2 + 4 * layer + moments + states + logits + 6 * 4 * _head(model)


def calibrate_memory(model: Model, options: QnnOptions) -> int:
    """AIMET holds the float model, its own copy and what flows between, all at once."""
    copies = 6 if options.quantizer == "aimet" else 4
    return _TORCH + copies * float_bytes(model)


def vram(model: Model, options: QnnOptions) -> int:
    """What AIMET 1.34.0 wants of a GPU: 12 GB for 1.24 billion parameters; the example, none."""
    if options.quantizer != "aimet-1.34-cu121" or model.parameters < 200_000_000:
        return 0
    return (2 << 30) + 8 * model.parameters


def splits(model: Model, options: QnnOptions) -> int:
    """How many binaries there will be, about."""
    return options.splits or max(1, math.ceil(quantised_bytes(model, options) / _SPLIT))


def compile_memory(model: Model, options: QnnOptions) -> int:
    """The compiler's peak on the largest binary."""
    part = quantised_bytes(model, options) // splits(model, options)
    return _QNN + _COMPILE * part + _cache(model, options)


def proof_memory(model: Model, options: QnnOptions) -> int:
    """The emulation holds the binaries, and the float model's layers come and go beside them."""
    return _QNN + 4 * quantised_bytes(model, options) + 3 * 4 * _head(model)


def binaries_bytes(model: Model, options: QnnOptions) -> int:
    """The binaries for the phone, and their twins for the proof, one for each graph."""
    twins = 0 if options.prove == "none" else 2
    return int((1 + twins) * 1.1 * quantised_bytes(model, options)) + 8 * _MB


def _cache(model: Model, options: QnnOptions) -> int:
    """Keys and values of the whole context, in 8 bits, several times over."""
    return 8 * 2 * model.layers * model.kv_heads * model.head_dim * options.context_length


def _head(model: Model) -> int:
    return model.vocab_size * model.hidden_size
