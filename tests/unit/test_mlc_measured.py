"""The memory rule, held to the byte against what MLC's compiler passes counted for real shapes.

Each row is a compile with MLC's Python tree on Apache TVM 0.26 for Android: parameters are the sum
over the model's tensors, the temporary buffer is the largest of its functions' after
StaticPlanBlockMemory. Most have few layers, which changes the parameters alone. 512 threads are
android:adreno's.
"""

from __future__ import annotations

from typing import Any

import pytest

from edgekiln.backends.mlc_memory import functions, memory


def shape(family: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A config.json but for its layers."""
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    return {"model_type": family, **dict(zip(names, sizes, strict=True)), **more}


DEEPSEEK = shape("qwen2", (1536, 8960, 12, 2, 151936))
QWEN25_3B = shape("qwen2", (2048, 11008, 16, 2, 151936), tie_word_embeddings=True)
QWEN3 = shape("qwen3", (1024, 3072, 16, 8, 151936), head_dim=128, tie_word_embeddings=True)
SMOLLM2 = shape("llama", (576, 1536, 9, 3, 49152), tie_word_embeddings=True)

# Shape, layers, quantisation, threads of a block, prefill chunk, batch; parameters, temporary.
MEASURED = [
    ((DEEPSEEK, 28, "q4f16_1"), (256, 128, 128), (999_820_288, 89_653_248)),
    ((QWEN25_3B, 36, "q4f16_1"), (256, 8192, 128), (1_736_187_904, 5_913_968_640)),
    ((QWEN25_3B, 3, "q4f16_1"), (256, 128, 128), (305_130_496, 92_405_760)),
    ((QWEN25_3B, 3, "q4f16_1"), (256, 512, 4), (305_130_496, 369_623_040)),
    ((QWEN25_3B, 3, "q4f16_1"), (256, 2048, 1), (305_130_496, 1_478_492_160)),
    ((QWEN25_3B, 3, "q4f16_2"), (256, 128, 128), (752_430_080, 92_405_760)),
    ((QWEN25_3B, 3, "q3f16_1"), (256, 128, 128), (247_539_712, 92_405_760)),
    ((QWEN25_3B, 3, "q0f32"), (256, 128, 128), (2_169_591_808, 100_335_616)),
    ((DEEPSEEK, 3, "q4f32_1"), (256, 512, 4), (379_521_024, 384_565_248)),
    ((DEEPSEEK, 3, "q4f16_1"), (256, 32, 80), (341_541_888, 56_033_280)),
    ((SMOLLM2, 30, "q4f16_1"), (256, 8192, 128), (75_715_200, 110_100_480)),
    ((SMOLLM2, 3, "q4f16_1"), (256, 128, 128), (21_905_280, 1_720_320)),
    ((SMOLLM2, 3, "q0f16"), (256, 512, 4), (77_864_832, 6_881_280)),
    ((SMOLLM2, 3, "q4f16_0"), (256, 1024, 1), (21_905_280, 13_762_560)),
    ((SMOLLM2, 3, "q4f32_1"), (256, 128, 128), (24_346_368, 3_440_640)),
    ((QWEN3, 28, "q4f16_1"), (256, 128, 128), (335_372_288, 83_296_256)),
    ((QWEN3, 3, "q4f16_1"), (256, 2048, 8), (114_073_088, 1_332_740_096)),
    ((QWEN3, 3, "q0f16"), (256, 256, 8), (405_552_640, 166_592_512)),
    ((QWEN3, 3, "q4f32_1"), (256, 256, 8), (126_761_984, 176_553_984)),
    ((DEEPSEEK, 3, "q4f16_1"), (512, 128, 128), (341_541_888, 89_653_248)),
    ((QWEN3, 3, "q4f16_1"), (512, 128, 128), (114_073_088, 83_296_256)),
    ((SMOLLM2, 3, "q4f16_1"), (512, 128, 128), (21_905_280, 1_720_320)),
]
# Functions of the 3-layer DeepSeek in 32-bit floats, where sum and norm are no one kernel.
WIDE = {"batch_verify": 384565248, "batch_prefill": 75855872, "batch_decode": 3004416}


@pytest.mark.parametrize(
    ("model", "run", "counted"),
    MEASURED,
)
def test_every_byte_is_as_the_compiler_counted_it(
    model: tuple[dict[str, Any], int, str], run: tuple[int, int, int], counted: tuple[int, int]
) -> None:
    sizes, layers, quantization = model
    threads, chunk, batch = run
    config = {**sizes, "num_hidden_layers": layers}
    found = memory(config, quantization, chunk=chunk, batch=batch, threads=threads)
    assert (found.parameters, found.temporary) == counted


def test_the_functions_of_a_model_in_wide_floats_are_as_the_compiler_counted_them() -> None:
    config = {**DEEPSEEK, "num_hidden_layers": 3}
    assert functions(config, "q4f32_1", chunk=512, batch=4) == WIDE
