"""What the real tools write, inspected: context binaries, ONNX, MNN models, libraries."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgekiln.artifacts import look
from edgekiln.errors import ArtifactError
from edgekiln.home import project
from tests.unit.kit import Heard

pytestmark = pytest.mark.slow

# FOLDER: a context binary and the graph it was made of, by the functions that verify the image.
COMPILE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import checks
folder = Path(sys.argv[1])
(folder / "graph.onnx").write_bytes(checks._graph())
(folder / "scratch").mkdir()
(folder / "ctx.bin").write_bytes(checks._compile(checks._graph(), folder / "scratch"))
"""

# FILE: what onnx itself says of a model.
ONNX = """
import json, sys
from collections import Counter
import onnx

model = onnx.load(sys.argv[1], load_external_data=False)

def edge(value):
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [dim.dim_value for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": {"float": "float32"}.get(kind, kind), "shape": shape}

print(json.dumps({
    "nodes": Counter(node.op_type for node in model.graph.node),
    "parameters": sum(onnx.numpy_helper.to_array(t).size for t in model.graph.initializer),
    "inputs": [edge(value) for value in model.graph.input],
    "outputs": [edge(value) for value in model.graph.output],
    "ir_version": model.ir_version,
    "opset": {one.domain: one.version for one in model.opset_import},
}))
"""

# FILE: y = relu(2 x + 1). MNN's converter wants to install a package on import: it may not.
MNN = """
import sys
sys.modules["MNN.tools.utils.log"] = None
import MNN.expr as F
x = F.placeholder([1, 3])
F.save([F.relu(x * 2.0 + 1.0)], sys.argv[1])
"""


def run(python: Path, program: str, *words: str | Path) -> str:
    done = subprocess.run(
        [str(python), "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(qnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ctx.bin and graph.onnx."""
    folder = tmp_path_factory.mktemp("ctx")
    run(qnn_python, COMPILE, folder, project() / "images" / "qnn")
    return folder


@pytest.fixture(autouse=True)
def this_store(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKILN_HOME", str(own_store))


def facts(path: Path) -> dict[str, Any]:
    return look(path, Heard(), executor="native").value()


def test_a_context_binary_tells_build_chip_graphs_and_encodings(made: Path) -> None:
    found = facts(made / "ctx.bin")
    assert found["kind"] == "context_binary"
    assert (found["soc"], found["soc_model"]) == ("sm8750", 69)
    assert found["qnn_build"].startswith("v2.51.0")
    (graph,) = found["graphs"]
    (given,) = graph["inputs"]
    assert (given["name"], given["shape"]) == ("x", [1, 4, 16])
    text = look(made / "ctx.bin", Heard(), executor="native").text()
    assert "SM8750 (Snapdragon 8 Elite), soc_model 69, Hexagon v79" in text


def test_a_second_look_comes_out_of_the_store(made: Path) -> None:
    facts(made / "ctx.bin")
    again = Heard()
    look(made / "ctx.bin", again, executor="native")
    assert again.endings == []


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_context_binary_cut_short_is_damaged(made: Path, tmp_path: Path, share: float) -> None:
    data = (made / "ctx.bin").read_bytes()
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError, match="damaged QNN context binary"):
        facts(path)


def test_onnx_is_read_as_onnx_itself_reads_it(made: Path, qnn_python: Path) -> None:
    said = json.loads(run(qnn_python, ONNX, made / "graph.onnx"))
    found = facts(made / "graph.onnx")
    assert (found["nodes"], found["parameters"]) == (said["nodes"], said["parameters"])
    assert (found["inputs"], found["outputs"]) == (said["inputs"], said["outputs"])
    assert (found["ir_version"], found["opsets"]) == (said["ir_version"], said["opset"])


def test_the_vendors_libraries_tell_their_build(qnn_python: Path) -> None:
    library = next(qnn_python.parents[1].rglob("libQnnHtp.so"))
    found = facts(library)
    assert found["qnn_build"].startswith("v2.51.0")
    assert found["abi"] == "x86-64"


def test_a_model_that_mnn_wrote(mnn_python: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.mnn"
    run(mnn_python, MNN, path)
    found = facts(path)
    assert (found["kind"], found["version"]) == ("mnn", "3.6.1")
    assert found["operators"] == 6
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="damaged MNN"):
        facts(path)
