"""Programs that the tests of compiling and proving run by the qnn toolchain's Python."""

# QUANTIZED SETTINGS TWINS COUNT BOS: greedy tokens of each prompt by Genie, told that BOS begins a
# text, and by the twins without Genie; and how far below the best token, as a share of all logits'
# width, the twins put Genie's where they first differ.
TOKENS = """
import json, sys
from pathlib import Path
import genie, twins

quantized, settings, folder = (Path(word) for word in sys.argv[1:4])
count, bos = int(sys.argv[4]), int(sys.argv[5])
files = twins.files(folder)
order = [file for tokens in sorted(files)[::-1] for file in files[tokens]]
config = json.loads((settings / "genie_config.json").read_text())
config["dialog"]["context"]["bos-token"] = bos
dialog = genie.Genie().dialog(
    genie.with_paths(config, {"tokenizer": quantized, "extensions": settings}, order)
)
emulated = twins.Twins(folder=quantized, cpus=2, binaries=files)
told = []
for length in (3, 16, 21, 40):
    ids = [(7 * i * i + 11 * length) % 250 + 2 for i in range(length)]
    made = dialog.continue_tokens(ids, count)
    dialog.reset()
    ids = [bos, *ids] if bos >= 0 else ids
    wanted = emulated.answer(ids, count)
    ends = [token for token in wanted if token in emulated.spec["eos"]]
    wanted = wanted[: len(wanted) - len(ends)]  # Genie gives no token for the end of a text
    pairs = enumerate(zip(made, wanted))
    at = next((i for i, (a, b) in pairs if a != b), min(len(made), len(wanted)))
    behind = 0.0
    if made != wanted:
        emulated.clear()
        row = emulated.run(ids)[-1]
        for token in made[:at]:
            row = emulated.run([token], tokens=1)[-1]
        chosen = made[at] if at < len(made) else emulated.spec["eos"][0]
        behind = float((row.max() - row[chosen]) / (row.max() - row.min()))
    told.append([made, wanted, behind])
print("TOLD" + json.dumps(told), flush=True)
import os; os._exit(0)
"""

# SETTINGS QUANTIZED TWINS CHANGE: what Genie says of a configuration; CHANGE is Python.
REFUSED = """
import json, os, sys
from pathlib import Path
import genie, twins

settings, quantized, folder = (Path(word) for word in sys.argv[1:4])
files = twins.files(folder)
order = [file for tokens in sorted(files)[::-1] for file in files[tokens]]
config = json.loads((settings / "genie_config.json").read_text())
config = genie.with_paths(config, {"tokenizer": quantized, "extensions": settings}, order)
exec(sys.argv[4])
try:
    genie.Genie().dialog(config)
    print("TOLD" + json.dumps("nothing"), flush=True)
except genie.GenieError as error:
    print("TOLD" + json.dumps(str(error)), flush=True)
os._exit(0)
"""

# FILE…: what the reader says of each, in order: how many graphs, or why not.
READ = """
import json, sys
from pathlib import Path
from stagekit import BadInput
import context_binary

told = []
for word in sys.argv[1:]:
    try:
        told.append(len(context_binary.read(Path(word))["graphs"]))
    except BadInput as bad:
        told.append(bad.text)
print("TOLD" + json.dumps(told))
"""

# How splits.plan cuts a model of which only the weights' sizes are known.
PLAN = """
import json, sys
from stagekit import BadInput
import splits

def cut(weights, asked=0):
    try:
        return [[s.first, s.end, s.enters, s.leaves] for s in splits.plan(weights, asked)]
    except BadInput as bad:
        return bad.text

gib = 1 << 30
print("TOLD" + json.dumps({
    "small": cut([10, 1, 1, 1, 5]),
    "two": cut([10, 1, 1, 1, 5], 2),
    "heavy_head": cut([0, 3, 3, 3, 3, 9], 2),
    "large": len(cut([gib // 4, *[gib // 8] * 32, gib // 4])),
    "all_below": max(
        sum(gib // 8 for _ in range(a, b)) + (gib // 4) * ((a == 0) + (b == 32))
        for a, b, *_ in cut([gib // 4, *[gib // 8] * 32, gib // 4])
    ) <= gib,
    "too_many": cut([1, 1, 1, 1], 3),
}))
"""

# WORDS: a child of childwork that does what it is told.
CHILD = """
import os, signal, sys, time
import childwork

def work(request, tell):
    tell({"begun": os.getpid()})
    how = request["how"]
    if how == "crash":
        print("the last thing I said", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(60)
    if how == "leave":
        os._exit(3)
    if how == "raise":
        raise ValueError("no good")
    return {"pid": os.getpid()}

childwork.answer(work)
"""

# CHILD HOW SECONDS: what the parent makes of it.
PARENT = """
import json, sys, time
from pathlib import Path
import childwork

heard = []
begun = time.monotonic()
try:
    said = childwork.call(Path(sys.argv[1]), {"how": sys.argv[2]}, told=heard.append,
                          seconds=float(sys.argv[3]))
    told = "well" if "pid" in said else "odd"
except childwork.Crashed as crash:
    told = str(crash)
print("TOLD" + json.dumps([told, len(heard), time.monotonic() - begun]))
"""

# MODEL FOLDER: write a copy of the quantised model with a node in it that Hexagon has not.
STRANGE = """
import shutil, sys
from pathlib import Path
import onnx, onnxfile
from onnx import helper

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
shutil.copytree(source, folder)
model = onnxfile.load(folder / "model.onnx")
for place, node in enumerate(model.graph.node):
    if node.name == "layers.1.silu":
        twin = helper.make_node("Sinh", [node.output[0] + ".before"], list(node.output),
                                name="layers.1.strange")
        node.output[0] += ".before"
        model.graph.node.insert(place + 1, twin)
        break
else:
    raise SystemExit("no such node")
onnxfile.save(model, folder / "model.onnx")
print("TOLD1")
"""

# QUANTIZED SETTINGS BINARY: how a dialog with that binary ends.
CRASH = """
import json, sys
from pathlib import Path
import childwork, rehearse

request = {"kind": "dialog", "quantized": sys.argv[1], "settings": sys.argv[2],
           "binaries": sys.argv[3:], "prompts": ["a"], "tokens": 2, "seconds": 9}
try:
    told = childwork.call(Path(rehearse.__file__), request)
except childwork.Crashed as crash:
    told = str(crash)
print("TOLD" + json.dumps(told))
"""

# CHILD: print the child's process number and wait for it.
WAIT = """
import sys
from pathlib import Path
import childwork

childwork.call(Path(sys.argv[1]), {"how": "hang"}, told=lambda e: print(e["begun"], flush=True))
"""
