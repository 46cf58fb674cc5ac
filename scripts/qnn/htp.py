"""Compiles quantised ONNX graphs for one Hexagon chip, through onnxruntime's QNN provider.

Run as a program it is the child that does one compilation (childwork.py): the compiler holds
about ten times the weights, and numbers its graphs by what the process compiled before, so each
binary gets a process of its own and comes out the same every time.

Nothing of this machine may enter a binary: the model is handed over as bytes and its weights as
memory, since the provider derives a graph's name from the model's path where there is one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import childwork

from stagekit import BadInput

if TYPE_CHECKING:
    import onnx
    from compiled import Chip

PROVIDER = "QNNExecutionProvider"
CONTEXT_NODE = "EPContext"
# What onnxruntime says when a node is left over.
_FALLBACK = "fallback to CPU EP"
# Names of nodes in one line for people.
_NAMED = 6


class CompilerFailed(Exception):  # noqa: N818 - it says what happened
    """The compiler crashed, was killed or gave up: no fault of what it was given."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One finished binary, and what it took."""

    file: Path
    seconds: float
    peak_bytes: int
    nodes_on_cpu: int


def compile_binary(
    models: Sequence[Path], data: Path, output: Path, chip: Chip, *, optimization: int = 3
) -> Compiled:
    """Compile models into one context binary; several share their weights in it.

    Each model file is an ONNX graph with integer edges; its external weights lie in the folder
    `data`.
    Raises BadInput naming the nodes that Hexagon cannot run, CompilerFailed with the compiler's
    words for everything else.
    """
    request = {
        "models": [str(model) for model in models],
        "data": str(data),
        "output": str(output),
        "options": options(chip, optimization),
    }
    try:
        done = childwork.call(Path(__file__), request)
    except childwork.Crashed as crash:
        raise _refusal(models, chip, request, crash) from crash
    return Compiled(
        file=output,
        seconds=done["seconds"],
        peak_bytes=done["peak_bytes"],
        nodes_on_cpu=done["nodes_on_cpu"],
    )


def options(chip: Chip, optimization: int) -> dict[str, str]:
    """The provider's options. An unknown architecture would only warn, so it is checked."""
    if chip.arch[:1] != "v" or not chip.arch[1:].isdigit() or chip.soc_model <= 0:
        raise BadInput(f"{chip.soc}: {chip.arch!r} and {chip.soc_model!r} describe no chip")
    return {
        "soc_model": str(chip.soc_model),
        "htp_arch": chip.arch[1:],
        "vtcm_mb": str(chip.vtcm_mb),
        "htp_graph_finalization_optimization_mode": str(optimization),
        "offload_graph_io_quantization": "0",
    }


def _refusal(
    models: Sequence[Path], chip: Chip, request: Mapping[str, Any], crash: childwork.Crashed
) -> BadInput | CompilerFailed:
    """Why a compilation failed: the nodes that would run on the CPU, else the compiler's words."""
    if "SIGKILL" in crash.how:
        return CompilerFailed(
            f"the compiler for {chip.soc} was killed, as happens where memory runs out: it needs "
            "about ten times a split's weights; more --splits take less"
        )
    strays: list[str] = []
    for model in models if _FALLBACK in str(crash) else ():
        lenient = {**request, "models": [str(model)], "lenient": True, "output": None}
        try:
            strays += childwork.call(Path(__file__), lenient)["strays"]
        except (childwork.Crashed, BadInput):
            continue
    if strays:
        listed = ", ".join(strays[:_NAMED]) + (" …" if len(strays) > _NAMED else "")
        return BadInput(
            f"the Hexagon compiler leaves {len(strays)} nodes to the processor: {listed}",
            remedy="the graph must run on Hexagon as a whole; change those nodes or their types",
        )
    return CompilerFailed(f"the compiler for {chip.soc}: {crash}")


def _compile_here(request: Mapping[str, Any], _: childwork.Told) -> dict[str, Any]:
    """The child's side of `compile_binary`."""
    models = [Path(model) for model in request["models"]]
    lenient = bool(request.get("lenient"))
    begun = time.monotonic()
    strays: list[str] = []
    with tempfile.TemporaryDirectory(dir=_beside(request)) as scratch:
        for number, model in enumerate(models):
            share = len(models) > 1
            settings = session_options(request["options"], fallback=lenient)
            if share:
                settings.add_session_config_entry("ep.share_ep_contexts", "1")
            if share and number == len(models) - 1:
                settings.add_session_config_entry("ep.stop_share_ep_contexts", "1")
            output = Path(scratch) / f"{number}.onnx"
            strays += _compile(model, Path(request["data"]), settings, output)
        if request["output"] is not None:
            _keep(Path(scratch), Path(request["output"]), len(models))
    return {
        "seconds": time.monotonic() - begun,
        "peak_bytes": childwork.peak_bytes(),
        "nodes_on_cpu": len(strays),
        "strays": strays,
    }


def _beside(request: Mapping[str, Any]) -> Path | None:
    """Where to make the binary: on the disk it is to lie on, for it can be large."""
    return Path(request["output"]).parent if request["output"] is not None else None


def session_options(provider_options: Mapping[str, str], *, fallback: bool = False) -> Any:
    """Options of an onnxruntime session on (emulated) Hexagon."""
    import onnxruntime
    import onnxruntime_qnn

    if not any(d.ep_name == PROVIDER for d in onnxruntime.get_ep_devices()):
        library = onnxruntime_qnn.get_library_path()
        onnxruntime.register_execution_provider_library(PROVIDER, library)
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
    if not devices:
        raise RuntimeError("onnxruntime does not offer the QNN provider")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if not fallback:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    everything = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **provider_options}
    settings.add_provider_for_devices(devices, everything)
    return settings


def _compile(model: Path, data: Path, settings: Any, output: Path) -> list[str]:
    """Compile one graph; the nodes that were not compiled, as "name (op)"."""
    import numpy as np
    import onnx
    import onnxruntime

    proto = onnx.load(str(model), load_external_data=False)
    names = sorted(_data_files(proto))
    held = [np.memmap(data / name, np.uint8, "r") for name in names]
    if names:
        sizes = [len(bytes_) for bytes_ in held]
        settings.add_external_initializers_from_files_in_memory(names, held, sizes)
    compiler = onnxruntime.ModelCompiler(
        settings, proto.SerializeToString(), embed_compiled_data_into_model=False
    )
    compiler.compile_to_file(str(output))
    made = onnx.load(str(output), load_external_data=False)
    contexts = [n for n in made.graph.node if n.op_type == CONTEXT_NODE]
    strays = [n for n in made.graph.node if n.op_type != CONTEXT_NODE]
    if len(contexts) > 1 and not strays:
        raise RuntimeError(f"the graph was cut into {len(contexts)} pieces")
    return [f"{node.name} ({node.op_type})" for node in strays]


def _data_files(model: onnx.ModelProto) -> set[str]:
    """The external files that a model's weights lie in."""
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _keep(scratch: Path, output: Path, models: int) -> None:
    """Move the one binary out of the scratch folder."""
    binaries = sorted(scratch.glob("*.bin"))
    if len(binaries) != 1:
        raise RuntimeError(f"{models} graphs made {len(binaries)} binaries instead of one")
    shutil.move(binaries[0], output)


if __name__ == "__main__":
    childwork.answer(_compile_here)
