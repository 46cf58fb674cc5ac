"""What this toolchain is for: AIMET 1.34's torch flow, on a GPU where there is one."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

IN_IMAGE = sys.prefix == "/opt/edgekiln"


def torch_cuda(lock: dict[str, Any]) -> str:
    """torch is the build for CUDA 12.1, computes, and says whether it sees a GPU."""
    import torch
    import torchvision

    assert torch.version.cuda == "12.1", f"torch is for CUDA {torch.version.cuda}"
    seen = torch.cuda.is_available()
    ones = torch.ones(64, 64, device="cuda" if seen else "cpu")
    assert ones.matmul(ones).sum().item() == 64.0**3
    where = torch.cuda.get_device_name() if seen else "the CPU: it sees no GPU"
    return f"torch {torch.__version__} and torchvision {torchvision.__version__} compute on {where}"


def native(lock: dict[str, Any]) -> str:
    """AIMET's compiled part loads; a machine without its libraries gets AIMET's Python one."""
    import torch  # noqa: F401  # brings the CUDA libraries that the compiled part asks for

    try:
        from aimet_common import _libpymo
    except ImportError as error:
        assert not IN_IMAGE, f"AIMET's compiled part does not load: {error}"
        return (
            f"AIMET does without its compiled part, which its torch flow (v2) never asks ({error})"
        )
    assert hasattr(_libpymo, "TfEncoding"), "AIMET's compiled part has no TfEncoding"
    return "AIMET's compiled part loads"


def quantization(lock: dict[str, Any]) -> str:
    """A model with 4-bit weights is simulated, searched by SeqMSE, and exported."""
    import torch
    from aimet_common.defs import QuantScheme
    from aimet_torch.v2.quantsim import QuantizationSimModel
    from aimet_torch.v2.seq_mse import SeqMseParams, apply_seq_mse

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 32, bias=False), torch.nn.ReLU(), torch.nn.Linear(32, 32, bias=False)
    ).eval()
    data = [torch.randn(1, 8, 32) for _ in range(4)]
    sim = QuantizationSimModel(
        model,
        data[0],
        quant_scheme=QuantScheme.post_training_tf,
        default_output_bw=16,
        default_param_bw=4,
    )
    apply_seq_mse(model, sim, data, SeqMseParams(num_batches=4, num_candidates=20))
    sim.compute_encodings(lambda inner, _: [inner(batch) for batch in data], None)
    with torch.no_grad():
        wanted, found = model(data[0]), sim.model(data[0])
    error = float((found - wanted).norm() / wanted.norm())
    assert error < 0.25, f"the quantised model computes something else: {error:.3f}"
    with tempfile.TemporaryDirectory() as folder:
        sim.export(folder, "model", data[0])
        told = json.loads(Path(folder, "model.encodings").read_text(encoding="utf-8"))
        assert Path(folder, "model.onnx").is_file(), "no ONNX was exported"
    widths = [entries[0]["bitwidth"] for entries in told["param_encodings"].values()]
    assert widths == [4, 4], f"not the widths asked for: {widths}"
    return f"AIMET 1.34 quantises with SeqMSE and exports (relative error {error:.3f})"


CHECKS: list[Callable[[dict[str, Any]], str]] = [torch_cuda, native, quantization]
