"""Run by the qnn toolchain's Python with scripts/ and scripts/qnn on its path.

GRAPH REFERENCE.npz DECODED → one line of JSON: how far the graph's logits are from the
reference's, when all but the last DECODED tokens go in by chunks and those one by one.
"""

DRIVE = """
import json, sys
from pathlib import Path
import numpy as np
import chunks, onnxfile

folder, decoded = Path(sys.argv[1]), int(sys.argv[3])
reference = np.load(sys.argv[2])
ids, logits = reference["ids"].tolist(), reference["logits"]
runner = chunks.Runner(folder=folder, cpus=2)
first = len(ids) - decoded

def far(got, rows=slice(None)):
    return float(np.abs(got - logits[rows]).max())

told = {}
prefill = runner.run(ids[:first])
told["prefill"] = far(prefill, slice(first))
told["decode"] = far(np.concatenate([runner.run([i], tokens=1) for i in ids[first:]]),
                     slice(first, None))
runner.clear()
told["left"] = far(runner.run(ids[:first], left=True), slice(first))
runner.clear()
told["other_tokens"] = far(runner.run(ids, tokens=7))

# Part after part, each cut out of the whole; every chunk goes through one before the next.
spec, model = runner.spec, runner.model
cut = chunks.split([ids, ids[: first // 2]], spec["prefill"], spec["context"])
hidden, rows = {}, [[], []]
for part in spec["parts"]:
    made = chunks.session(onnxfile.cut(model, part["inputs"], part["outputs"]), folder, cpus=2)
    layer = int(part["name"][6:]) if part["name"].startswith("layer_") else None
    for number, chunk in enumerate(cut):
        cache = chunks.Cache.empty(spec) if chunk.start == 0 else cache
        feeds = chunks.edges(spec, chunk) | {part["inputs"][0]: hidden.get(number)}
        if layer is None:
            feeds["input_ids"] = chunks.edges(spec, chunk)["input_ids"]
        else:
            feeds |= cache.feeds(layer, spec["context"] - chunk.tokens)
        results = made.run(part["outputs"], {name: feeds[name] for name in part["inputs"]})
        hidden[number] = results[0]
        if layer is not None:
            cache.take(chunk, *results[1:])
for number, chunk in enumerate(cut):
    rows[chunk.text].append(hidden[number][0, chunk.rows])
told["parts"] = [part["name"] for part in spec["parts"]]
told["cut"] = far(np.concatenate(rows[0]))
told["cut_second"] = far(np.concatenate(rows[1]), slice(first // 2))
runner.clear()
told["answer"] = runner.answer(ids[:first], 5)
told["likeliest"] = int(logits[first - 1].argmax())
told["largest"] = float(np.abs(logits).max())
print(json.dumps(told))
"""

# GRAPH TOKENS → one line of JSON: what differs in the graph for another number of tokens.
RETARGET = """
import json, sys
from pathlib import Path
import onnxfile, shapes

whole = onnxfile.load(Path(sys.argv[1]) / onnxfile.MODEL)
narrow = shapes.retarget(whole, int(sys.argv[2]))
context = shapes.context_of(whole)
refused = []
for tokens in (0, context):
    try:
        shapes.retarget(whole, tokens)
    except ValueError as error:
        refused.append(str(error))
print(json.dumps({
    "tokens": shapes.tokens_of(narrow),
    "back": shapes.retarget(narrow, shapes.tokens_of(whole)) == whole,
    "same_constants": list(narrow.graph.initializer) == list(whole.graph.initializer),
    "same_nodes": list(narrow.graph.node) == list(whole.graph.node),
    "inputs": {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
               for v in narrow.graph.input},
    "refused": refused,
}))
"""

# FOLDER → one line of JSON: how the data file holds matrices that came in blocks.
BLOCKS = """
import json, sys
from pathlib import Path
import numpy as np
import onnx, onnxfile

folder = Path(sys.argv[1])
random = np.random.default_rng(3)
a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((37, 5), (11, 6)))

def blocks(values, step):
    return ((first, values[first : first + step]) for first in range(0, len(values), step))

with onnxfile.DataWriter(folder / onnxfile.DATA) as data:
    kept = [
        data.rows("a", a.shape, blocks(a, 8)),
        data.transposed("at", a.T.shape, blocks(a, 8)),
        data.transposed("whole", b.T.shape, blocks(b, 11)),
        data.rows("b", b.shape, [(0, b)]),
    ]
places = [{e.key: e.value for e in tensor.external_data} for tensor in kept]
wanted = [a, a.T, b.T, b]
cut = onnx.helper.make_graph(
    [onnx.helper.make_node("Add", ["x", "y"], ["z"])], "g",
    [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy"],
    [onnx.helper.make_tensor_value_info("z", 1, [1])],
)
try:
    onnxfile.cut(onnx.helper.make_model(cut), ["x"], ["z"])
    needed = ""
except ValueError as error:
    needed = str(error)
print(json.dumps({
    "same": [bool(np.array_equal(onnxfile.values(t, folder), w))
             for t, w in zip(kept, wanted, strict=True)],
    "aligned": [int(place["offset"]) % onnxfile.ALIGNMENT for place in places],
    "inner_bytes": [len(tensor.raw_data) for tensor in kept],
    "needed": needed,
}))
"""
