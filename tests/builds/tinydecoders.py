"""Tiny decoders of every family the QNN backend takes, and what transformers says of them."""

from typing import Any

COMMON = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Each one's model_type, the dtype its weights are stored in, and its config beside COMMON.
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "float32", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", "float16", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama3": ("llama", "bfloat16", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama-odd-heads": (
        "llama",
        "float32",
        {"hidden_size": 60, "head_dim": 22, "num_attention_heads": 5, "num_key_value_heads": 1},
    ),
    "llama-all-heads": ("llama", "float32", {"num_key_value_heads": 4}),
    "mistral": ("mistral", "bfloat16", {"head_dim": 24, "sliding_window": None}),
    "mistral-wide-window": ("mistral", "float32", {"sliding_window": 128}),
    "qwen2": ("qwen2", "float16", {"tie_word_embeddings": False}),
    "qwen2-tied": ("qwen2", "bfloat16", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "float16", {"head_dim": 40, "tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", "bfloat16", {"head_dim": 16, "tie_word_embeddings": True}),
}
TOKENS = 75

# Run by a Python with transformers: FOLDER DECODERS TOKENS. Writes FOLDER/NAME/{config.json,
# weights} and FOLDER/NAME.npz with ids [TOKENS] and logits [TOKENS, vocab]. Biases and gains are
# random as well, or they would not be seen; weights come in several files, as large models' do.
MAKE_DECODERS = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

place, decoders, tokens = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
for number, (name, (family, dtype, config)) in enumerate(decoders.items()):
    torch.manual_seed(number)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    made = made.to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter, values in made.named_parameters():
            values.normal_(std=0.3 if values.dim() == 1 else 0.15)
            if parameter.endswith("norm.weight"):
                values.add_(1)
    made.save_pretrained(place / name, max_shard_size="100KB" if number % 2 else "5GB")
    ids = torch.randint(2, config["vocab_size"], (1, tokens))
    taken = AutoModelForCausalLM.from_pretrained(
        place / name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits = taken(ids).logits[0]
    np.savez(place / f"{name}.npz", ids=ids[0].numpy(), logits=logits.numpy())
"""
