"""A stand-in for the vendor's QAIRT SDK: the same folders, tools that are real programs.

It is not the SDK and compiles nothing. Its tools check what they are given as far as the real
ones would notice (files that exist, JSON that parses, raw inputs of the right length), append
their command line and environment to the file STANDIN_LOG names, and write the files that the
real ones would. What only the real SDK can show is whether it takes the graphs.
"""

from __future__ import annotations

import sys
import textwrap
import zipfile
from pathlib import Path

VERSION = "2.36.0.250627"
BUILD = "v2.36.0.250627101419"
HOST = "x86_64-linux-clang"
PHONE = "aarch64-android"
ARCHES = ("v73", "v75", "v79")

_TOOL = """
#!{python}
import hashlib, json, os, sys
from pathlib import Path

NAME, words = Path(sys.argv[0]).name, sys.argv[1:]
kept = ("QNN_SDK_ROOT", "PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "HEXAGON_TOOLS_DIR")
with open(os.environ.get("STANDIN_LOG", "standin.log"), "a") as log:
    env = {{name: os.environ.get(name, "") for name in kept}}
    log.write(json.dumps({{"tool": NAME, "words": words, "env": env}}) + "\\n")


def after(flag):
    return words[words.index(flag) + 1]


def digest(*files):
    return hashlib.sha256(b"".join(Path(f).read_bytes() for f in files)).hexdigest()


if os.environ.get("STANDIN_FAILS") == NAME:
    print("ERROR - the stand-in was told to fail")
    sys.exit(3)
if os.environ.get("STANDIN_SILENT") == NAME:
    sys.exit(0)
if NAME == "mha2sha-onnx-converter":
    model, encodings = after("--exported-model-path"), after("--exported-model-encoding-path")
    json.loads(Path(encodings).read_text())
    made = Path(after("--sha-export-path")) / after("--model-name")
    made.with_name(made.name + ".onnx").write_bytes(Path(model).read_bytes())
    made.with_name(made.name + ".encodings").write_bytes(Path(encodings).read_bytes())
elif NAME == "qairt-converter":
    network, overrides = after("--input_network"), after("--quantization_overrides")
    json.loads(Path(overrides).read_text())
    Path(after("-o")).write_text("DLC " + digest(network, overrides))
elif NAME == "qairt-quantizer":
    sizes = {{}}
    for line in Path(after("--input_list")).read_text().splitlines():
        for word in line.split():
            tensor, _, file = word.partition(":=")
            sizes.setdefault(tensor, set()).add(Path(file).stat().st_size)
    if not sizes or any(len(found) != 1 for found in sizes.values()):
        sys.exit("the samples of a tensor differ in size")
    Path(after("--output_dlc")).write_text("QDLC " + digest(after("--input_dlc")))
elif NAME == "qnn-context-binary-generator":
    outer = json.loads(Path(after("--config_file")).read_text())
    inner = json.loads(Path(outer["backend_extensions"]["config_file_path"]).read_text())
    with open(os.environ.get("STANDIN_LOG", "standin.log"), "a") as log:
        log.write(json.dumps({{"tool": "settings", "outer": outer, "inner": inner}}) + "\\n")
    made = Path(after("--output_dir")) / (after("--binary_file") + ".bin")
    made.write_text("BIN " + digest(*after("--dlc_path").split(",")) + json.dumps(inner))
"""


def folder(
    place: Path, *, version: str = VERSION, mha2sha: bool = True, arches: tuple[str, ...] = ARCHES
) -> Path:
    """Write a stand-in SDK below `place`; gives qairt/VERSION."""
    root = place / "qairt" / version
    tools = root / "bin" / HOST
    tools.mkdir(parents=True)
    names = ["qairt-converter", "qairt-quantizer", "qnn-context-binary-generator"]
    for name in [*names, *(["mha2sha-onnx-converter"] if mha2sha else [])]:
        tool = tools / name
        tool.write_text(textwrap.dedent(_TOOL).lstrip().format(python=sys.executable))
        tool.chmod(0o755)
    (root / "sdk.yaml").write_text(f"name: qairt\nversion: {version}\n")
    (root / "bin" / "envsetup.sh").write_text("# sets PATH\n")
    for name in ("libQnnHtp.so", "libQnnModelDlc.so", "libQnnHtpNetRunExtensions.so"):
        library(root / "lib" / HOST / name)
    names = ["libGenie.so", "libQnnHtp.so", "libQnnHtpNetRunExtensions.so", "libQnnSystem.so"]
    for arch in arches:
        number = arch.removeprefix("v")
        names.append(f"libQnnHtpV{number}Stub.so")
        library(root / "lib" / f"hexagon-{arch}" / "unsigned" / f"libQnnHtpV{number}Skel.so")
    for name in names:
        library(root / "lib" / PHONE / name)
    library(root / "bin" / PHONE / "genie-t2t-run")
    library(root / "docs" / "not-needed.html")
    return root


def library(path: Path, build: str = BUILD) -> None:
    """A file that says of itself what a library of that build does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    release = ".".join(build.removeprefix("v").split(".")[:3])
    path.write_bytes(b"\x7fELF" + bytes(60) + f"{build}\0AISW_VERSION: {release}\0".encode())


def zipped(root: Path, file: Path, *, inside: str = "") -> Path:
    """An SDK folder as the vendor's zip: its members begin with qairt/VERSION."""
    prefix = inside or f"qairt/{root.name}"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(path, f"{prefix}/{path.relative_to(root).as_posix()}")
    return file
