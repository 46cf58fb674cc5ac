"""Stage: ranges and weight grids by AIMET 1.34's torch flow, as in the AIMET-to-QNN write-up.

Inputs, output and parameters are those of aimet_onnx_ptq.py; further parameters: device (auto,
cpu, cuda) and export_onnx. With export_onnx the folder also holds what the write-up hands on:
onnx/ with the model, AIMET's encodings and its weights, and test_vectors/ of the float and the
quantised model. torch_flow.py has the steps.
"""

from __future__ import annotations

from stagekit import Stage, main


def run(stage: Stage) -> None:
    """Run the flow; what torch and AIMET print as they are imported goes to the log by now."""
    import torch_flow

    torch_flow.run(stage)


if __name__ == "__main__":
    main(run)
