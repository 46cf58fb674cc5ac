"""Run by the qnn toolchain's Python with scripts/ and scripts/qnn on its path."""

# GRAPH QUANTISED → one line of JSON: both as whole models, beside what the stage wrote down.
LOOK = """
import json, math, sys
from pathlib import Path
import numpy as np
import chunks, corpus, onnxfile, qdq, ranges, streams

graph, made = Path(sys.argv[1]), Path(sys.argv[2])
vectors = np.load(made / "vectors.npz")
ids = vectors["input_ids"][0].tolist()
told = {}
logits = chunks.Runner(folder=graph, cpus=2).run(ids)
told["largest"] = float(abs(logits).max())
told["float_differs"] = float(abs(logits - vectors["logits_float"]).max())
# The whole quantised model as it is written, nothing fused.
chunks.session = lambda model, folder, cpus, **_: streams.session(model, folder, plain=True)
runner = chunks.Runner(folder=made, cpus=2)
told["whole_differs"] = float(abs(runner.run(ids) - vectors["logits_quantised"]).max())
whole = onnxfile.load(made / "model.onnx")
scales = {t.name: t for t in whole.graph.initializer}
import onnx
told["logit_step"] = float(onnx.numpy_helper.to_array(scales["logits.scale"]))
spec = chunks.read_spec(made)
cutter = corpus.Cutter.of(Path(made), prefill=spec["prefill"], context=spec["context"])
text = corpus.read(Path(corpus.__file__).parent / "data" / "evaluation.txt")
nats = tokens = 0
for window in cutter.windows(text, most=corpus.EVALUATION_TOKENS, least=1, what="evaluation"):
    runner.clear()
    rows = runner.run(window)[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    likely = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    nats -= likely[np.arange(len(rows)), window[1:]].sum()
    tokens += len(rows)
told["perplexity"] = math.exp(nats / tokens)
plain = onnxfile.load(graph / "model.onnx")
told["computed"] = sorted({n for node in plain.graph.node for n in node.output}
                          | {v.name for v in plain.graph.input if v.name != "input_ids"})
told["parameters"] = sorted(t.name for t in plain.graph.initializer if t.data_type == 1)
print(json.dumps(told))
"""

# QUANTISED → one line of JSON: what qdq says to each way of getting it wrong, "" where nothing.
TRAPS = """
import json, sys
from pathlib import Path
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
import onnxfile, qdq, quantspec

made = Path(sys.argv[1])
whole = onnxfile.load(made / "model.onnx")
told = {}

def said(what, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(whole)
    change(copy, {n.name: n for n in copy.graph.node}, {t.name: t for t in copy.graph.initializer})
    try:
        qdq.check(copy)
        told[what] = ""
    except ValueError as error:
        told[what] = str(error)

def set_value(tensors, name, value):
    tensors[name].CopyFrom(numpy_helper.from_array(value, name))

def zero_point(model, nodes, tensors):
    shape = list(tensors["layers.0.q_proj.weight.scale"].dims)
    zero = helper.make_tensor("zero", TensorProto.INT4, shape, [1] * shape[0])
    model.graph.initializer.append(zero)
    nodes["layers.0.q_proj.weight.dq"].input[2] = "zero"

def no_zero_point(model, nodes, tensors):
    del nodes["layers.0.q_proj.weight.dq"].input[2]

def one_scale(model, nodes, tensors):
    set_value(tensors, "layers.0.q_proj.weight.scale", np.float32(0.1))

def other_out(model, nodes, tensors):
    set_value(tensors, "past_key_0_out.scale", np.float32(0.3))

def sixteen(model, nodes, tensors):
    for name in [n for n in tensors if n.endswith(".zero_point")]:
        if numpy_helper.to_array(tensors[name]).dtype == np.uint8:
            set_value(tensors, name, np.uint16(128))

def softmax(model, nodes, tensors):
    set_value(tensors, "layers.0.softmax.scale", np.float32(1 / 255))
    set_value(tensors, "layers.0.softmax.zero_point", np.uint8(0))

def opset(model, nodes, tensors):
    model.opset_import[0].version = 20

def norm(model, nodes, tensors):
    model.graph.node.append(helper.make_node("Pow", ["x", "y"], ["z"], name="power"))

said("as it was written", lambda *_: None)
said("zero point on int4", zero_point)
said("no zero point on int4", no_zero_point)
said("one scale for a weight", one_scale)
said("cache in and out", other_out)
said("cache of 16 bits", sixteen)
said("8-bit softmax", softmax)
said("opset", opset)
said("a norm in pieces", norm)

x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])
nodes = [helper.make_node("Sigmoid", ["x"], ["s"], name="s"),
         helper.make_node("Concat", ["x", "s"], ["y"], name="y", axis=0)]
model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]),
                          opset_imports=[helper.make_opsetid("", 23)])
one, other = quantspec.between(0, 1), quantspec.between(0, 2)
for what, grids in (("a tensor without a grid", {"x": one, "s": one}),
                    ("concat", {"x": one, "s": other, "y": one})):
    try:
        qdq.write(model, grids, {})
        told[what] = ""
    except ValueError as error:
        told[what] = str(error)
print(json.dumps(told))
"""

# QUANTISED TWINS → one line of JSON: the least cosine of a row of logits, HTP against CPU.
EMULATE = """
import json, sys
from pathlib import Path
import numpy as np
import twins

made = Path(sys.argv[1])
vectors = np.load(made / "vectors.npz")
runner = twins.Twins(folder=made, cpus=1, binaries=twins.files(Path(sys.argv[2])))
got, wanted = runner.run(vectors["input_ids"][0].tolist()), vectors["logits_quantised"]
norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(wanted, axis=-1)
print(json.dumps({"cosine": float(((got * wanted).sum(axis=-1) / norms).min())}))
"""
