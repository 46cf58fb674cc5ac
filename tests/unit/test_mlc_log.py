"""mlc_llm's log, by lines that it really wrote, coloured and not, of several versions."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "mlc")]

import mlclog  # noqa: E402

import toolcall  # noqa: E402

# compile of the MLC-on-Android write-up.
COMPILED = """\
[2025-11-11 17:56:22] INFO auto_config.py:154: Found model type: qwen2. Use `--model-type` to \
override.
[2025-11-11 17:56:22] WARNING auto_target.py:378: --system-lib-prefix is automatically picked \
from the filename, qwen2_q4f16_1_, this allows us to use the filename as the model_lib in \
android/iOS builds. Please avoid renaming the .tar file when uploading the prebuilt.

Compiling with arguments:
  --model-type      qwen2
  --opt             flashinfer=0;cublas_gemm=0;faster_transformer=0;cudagraph=0;cutlass=0
  --system-lib-prefix "qwen2_q4f16_1_"
  --output          deepseek-r1-qwen1p5b-android.tar

[2025-11-11 17:56:22] INFO config.py:107: Overriding context_window_size from 131072 to 2048
[2025-11-11 17:56:22] INFO config.py:107: Overriding prefill_chunk_size from 8192 to 128
[2025-11-11 17:56:35] INFO model_metadata.py:94: Total memory usage without KV cache: 1039.00 MB \
(Parameters: 953.50 MB. Temporary buffer: 85.50 MB)
[2025-11-11 17:56:35] INFO model_metadata.py:128: KV cache size: 0.03 MB per token in the context \
window
[2025-11-11 17:56:35] INFO model_metadata.py:133: Total memory usage with a 4K KV cache: 1151.00 MB
[2025-11-11 17:56:35] INFO compile.py:208: Generated: deepseek-r1-qwen1p5b-android.tar
""".splitlines()

# package of the same write-up, with a model_lib that somebody made up.
REFUSED = """\
[2025-11-11 18:13:28] INFO package.py:211: Creating lib from ['dist/lib/qwen3-0p6b-android.tar', \
'dist/lib/phi3p5-mini-android.tar', 'dist/lib/deepseek-r1-qwen1p5b-android.tar']
[2025-11-11 18:13:28] INFO package.py:213: List of available model libs packaged: \
['qwen3_q0f16', 'phi3_q4f16_0', 'qwen2_q4f16_1'], if we have '-' in the model_lib string, it will \
be turned into '_'
[2025-11-11 18:13:28] INFO package.py:252: ValidationError:
\tmodel_lib deepseek_r1_qwen1p5b_q4f16_1 requested in dist\\bundle\\mlc-app-config.json is not \
found in dist\\lib\\libmodel_android.a
\tspecifically the model_lib for dist/lib/deepseek-r1-qwen1p5b-android.tar.
\tcurrent available model_libs in dist\\lib\\libmodel_android.a: ['qwen3_q0f16', 'phi3_q4f16_0', \
'qwen2_q4f16_1']
\tThis can happen when we manually specified model_lib_path_for_prepare_libs in \
mlc-package-config.json
[2025-11-11 18:13:28] INFO package.py:258: Validation failed
""".splitlines()

# convert_weight, as its colours come.
CONVERTED = """\
[2026-11-21 13:27:48] INFO convert_weight.py:152: \x1b[92mParameter size\x1b[0m after \
quantization: 1.617 GB
[2026-11-21 13:27:48] INFO convert_weight.py:157: \x1b[92mTotal parameters\x1b[0m: 3,085,938,688
[2026-11-21 13:27:48] INFO convert_weight.py:158: \x1b[92mBits per parameter\x1b[0m: 4.501
[2026-11-21 13:27:48] INFO convert_weight.py:163: Saved to directory: \x1b[1m/out/weights\x1b[0m
""".splitlines()


def test_the_write_ups_memory() -> None:
    figures = mlclog.memory(COMPILED)
    assert figures["parameters_mb"] == 953.5
    assert figures["temporary_mb"] == 85.5
    assert figures["total_mb"] == 1039.0
    assert figures["total_4k_mb"] == 1151.0
    # 28 KiB a token: 28 layers, 2 heads of 128, 2 bytes, keys and values. The log says 0.03 MB.
    assert figures["kv_mb_per_token"] == round(28 / 1024, 6)


def test_before_0_20_the_log_says_nothing_of_the_cache() -> None:
    old = [line for line in COMPILED if "KV cache size" not in line and "4K" not in line]
    figures = mlclog.memory(old)
    assert figures["total_mb"] == 1039.0
    assert figures["total_4k_mb"] is figures["kv_mb_per_token"] is None
    assert set(mlclog.memory([]).values()) == {None}


def test_the_prefix_and_what_was_overridden() -> None:
    assert mlclog.prefix(COMPILED) == "qwen2_q4f16_1_"
    assert mlclog.prefix(['  \x1b[1m--system-lib-prefix\x1b[0m       ""']) == ""
    assert mlclog.prefix(CONVERTED) is None
    assert mlclog.overridden(COMPILED) == {
        "context_window_size": ("131072", "2048"),
        "prefill_chunk_size": ("8192", "128"),
    }
    coloured = (
        "[2026-11-21 13:28:08] WARNING config.py:99: \x1b[91mWarning\x1b[0m: Cannot override "
        "\x1b[1msliding_window_size\x1b[0m, because \x1b[1mQWen2Config\x1b[0m does not have this "
        "field"
    )
    assert mlclog.not_taken([coloured]) == ["sliding_window_size"]


def test_figures_of_weights_behind_colours() -> None:
    figures = mlclog.weights(CONVERTED)
    assert figures == mlclog.Weights(parameters=3085938688, bits_per_parameter=4.501, gb=1.617)
    assert mlclog.weights(CONVERTED[:2]) is None


def test_why_a_package_is_refused() -> None:
    refused = mlclog.refused(REFUSED)
    assert refused is not None
    assert refused.asked == ("deepseek_r1_qwen1p5b_q4f16_1",)
    assert refused.there == ("qwen3_q0f16", "phi3_q4f16_0", "qwen2_q4f16_1")
    assert mlclog.refused(COMPILED) is None
    # Libraries of another version's compiler: none of them has the symbol.
    none = [*REFUSED[:5], "\tcurrent available model_libs in dist/lib/libmodel_android.a: []"]
    skewed = mlclog.refused(none)
    assert skewed is not None
    assert skewed.there == ()


def test_progress_bars() -> None:
    line = " 37%|███▋      | 112/305 [00:01<00:02, 88.0it/s]"
    assert toolcall.bar(line) == (112, 305)
    assert toolcall.bar(COMPILED[0]) is None


def test_the_line_that_says_why() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in <module>',
        "ValueError: Unknown model type: smollm3. Available ones: ['llama']",
        "  0%|          | 0/14 [00:00<?, ?it/s]",
    ]
    assert toolcall.last_words(lines) == lines[2]
    assert toolcall.last_words(["[2026-11-21 13:27:48] INFO a.py:1: all well", ""]) == "all well"
    assert toolcall.last_words([]) == "it said nothing"
    # mlc_llm's own parser of arguments.
    wrong = [
        "argument --device: invalid detect_device value: 'cpu'",
        f"{25 * '-'} Error {25 * '-'}",
    ]
    assert toolcall.last_words(wrong) == wrong[0]
