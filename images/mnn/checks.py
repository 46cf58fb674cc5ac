"""What the mnn toolchain is for: torch on the CPU, MNN's converter and runtime, llmexport."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A None here makes the converter's `try: import` of its usage log fail quietly.
sys.modules["MNN.tools.utils.log"] = None  # type: ignore[assignment]


def torch_cpu(lock: dict[str, Any]) -> str:
    """torch computes, on the CPU, and has no CUDA inside."""
    import torch

    assert torch.version.cuda is None, f"torch is for CUDA {torch.version.cuda}"
    assert torch.ones(64, 64).matmul(torch.ones(64, 64)).sum().item() == 64.0**3
    return f"torch {torch.__version__} computes on the CPU"


def conversion(lock: dict[str, Any]) -> str:
    """MNN's converter turns an ONNX graph into one that MNN's runtime computes alike."""
    import numpy as np
    from MNN.tools import mnnconvert

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "graph.onnx"), Path(folder, "graph.mnn")
        given, wanted = _write_graph(source)
        words = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
        mnnconvert.convert(["mnnconvert", *words, "--bizCode", "verify"])
        found = _run_graph(target, given)
    error = float(np.abs(found - wanted).max())
    assert error < 1e-4, f"MNN computes something else: {error}"
    return f"MNN converts ONNX and computes the same (largest difference {error:.1e})"


def _write_graph(path: Path) -> tuple[Any, Any]:
    """A graph relu(x · w), with an input and what comes out."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weight, given = (random.standard_normal(s).astype(np.float32) for s in ((16, 8), (4, 16)))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", [4, 16]), ("y", [4, 8]))
    ]
    graph = helper.make_graph(nodes, "verify", *ends, [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return given, np.maximum(given @ weight, 0)


def _run_graph(path: Path, given: Any) -> Any:
    from MNN import expr, nn

    module = nn.load_module_from_file(str(path), ["x"], ["y"])
    entry = expr.const(given.ravel().tolist(), list(given.shape), expr.NCHW)
    return expr.convert(module.forward([entry])[0], expr.NCHW).read()


def exporter(lock: dict[str, Any]) -> str:
    """llmexport imports, and MNN's log module, which would install a package, stays out."""
    import importlib.util

    sys.path.insert(0, str(Path(importlib.util.find_spec("llmexport").origin).parent))
    import llmexport

    assert hasattr(llmexport, "LlmExporter"), "llmexport has no LlmExporter"
    assert sys.modules["MNN.tools.utils.log"] is None, "MNN's log module was loaded"
    return f"llmexport {importlib.metadata.version('llmexport')} imports"


def runtime(lock: dict[str, Any]) -> str:
    """MNN's own language model runtime is there, for the proof on the host."""
    import MNN.llm

    assert callable(MNN.llm.create)
    return "MNN's LLM runtime imports"


CHECKS: list[Callable[[dict[str, Any]], str]] = [torch_cpu, runtime, conversion, exporter]
