"""The memory an MLC model takes, held against what mlc_llm's own logs say.

DeepSeek's figures are the MLC-on-Android write-up's; Llama-3's and Phi's are in the long logs of
public reports (mlc-ai/mlc-llm#3394 is Phi's), Llama-2's in #2026, Qwen3's in pull request #3221.
SmolLM2's come from a run here, with MLC's Python on Apache TVM 0.26.
"""

from __future__ import annotations

from typing import Any

import pytest

from edgekiln.backends.mlc_memory import functions, memory

MB = 1 << 20


NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def config(family: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A config.json, as far as sizes go."""
    return {"model_type": family, **dict(zip(NAMES, sizes, strict=True)), **more}


DEEPSEEK = config("qwen2", (28, 1536, 8960, 12, 2, 151936))
QWEN25_3B = config("qwen2", (36, 2048, 11008, 16, 2, 151936), tie_word_embeddings=True)
QWEN3 = config("qwen3", (28, 2048, 6144, 16, 8, 151936), head_dim=128, tie_word_embeddings=True)
LLAMA2 = config("llama", (32, 4096, 11008, 32, 32, 32000))
LLAMA3 = config("llama", (32, 4096, 14336, 32, 8, 128256))
PHI = config("phi3", (32, 3072, 8192, 32, 32, 32064))
REDPAJAMA = config("gpt_neox", (32, 2560, 10240, 32, 32, 50432))
SMOLLM2 = config("llama", (30, 576, 1536, 9, 3, 49152), tie_word_embeddings=True)


def test_the_write_up_s_figures_come_out() -> None:
    found = memory(DEEPSEEK, "q4f16_1", chunk=128, context=2048)
    assert found.parameters / MB == pytest.approx(953.50, abs=0.005)
    assert found.temporary / MB == pytest.approx(85.50, abs=0.005)
    assert found.base / MB == pytest.approx(1039.00, abs=0.005)
    assert found.at(4096) / MB == pytest.approx(1151.00, abs=0.005)
    assert found.cache_per_token == 28 * 1024
    assert found.known


def test_qwen_3b_has_its_parameters_bits_and_gigabytes() -> None:
    found = memory(QWEN25_3B, "q4f16_1", chunk=128)
    assert found.count == 3_085_938_688
    assert 8 * found.parameters / found.count == pytest.approx(4.501, abs=0.0005)
    assert found.parameters / (1 << 30) == pytest.approx(1.617, abs=0.0005)


@pytest.mark.parametrize(
    ("model", "megabytes"),
    [(LLAMA3, 4308.13), (LLAMA2, 3615.13), (QWEN3, 923.16), (REDPAJAMA, 1491.34), (SMOLLM2, 72.21)],
)
def test_parameters_are_those_of_the_logs(model: dict[str, Any], megabytes: float) -> None:
    assert memory(model, "q4f16_1").parameters / MB == pytest.approx(megabytes, abs=0.005)


@pytest.mark.parametrize(
    ("model", "sizes", "function", "megabytes"),
    [
        (LLAMA3, (8192, 80), "batch_verify", 1184.00),
        (LLAMA3, (8192, 80), "batch_prefill", 1184.62),
        (LLAMA3, (8192, 80), "batch_decode", 11.56),
        (PHI, (8192, 128), "batch_verify", 688.00),
        (PHI, (8192, 128), "batch_prefill", 688.75),
        (PHI, (8192, 128), "batch_decode", 10.75),
        (LLAMA2, (4096, 1), "batch_prefill", 462.01),
        (SMOLLM2, (128, 128), "batch_verify", 1.50),
        (SMOLLM2, (128, 128), "batch_prefill", 1.50),
        (SMOLLM2, (128, 128), "batch_decode", 1.50),
        (SMOLLM2, (128, 128), "batch_verify_to_last_hidden_states", 1.64),
        (QWEN3, (2048, 128), "batch_verify", 1331.00),
        (DEEPSEEK, (128, 128), "batch_verify", 85.50),
    ],
)
def test_buffers_are_planned_as_tvm_plans_them(
    model: dict[str, Any], sizes: tuple[int, int], function: str, megabytes: float
) -> None:
    found = functions(model, "q4f16_1", chunk=sizes[0], batch=sizes[1])
    assert found[function] / MB == pytest.approx(megabytes, abs=0.006)


def test_smollm2_as_a_whole_is_what_the_compiler_says() -> None:
    assert memory(SMOLLM2, "q4f16_1", chunk=128).base / MB == pytest.approx(73.85, abs=0.005)


def test_sum_and_norm_are_one_kernel_only_where_a_block_of_threads_divides_the_width() -> None:
    wide = functions(DEEPSEEK, "q4f16_1", chunk=128, threads=256)
    narrow = functions(DEEPSEEK, "q4f16_1", chunk=128, threads=1024)
    assert narrow["batch_verify"] < wide["batch_verify"]


def test_a_larger_chunk_needs_more_and_a_larger_context_no_buffer() -> None:
    small = memory(DEEPSEEK, "q4f16_1", chunk=128, context=2048)
    large = memory(DEEPSEEK, "q4f16_1", chunk=2048, context=2048)
    assert large.temporary > 15 * small.temporary
    assert memory(DEEPSEEK, "q4f16_1", chunk=128, context=8192).temporary == small.temporary
    assert small.at(8192) - small.at(2048) == 6144 * small.cache_per_token


@pytest.mark.parametrize(("model", "chunk"), [(DEEPSEEK, 8192), (LLAMA3, 8192), (QWEN3, 2048)])
def test_without_a_chunk_the_buffer_is_for_mlc_s_own(model: dict[str, Any], chunk: int) -> None:
    own = memory(model, "q4f16_1").temporary
    assert own == memory(model, "q4f16_1", chunk=chunk).temporary
    short = memory(model, "q4f16_1", context=512).temporary
    assert short == memory(model, "q4f16_1", chunk=512).temporary


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [("q0f16", 16), ("q0f32", 32), ("q4f16_0", 4.501), ("q4f32_1", 5.002), ("q3f16_1", 3.645)],
)
def test_bits_a_parameter(quantization: str, bits: float) -> None:
    found = memory(QWEN25_3B, quantization)
    assert 8 * found.parameters / found.count == pytest.approx(bits, rel=0.005)


def test_ends_that_stay_floats_cost_what_they_are() -> None:
    whole, ends = memory(QWEN25_3B, "q4f16_1"), memory(QWEN25_3B, "q4f16_2")
    head = 151936 * 2048
    assert ends.parameters - whole.parameters == 2 * head - head * 18 // 32


def test_what_is_not_known_is_said_and_not_taken_for_small() -> None:
    strange = {**DEEPSEEK, "model_type": "newcomer"}
    found = memory(strange, "q4f16_1", chunk=128, parameters=2_000_000_000)
    assert not found.known
    assert found.count == 2_000_000_000
    assert found.parameters == pytest.approx(2e9 * 4.5 / 8, rel=0.001)
    assert memory(DEEPSEEK, "q9x_7").parameters == memory(DEEPSEEK, "q0f16").parameters


def test_a_model_without_a_cache_has_none() -> None:
    found = memory(config("rwkv6", (24, 2048, 7168, 32, 32, 65536)), "q4f16_1", chunk=128)
    assert found.cache_per_token == 0
    assert found.at(4096) == found.base


def test_the_estimate_has_its_margin() -> None:
    found = memory(DEEPSEEK, "q4f16_1", chunk=128, context=2048)
    assert found.estimate(2048, 1.0) == found.at(2048)
    assert found.estimate(2048, 1.15) == pytest.approx(1.15 * 1095.0 * MB, rel=0.001)
