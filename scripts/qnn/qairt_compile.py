"""Stage: the quantised model into context binaries, with the tools of the vendor's QAIRT SDK.

Inputs: `quantized`, and `sdk`, the folder of an SDK for Linux (the host has checked it). Outputs:
`binaries` with compile.json and `twins`, as compile.py makes them. Parameters: soc, soc_model,
arch, vtcm_mb, weight_sharing (the chip), splits (0 decides), optimization (1 to 3), mha2sha.

The steps are the AIMET-to-QNN write-up's: one graph for each number of new tokens (AR-128 and
AR-1), cut into splits; mha2sha-onnx-converter where the SDK has it; qairt-converter with AIMET's
encodings; qairt-quantizer; and qnn-context-binary-generator, once a split for both graphs. They
run in one scratch folder under fixed relative names.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compiled
import jsons
import onnx
import onnxfile
import qairt_graph
import qairt_samples
import qairt_tools as tools
import shapes
import splits

from stagekit import BadInput, Stage, main

_STEPS = 4  # of each graph: write, convert, quantise, its own binary


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of one split: its files lie in the scratch folder under `name`."""

    split: splits.Split
    tokens: int
    context: int

    @property
    def name(self) -> str:
        """As the write-up calls it, and as the settings of the compiler must."""
        return f"ar{self.tokens}-cl{self.context}_{self.split.number}_of_{self.split.of}"

    @property
    def dlc(self) -> str:
        """The quantised DLC."""
        return f"{self.name}_quantized.dlc"


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: the tools, the chip, and the model as the tools take it."""

    stage: Stage
    tools: tools.Tools
    chip: compiled.Chip
    quantized: Path
    lowered: qairt_graph.Lowered
    encodings: Mapping[str, Any]
    samples: qairt_samples.Samples

    @property
    def scratch(self) -> Path:
        """Where everything lies and runs."""
        return self.tools.work


def run(stage: Stage) -> None:
    """Turn the model into floats and encodings, run the tools, write down what they made."""
    source, sdk = stage.input("quantized").resolve(), stage.input("sdk").resolve()
    told = jsons.read(source / "graph.json")
    for name in ("binaries", "twins"):
        stage.output(name).mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=stage.outputs) as scratch:
        work = _prepared(stage, source, tools.Tools(sdk=sdk, work=Path(scratch)))
        weights = splits.weigh(work.lowered.model, int(told["layers"]))
        cut = splits.plan(weights, stage.param("splits", int, 0))
        _compile_all(work, cut)


def _prepared(stage: Stage, source: Path, run: tools.Tools) -> Work:
    model = onnxfile.load(source / onnxfile.MODEL)
    try:
        lowered = qairt_graph.lower(model, source, run.work / "model.data")
    except qairt_graph.LoweringError as error:
        raise BadInput(
            f"the quantised model cannot be handed to the SDK's tools: {error}"
        ) from error
    encodings = jsons.read(source / "encodings.json")
    onnxfile.save(lowered.model, run.work / "model.onnx")
    samples = qairt_samples.Samples.of(source, run.work / "model.onnx", cpus=stage.cpus)
    return Work(
        stage=stage,
        tools=run,
        chip=compiled.Chip.of(stage),
        quantized=source,
        lowered=lowered,
        encodings=qairt_graph.overrides(encodings, lowered),
        samples=samples,
    )


def _compile_all(work: Work, cut: Sequence[splits.Split]) -> None:
    """Compile every split, and write compile.json."""
    whole = work.lowered.model
    context, tokens = shapes.context_of(whole), (shapes.tokens_of(whole), 1)
    binaries: list[dict[str, Any]] = []
    twins: list[dict[str, Any]] = []
    for split in cut:
        graphs = [Graph(split=split, tokens=count, context=context) for count in tokens]
        for number, graph in enumerate(graphs, len(twins)):
            for step, what in enumerate(_graph(work, graph), 1):
                done, total = number * _STEPS + step, len(cut) * len(tokens) * _STEPS
                work.stage.progress(done, total, unit="steps", what=f"{what} {graph.name}")
            twins.append(_twin(work, graph))
        made = list(_binaries(work, graphs))
        binaries += made
        for graph in graphs:
            (work.scratch / graph.dlc).unlink()
    compiled.write(
        work.stage,
        work.chip,
        cut,
        qnn_build=_build(work.tools.sdk),
        nodes_on_cpu=0,  # the generator places all nodes on the HTP, or fails
        binaries=binaries,
        twins=twins,
    )


def _graph(work: Work, graph: Graph) -> Iterator[str]:
    """A graph's ONNX, DLC and quantised DLC; yields what was just done."""
    scratch, run = work.scratch, work.tools
    onnx_file, encodings = f"{graph.name}.onnx", f"{graph.name}.encodings"
    model = _cut(work.lowered.model, graph)
    onnxfile.save(model, scratch / onnx_file)
    tools.write_json(scratch / encodings, _within(work.encodings, model))
    yield "cut"
    onnx_file, encodings = _single_heads(work, graph, onnx_file, encodings)
    dlc = f"{graph.name}.dlc"
    names = [value.name for value in model.graph.input]
    run.run(
        tools.converter_words(run.path("qairt-converter"), onnx_file, encodings, dlc, names),
        Path(dlc),
    )
    yield "convert"
    listed = work.samples.write(graph.split, graph.tokens, scratch, graph.name)
    run.run(
        tools.quantizer_words(run.path("qairt-quantizer"), dlc, listed, graph.dlc),
        Path(graph.dlc),
    )
    (scratch / dlc).unlink()
    yield "quantise"


def _cut(whole: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    model = shapes.retarget(whole, graph.tokens)
    return onnxfile.cut(model, graph.split.inputs, graph.split.outputs)


def _within(encodings: Mapping[str, Any], model: onnx.ModelProto) -> dict[str, Any]:
    """The encodings of one graph's own tensors."""
    there = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    there.update(name for node in model.graph.node for name in node.output)
    kinds = ("activation_encodings", "param_encodings")
    return {
        "version": encodings["version"],
        **{kind: [e for e in encodings[kind] if e["name"] in there] for kind in kinds},
    }


def _single_heads(work: Work, graph: Graph, onnx_file: str, encodings: str) -> tuple[str, str]:
    """Attention head by head, where the SDK brings the tool for it and it takes the graph.

    It makes the graph faster, not different: where the tool fails, the graph stays as it is.
    """
    tool = work.tools.mha2sha()
    if tool is None or not work.stage.param("mha2sha", bool, True):
        return onnx_file, encodings
    folder = Path(f"{graph.name}_sha")
    (work.scratch / folder).mkdir()
    made = folder / f"{graph.name}.onnx"
    words = tools.mha2sha_words(tool, graph.name, onnx_file, encodings, str(folder))
    try:
        work.tools.run(words, made)
    except tools.ToolError as error:
        work.stage.note(f"{graph.name} keeps its attention in one piece: {error}"[:300])
        return onnx_file, encodings
    return str(made), str(folder / f"{graph.name}.encodings")


def _twin(work: Work, graph: Graph) -> dict[str, Any]:
    """One graph alone, unshared: what this machine can run."""
    name = f"ar{graph.tokens}_{graph.split.number}_of_{graph.split.of}"
    made = _generate(work, [graph], name, shared=False)
    file = work.stage.output("twins") / f"{name}.bin"
    shutil.move(made, file)
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "tokens": graph.tokens,
        "split": graph.split.number,
    }


def _binaries(work: Work, graphs: Sequence[Graph]) -> Iterator[dict[str, Any]]:
    """What the phone gets of a split: one binary for both graphs, or one for each."""
    split = graphs[0].split
    tail = f"{split.number}_of_{split.of}"
    if work.chip.sharing:
        name = f"weight_sharing_model_{tail}.serialized"
        yield _described(work, graphs, _generate(work, graphs, name, shared=True))
        return
    for graph in graphs:
        twin = work.stage.output("twins") / f"ar{graph.tokens}_{tail}.bin"
        copy = work.scratch / f"ar{graph.tokens}_{tail}.serialized.bin"
        shutil.copyfile(twin, copy)
        yield _described(work, [graph], copy)


def _generate(work: Work, graphs: Sequence[Graph], name: str, *, shared: bool) -> Path:
    """Run the generator; its binary in the scratch folder."""
    split, chip = graphs[0].split, work.chip
    config = f"HtpConfigFile_API_{split.number}.json"
    inner = f"PerfSetting_API_{split.number}.conf"
    tools.write_json(work.scratch / config, tools.extension_config(inner))
    settings = tools.htp_config(
        [graph.name for graph in graphs],
        soc_model=chip.soc_model,
        arch=chip.arch,
        level=float(work.stage.param("optimization", int, 3)),
        vtcm_mb=chip.vtcm_mb,
        shared=shared,
    )
    tools.write_json(work.scratch / inner, settings)
    folder = Path("serialized_binaries")
    (work.scratch / folder).mkdir(exist_ok=True)
    made = folder / f"{name}.bin"
    tool = work.tools.path("qnn-context-binary-generator")
    dlcs = [graph.dlc for graph in graphs]
    work.tools.run(tools.generator_words(tool, config, name, str(folder), dlcs), made)
    return work.scratch / made


def _described(work: Work, graphs: Sequence[Graph], made: Path) -> dict[str, Any]:
    """A binary moved to where it belongs, and what compile.json says of it."""
    file = work.stage.output("binaries") / made.name
    shutil.move(made, file)
    return {
        "file": file.name,
        "split": graphs[0].split.number,
        "bytes": file.stat().st_size,
        "sha256": compiled.digest(file),
        "graphs": [_inside(work, graph) for graph in graphs],
    }


def _inside(work: Work, graph: Graph) -> dict[str, Any]:
    """A graph's edges as they were asked for: the encodings that the converter was given."""
    model = _cut(work.lowered.model, graph)
    known = {e["name"]: e for e in work.encodings["activation_encodings"]}

    def edge(value: onnx.ValueInfoProto) -> dict[str, Any]:
        found = known.get(value.name)
        return {
            "name": value.name,
            "dtype": f"uint{found['bw']}" if found else "int32",
            "shape": [int(d.dim_value) for d in value.type.tensor_type.shape.dim],
            "scale": float(found["scale"][0]) if found else None,
            "offset": int(found["offset"][0]) if found else None,
        }

    return {
        "name": graph.name,
        "tokens": graph.tokens,
        "context": graph.context,
        "inputs": [edge(value) for value in model.graph.input],
        "outputs": [edge(value) for value in model.graph.output],
    }


def _build(sdk: Path) -> str:
    """The SDK's build id as its HTP library tells it, else its version."""
    found = tools.build_id(sdk / "lib" / tools.HOST / "libQnnHtp.so")
    return found or f"v{sdk.name}"


if __name__ == "__main__":
    main(run)
