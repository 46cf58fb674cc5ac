"""docs/migrating.md: nothing of the old ways is left out, and every flag on the right is ours."""

from __future__ import annotations

import re

import pytest

from edgekiln.home import project
from tests.unit.test_docs import known

PAGE = (project() / "docs" / "migrating.md").read_text(encoding="utf-8")

# What each write-up has its readers type or write: programs, flags, variables, keys.
OLD = {
    "the old build.py page": """
        build.py --model --hf-path --target --quantization --max-seq-len --reuse-lib --use-cache=0
        --debug-dump --llvm-mingw metal_x86_64 iphone opencl webgpu vulkan cuda q3f16_0 q4f16_0
        q4f32_0 q0f32 q0f16 q8f16_0 mlc_chat_cli ndarray-cache.json
        mod_cache_before_build_android.pkl vicuna-v1-7b RedPajama-INCITE-Chat-3B-v1 rwkv-raven-3b
    """,
    "the MLC-on-Android write-up": """
        git-lfs Miniconda mlc-llm-nightly-cpu mlc_llm&compile --device --overrides --output
        prefill_chunk_size context_window_size model_lib estimated_vram_bytes vcvars64.bat JAVA_HOME
        ANDROID_NDK TVM_NDK_CC TVM_SOURCE_DIR MLC_LLM_SOURCE_DIR MLC_JIT_POLICY mlc_llm&package
        assembleDebug installDebug adb&devices mlc-package-config.json 27.0.11718014
    """,
    "the Windows journey": """
        --recursive venv -DUSE_VULKAN=ON assembleRelease mlc4j.aar git&lfs&clone LLVM_DIR vcpkg
        libxml2s.lib CMAKE_MINIMUM_REQUIRED convert_weight gen_config --conv-template mlc_llm&chat
        huggingface-cli q3f16_1 posix_memalign GetDefaultTargetTriple
    """,
    "the MNN kit": """
        modelscope&download llmexport.py --hqq --quant_bit --quant_block --lm_quant_bit --embed_bit
        --awq --smooth --calib_data --act_bit --act_sym --eagle_path --lora_path --lora_split
        --gptq_path --export_mnn --mnn_model_name --dhm_model --type --tokenizer_path --dst_path
        --mnnconvert --test --verbose --ppl --seperate_embed --transformer_fuse --onnx_slim
        --group_conv_native --sym prune_qwen3.py build_64.sh installDebug.sh scrcpy llm_demo
        -DMNN_QNN=ON QNN_SDK_ROOT libMNN_QNN.so quant_qkv prefer_decode thread_num penalty topK
        topP mixed_samplers speculative_type speculative_steps embedding_file use_mmap r25c
    """,
    "the AIMET and QNN notes": """
        uv&venv torch&2.1.2+cu121 1.34.0 2.36.0.250627 NspTargets.Android.GEN4 SeqMSE
        llama32_1b.onnx fp_0.pkl qairt-converter qairt-quantizer qnn-context-binary-generator
        to_device LD_LIBRARY_PATH ADSP_LIBRARY_PATH genie-t2t-run --prompt_file --profile
        htp-model-config-llama32-1b-gqa.json
    """,
}
WORDS = [(page, word.replace("&", " ")) for page, words in OLD.items() for word in words.split()]


@pytest.mark.parametrize(("page", "word"), WORDS)
def test_nothing_of_the_old_ways_is_left_out(page: str, word: str) -> None:
    assert word in PAGE, f"{page} says {word}"


def right_sides() -> list[str]:
    """The second column of each table's rows; a bar that is escaped is none."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line)[2] for line in rows]


def test_every_flag_on_the_right_is_ours() -> None:
    ours = {flag for context in known().values() for flag in context.flags}
    named = {
        flag
        for side in right_sides()
        for code in re.findall(r"`([^`]+)`", side)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
    }
    assert len(named) > 40
    assert not named - ours
