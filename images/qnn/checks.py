"""What the qnn toolchain is for: binaries for the HTP, HTP emulation, Genie, without any SDK."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# SM8750 (8 Elite), Hexagon v79.
SOC = 69
# Offsets of QnnSystemInterface_t (after its id, name and version) and of the third version of
# QnnSystemContext_BinaryInfo_t, whose field order is the same in every QNN since 2.21.
_FUNCTIONS, _BUILD_ID, _SOC_MODEL = 32, 16, 136


def compiler(lock: dict[str, Any]) -> str:
    """A quantised graph becomes a binary for one SoC, all of it on the HTP."""
    with tempfile.TemporaryDirectory() as folder:
        binary = _compile(_graph(), Path(folder))
        build, soc = _read_back(binary)
    assert soc == SOC, f"the binary is for SoC {soc}, asked was {SOC}"
    return f"a graph compiles for SoC {soc}, all of it on the HTP (QNN {build})"


def emulation(lock: dict[str, Any]) -> str:
    """The HTP's emulation computes what the CPU computes, to a few steps of the output."""
    import numpy as np
    import onnxruntime

    model, given = _graph(), np.linspace(-4, 4, 64, dtype=np.float32).reshape(1, 4, 16)
    found = onnxruntime.InferenceSession(model, _on_htp()).run(None, {"x": given})[0]
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    error = float(np.abs(found - cpu.run(None, {"x": given})[0]).max())
    assert error < 0.01, f"the emulation computes something else: {error}"
    return f"HTP emulation computes the same as the CPU (largest difference {error:.1e})"


def genie(lock: dict[str, Any]) -> str:
    """Genie is there for x86-64 and reads configurations: it refuses one that is none."""
    library = _library("libGenie.so")
    version = f"{library.Genie_getApiMajorVersion()}.{library.Genie_getApiMinorVersion()}"
    made = ctypes.c_void_p()
    refused = library.GenieDialogConfig_createFromJson(b'{"dialog": {}}', ctypes.byref(made))
    assert refused < 0, f"Genie took an empty configuration: {refused}"
    return f"Genie {version} loads"


def tokenizer(lock: dict[str, Any]) -> str:
    """Text becomes tokens and comes back; a chat template is filled in."""
    import jinja2
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"edge": 0, "kiln": 1}, "edge"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    template = jinja2.Environment().from_string("{% for word in words %}{{ word }} {% endfor %}")
    assert words.encode(template.render(words=["kiln", "edge"])).ids == [1, 0]
    return f"tokenizers {tokenizers.__version__} and jinja2 {jinja2.__version__}"


def _graph() -> bytes:
    """A QDQ graph x · w: 16-bit activations, 8-bit weights with a scale for each column."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).integers(-127, 128, (16, 8)).astype(np.int8)
    values = {
        "w": weight,
        "ws": np.full(8, 0.01, np.float32),
        "wz": np.zeros(8, np.int8),
        "s": np.float32(8 / 65535),
        "ys": np.float32(80 / 65535),
        "z": np.uint16(32768),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        node("MatMul", ["xd", "wd"], ["m"]),
        node("QuantizeLinear", ["m", "ys", "z"], ["mq"]),
        node("DequantizeLinear", ["mq", "ys", "z"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", [1, 4, 16]), ("y", [1, 4, 8]))
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "verify", *ends, held)
    opset = [helper.make_opsetid("", 21)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def _on_htp() -> Any:
    """Options of a session that runs on the HTP, and fails rather than leave it."""
    import onnxruntime
    import onnxruntime_qnn

    name = "QNNExecutionProvider"
    if all(device.ep_name != name for device in onnxruntime.get_ep_devices()):
        library = onnxruntime_qnn.get_library_path()
        onnxruntime.register_execution_provider_library(name, library)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what is missing on this machine's CPU is no news
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": str(SOC)}
    options.add_provider_for_devices(devices[:1], settings)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _compile(model: bytes, folder: Path) -> bytes:
    """The context binary that the HTP's compiler makes of a model."""
    import onnxruntime

    compiler = onnxruntime.ModelCompiler(_on_htp(), model, embed_compiled_data_into_model=False)
    compiler.compile_to_file(str(folder / "graph.onnx"))
    return next(folder.glob("*.bin")).read_bytes()


def _library(name: str) -> ctypes.CDLL:
    import onnxruntime_qnn

    return ctypes.CDLL(str(Path(onnxruntime_qnn.get_qnn_htp_path()).with_name(name)))


def _read_back(binary: bytes) -> tuple[str, int]:
    """Build id and SoC as libQnnSystem reads them out of a context binary."""
    providers, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_uint32()
    library = _library("libQnnSystem.so")
    library.QnnSystemInterface_getProviders(ctypes.byref(providers), ctypes.byref(count))
    assert count.value, "libQnnSystem names no interface"
    place = providers[0] + _FUNCTIONS
    handle, info, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    create = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(_at(place, ctypes.c_uint64))
    read = ctypes.CFUNCTYPE(
        ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, *[ctypes.c_void_p] * 2
    )(_at(place + 8, ctypes.c_uint64))
    code = create(ctypes.addressof(handle))
    assert code == 0, f"libQnnSystem gives no context: {code}"
    found, told = ctypes.addressof(info), ctypes.addressof(size)
    code = read(handle, binary, len(binary), found, told)
    assert code == 0 and info.value, f"libQnnSystem does not read the binary: {code}"
    version = _at(info.value, ctypes.c_uint32)
    assert version == 3, f"the binary's description is of version {version}"
    build = ctypes.string_at(_at(info.value + _BUILD_ID, ctypes.c_uint64)).decode()
    return build, _at(info.value + _SOC_MODEL, ctypes.c_uint32)


def _at(address: int, kind: type[Any]) -> int:
    return int(kind.from_address(address).value)


CHECKS: list[Callable[[dict[str, Any]], str]] = [compiler, emulation, genie, tokenizer]
