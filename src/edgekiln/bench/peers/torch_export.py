"""The peer of the graph stage: MODEL into an ONNX file in FOLDER with torch.onnx.export.

Run by the Python of the mnn toolchain, which has torch and transformers. What is exported is what
a static-shape phone graph needs: fixed tokens and context, the cache as inputs and outputs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Print seconds and peak bytes."""
    import resource

    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    tokens, context = int(sys.argv[3]), int(sys.argv[4])
    began = time.perf_counter()
    export(model, folder / "model.onnx", tokens, context)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(time.perf_counter() - began, peak)


def export(place: Path, to: Path, tokens: int, context: int) -> None:
    """The whole model, its cache flattened into one input and one output a tensor."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.cache_utils import DynamicCache

    model = AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = torch.zeros(1, config.num_key_value_heads, context - tokens, width)
    layers = config.num_hidden_layers

    class Static(torch.nn.Module):  # type: ignore[misc]
        """The model with tensors only, in and out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, positions: Any, *cache: Any) -> Any:
            kept = DynamicCache()
            for layer in range(layers):
                kept.update(cache[2 * layer], cache[2 * layer + 1], layer)
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=kept,
                use_cache=True,
            )
            new = [
                t[:, :, -tokens:]
                for layer in out.past_key_values.layers
                for t in (layer.keys, layer.values)
            ]
            return (out.logits, *new)

    ids = torch.zeros(1, tokens, dtype=torch.int64)
    mask = torch.zeros(1, 1, tokens, context)
    positions = torch.arange(tokens)[None]
    feeds = (ids, mask, positions, *([past] * 2 * layers))
    with torch.inference_mode():
        torch.onnx.export(Static(), feeds, str(to), dynamo=False, opset_version=17)


if __name__ == "__main__":
    main()
