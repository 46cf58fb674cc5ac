"""A stand-in for the package mlc_llm: it says what upstream's says and writes what it writes.

It shows how the stages call it, read it and explain it; what it makes is of no use. Upstream's own
runs in the toolchains only.
"""

from __future__ import annotations

from pathlib import Path

# Beside the arguments, what the stages must have set is written down.
_MAIN = """
import json, os, pathlib, sys
command, *words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
names = ("PYTHONHASHSEED", "MLC_JIT_POLICY", "MLC_DOWNLOAD_CACHE_POLICY", "TVM_NUM_THREADS")
told = {"command": command, "words": words, "env": {n: os.environ.get(n) for n in names}}
place = pathlib.Path(os.environ["STANDIN"])
(place / f"{command}.json").write_text(json.dumps(told))
bold, end = "\\x1b[1m", "\\x1b[0m"
say = lambda text: print(f"[2026-11-21 13:27:48] INFO standin.py:1: {text}", file=sys.stderr)
if (place / "fail").exists():
    sys.exit((place / "fail").read_text())
if command == "convert_weight":
    out = pathlib.Path(option("--output"))
    model = pathlib.Path(words[0])
    (model / "model.safetensors.index.json").write_text("{}")  # as upstream does
    for done in range(3):
        sys.stderr.write(f"\\r {done}%|###| {done}/2 [00:00<00:01]")
    (out / "params_shard_0.bin").write_bytes(b"x" * 40)
    records = [{"dataPath": "params_shard_0.bin", "nbytes": int(os.environ.get("BYTES", 40))}]
    (out / "tensor-cache.json").write_text(json.dumps({"records": records}))
    say(f"{bold}Parameter size{end} after quantization: 1.617 GB")
    say(f"{bold}Total parameters{end}: 3,085,938,688")
    say(f"{bold}Bits per parameter{end}: 4.501")
elif command == "gen_config":
    out = pathlib.Path(option("--output"))
    (out / "tokenizer.json").write_text("{}")
    config = {"model_type": option("--model-type"), "quantization": option("--quantization"),
              "conv_template": {"name": option("--conv-template"), "stop_str": ["x"]},
              "context_window_size": 2048, "model_config": {}}
    (out / "mlc-chat-config.json").write_text(json.dumps(config))
    say(f"Overriding {bold}context_window_size{end} from 131072 to 2048")
elif command == "package":
    say("ValidationError:\\n\\tmodel_lib wrong requested in a is not found in b\\n"
        "\\tcurrent available model_libs in b: ['right', 'other']")
    sys.exit(255)
"""

_FILES = {
    "mlc_llm/__init__.py": "raise ImportError('the server wants the compiled library')",
    "mlc_llm/__main__.py": _MAIN,
    "mlc_llm/libinfo.py": "__version__ = '0.20.dev0'",
    "mlc_llm/interface/__init__.py": "",
    "mlc_llm/interface/gen_config.py": "CONV_TEMPLATES = {'chatml', 'qwen2', 'vicuna_v1.1'}",
    "mlc_llm/quantization.py": "QUANTIZATION = {'q4f16_0': 0, 'q4f16_1': 0}",
    "mlc_llm/model.py": "MODELS = {'qwen2': 0}",
    "mlc_llm/support/__init__.py": "",
    "mlc_llm/support/auto_device.py": "_RESULT_CACHE = {}",
    "mlc_llm/conversation_template.py": (
        "class ConvTemplateRegistry:\n    _conv_templates = {'chatml': 0, 'qwen2': 0, 'LM': 0}\n"
    ),
    "tvm_ffi.py": "def get_global_func(name, missing):\n    return name.endswith('opencl')\n",
}


def make(place: Path) -> Path:
    """Write it down; the folder is what a stage takes as its input `source`."""
    for name, text in _FILES.items():
        file = place / "python" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return place / "python"
