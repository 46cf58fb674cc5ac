"""What the qairt toolchain is for: the SDK's tools find all they import and all they link to."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

IN_IMAGE = sys.prefix == "/opt/edgekiln"
# What libraries of the SDK for x86-64 link to beyond the C library, and who brings it.
LIBRARIES = {
    "libc++.so.1": "libc++1",
    "libc++abi.so.1": "libc++abi1",
    "libunwind.so.1": "libunwind-14",
    "libatomic.so.1": "libatomic1",
    "libpython3.10.so.1.0": "libpython3.10",
}
# Distributions whose module has another name.
_MODULES = {
    "absl-py": "absl",
    "attrs": "attr",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-optimize": "skopt",
    "protobuf": "google.protobuf",
    "typing-extensions": "typing_extensions",
}


def libraries(lock: dict[str, Any]) -> str:
    """The system's libraries that the SDK's own are linked to; a prefix says which are missing."""
    missing = " ".join(package for name, package in LIBRARIES.items() if not _loads(name))
    assert not (missing and IN_IMAGE), f"the SDK's tools would not start without {missing}"
    if missing:
        return f"this machine lacks what the SDK's tools may need to start: {missing}"
    return f"{len(LIBRARIES)} libraries that the SDK links to"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def modules(lock: dict[str, Any]) -> str:
    """Every module that the SDK's tools ask for can be imported."""
    import importlib

    names = [pin.partition("==")[0] for pin in lock["definition"]["requirements"]]
    for name in names:
        importlib.import_module(_MODULES.get(name, name))
    return f"{len(names)} modules that the SDK's tools ask for"


def graphs(lock: dict[str, Any]) -> str:
    """A graph is written, simplified and computed at the versions that the converters take."""
    import numpy as np
    import onnx
    import onnxruntime
    import onnxsim
    from onnx import TensorProto, helper, numpy_helper

    weight = np.arange(32, dtype=np.float32).reshape(8, 4)
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", [2, 8]), ("y", [2, 4]))
    ]
    graph = helper.make_graph(nodes, "verify", *ends, [numpy_helper.from_array(weight, "w")])
    opset = [helper.make_opsetid("", 17)]
    model, agrees = onnxsim.simplify(helper.make_model(graph, opset_imports=opset, ir_version=8))
    assert agrees and len(model.graph.node) == 1, "onnxsim did not simplify the graph"
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = np.ones((2, 8), np.float32)
    assert np.array_equal(session.run(None, {"x": given})[0], given @ weight)
    return f"onnx {onnx.__version__} and onnxruntime {onnxruntime.__version__} compute"


CHECKS: list[Callable[[dict[str, Any]], str]] = [libraries, modules, graphs]
