"""A tiny Llama as a library for this machine, by TVM's own building blocks: what mlc_llm makes."""

# Run by the toolchain's Python: MODEL (of tinyllm) FOLDER; float32 throughout, nothing quantised.
# FOLDER gets library/host.so, weights/ and config/, with the functions and files mlc_llm gives.
MAKE_HOST = """
import json
import shutil
import sys
from pathlib import Path

import safetensors.torch
import torch
import tvm
from tvm import relax
from tvm.contrib import tvmjs
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache

model, folder = map(Path, sys.argv[1:])
told = json.loads((model / "config.json").read_text())
WIDE, HEADS, GROUPS, HEAD = 128, 4, 2, 32
LAYERS, CONTEXT, CHUNK, VOCABULARY = told["num_hidden_layers"], 320, 64, told["vocab_size"]


class Layer(nn.Module):
    def __init__(self, number):
        self.number = number
        self.input_layernorm = nn.RMSNorm(WIDE, -1, told["rms_norm_eps"], bias=False)
        self.post_attention_layernorm = nn.RMSNorm(WIDE, -1, told["rms_norm_eps"], bias=False)
        self.qkv = nn.Linear(WIDE, (HEADS + 2 * GROUPS) * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDE, bias=False)
        self.gate_up = nn.Linear(WIDE, 2 * told["intermediate_size"], bias=False)
        self.down = nn.Linear(told["intermediate_size"], WIDE, bias=False)

    def forward(self, x, cache):
        b, s, _ = x.shape
        qkv = op.reshape(self.qkv(self.input_layernorm(x)), (b, s, HEADS + 2 * GROUPS, HEAD))
        seen = cache.attention_with_fused_qkv(self.number, qkv, HEADS, sm_scale=HEAD**-0.5)
        x = x + self.out(op.reshape(seen, (b, s, HEADS * HEAD)))
        gate, up = op.split(self.gate_up(self.post_attention_layernorm(x)), 2, axis=-1)
        return x + self.down(op.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self):
        self.table = nn.Embedding(VOCABULARY, WIDE)
        self.layers = nn.ModuleList([Layer(n) for n in range(LAYERS)])
        self.norm = nn.RMSNorm(WIDE, -1, told["rms_norm_eps"], bias=False)

    def embed(self, input_ids: nn.Tensor):
        return self.table(input_ids)

    def batch_verify(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache):
        x = input_embeds
        for layer in self.layers:
            x = layer(x, paged_kv_cache)
        weights = op.permute_dims(self.table.weight)
        return op.matmul(self.norm(x), weights), paged_kv_cache

    def prefill(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache):
        every, cache = self.batch_verify(input_embed, paged_kv_cache)

        def last(rows):
            b, s, v = rows.shape
            return tvm.te.compute((b, 1, v), lambda i, _, k: rows[i, s - 1, k], name="last")

        return op.tensor_expr_op(last, name_hint="last", args=[every]), cache

    def decode(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache):
        return self.batch_verify(input_embed, paged_kv_cache)


packed = {"param_mode": "packed", "effect_mode": "none"}
many, one = nn.spec.Tensor([1, "seq_len", WIDE], "float32"), nn.spec.Tensor([1, 1, WIDE], "float32")
cache = nn.spec.Object(object_type=PagedKVCache)
module, named, _ = Llama().export_tvm(
    spec={
        "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32"), "$": packed},
        "batch_verify": {"input_embeds": many, "paged_kv_cache": cache, "$": packed},
        "prefill": {"input_embed": many, "paged_kv_cache": cache, "$": packed},
        "decode": {"input_embed": one, "paged_kv_cache": cache, "$": packed},
    },
    allow_extern=True,
)
target = tvm.target.Target({"kind": "llvm", "num-cores": 2})
metadata = {
    "context_window_size": CONTEXT,
    "sliding_window_size": -1,
    "prefill_chunk_size": CHUNK,
    "kv_state_kind": "kv_cache",
    "params": [{"name": n, "shape": list(p.shape), "dtype": str(p.dtype)} for n, p in named],
}
builder = relax.BlockBuilder(module)
names = ("batch", "total", "chunk", "page", "sliding")
sizes = [tvm.tirx.Var(name, "int64") for name in names]
given = [relax.Var(f"{n}_", relax.ShapeType([s])) for n, s in zip(names, sizes, strict=True)]
with target:
    with builder.function("create_tir_paged_kv_cache", given):
        made = TIRPagedKVCache(
            "mha", *sizes, relax.ShapeExpr([0, LAYERS]), LAYERS, HEADS, GROUPS, HEAD, HEAD, 0, 0,
            RopeMode.NORMAL, 1, told.get("rope_theta") or told["rope_parameters"]["rope_theta"],
            {}, relax.prim_value(0), HEAD, False, "float32", target,
        )
        builder.emit_func_output(made._expr)
    with builder.function("_metadata", []):
        builder.emit_func_output(relax.StringImm(json.dumps(metadata)))
    built = relax.build(builder.finalize(), target=target)
for name in ("library", "weights", "config"):
    (folder / name).mkdir(parents=True)
built.export_library(str(folder / "library" / "host.so"))

held = safetensors.torch.load_file(model / "model.safetensors")
held = {name.removeprefix("model."): value.float() for name, value in held.items()}


def weight(name):
    name = name.removesuffix(".weight")
    if name in ("table", "norm"):
        return held[{"table": "embed_tokens", "norm": "norm"}[name] + ".weight"]
    layer, _, part = name.rpartition(".")
    parts = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }.get(part, (part,))
    return torch.cat([held[f"{layer}.{p}.weight"] for p in parts])


tensors = {name: tvm.runtime.tensor(weight(name).numpy()) for name, _ in named}
tvmjs.dump_tensor_cache(tensors, str(folder / "weights"), encode_format="raw")
template = {
    "name": "chatml_nosystem",
    "system_template": "{system_message}",
    "system_message": "",
    "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
    "seps": ["<|im_end|>\\n"],
    "role_content_sep": "\\n",
    "role_empty_sep": "\\n",
    "stop_str": ["<|im_end|>"],
    "stop_token_ids": [1],
}
config = {"conv_template": template, "context_window_size": CONTEXT}
(folder / "config" / "mlc-chat-config.json").write_text(json.dumps(config))
shutil.copyfile(model / "tokenizer.json", folder / "config" / "tokenizer.json")
"""
