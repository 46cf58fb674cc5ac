"""What the aimet toolchain is for: aimet-onnx simulates, searches and exports on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The rules of the 8 Elite's Hexagon.
RULES = "htp_v79"


def torch_cpu(lock: dict[str, Any]) -> str:
    """torch computes, on the CPU, and has no CUDA inside."""
    import torch

    assert torch.version.cuda is None, f"torch is for CUDA {torch.version.cuda}"
    assert torch.ones(64, 64).matmul(torch.ones(64, 64)).sum().item() == 64.0**3
    return f"torch {torch.__version__} computes on the CPU"


def quantization(lock: dict[str, Any]) -> str:
    """A graph with 4-bit weights is simulated and exported; SeqMSE's weights lose less."""
    import aimet_onnx

    plain, _ = _quantized(seq_mse=False)
    searched, widths = _quantized(seq_mse=True)
    assert searched < plain, f"SeqMSE does not help: error {searched:.3f} against {plain:.3f}"
    assert widths == {"w1": 4, "w2": 4}, f"not the weights asked for: {widths}"
    return (
        f"aimet-onnx {aimet_onnx.__version__} quantises by the rules {RULES}: "
        f"error {plain:.3f}, with SeqMSE {searched:.3f}"
    )


def _quantized(*, seq_mse: bool) -> tuple[float, dict[str, int]]:
    """The output's relative error with 4-bit weights; the bits of each weight as exported."""
    import aimet_onnx
    import numpy as np

    model, feeds, wanted = _graph()
    sim = aimet_onnx.QuantizationSimModel(
        model, param_type="int4", activation_type="int16", config_file=RULES
    )
    if seq_mse:
        aimet_onnx.apply_seq_mse(sim, feeds, num_candidates=20)
    sim.compute_encodings(feeds)
    found = sim.session.run(None, feeds[0])[0]
    with tempfile.TemporaryDirectory() as folder:
        sim.export(folder, "model")
        told = json.loads(Path(folder, "model.encodings").read_text(encoding="utf-8"))
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return error, {entry["name"]: entry["bw"] for entry in told["param_encodings"]}


def _graph() -> tuple[Any, list[dict[str, Any]], Any]:
    """A graph relu(x · w1) · w2 whose weights have outliers, inputs, what the first gives."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    one, two = (random.standard_normal((32, 32)).astype(np.float32) ** 3 for _ in range(2))
    feeds = [{"x": random.standard_normal((1, 8, 32)).astype(np.float32)} for _ in range(4)]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 32])] for name in ("x", "y")
    ]
    weights = [numpy_helper.from_array(one, "w1"), numpy_helper.from_array(two, "w2")]
    graph = helper.make_graph(nodes, "verify", *ends, weights)
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return model, feeds, np.maximum(feeds[0]["x"] @ one, 0) @ two


CHECKS: list[Callable[[dict[str, Any]], str]] = [torch_cpu, quantization]
