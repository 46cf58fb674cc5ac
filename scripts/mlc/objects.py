"""Stage: what is in a model library, read out of its objects, without a tool of the vendor's.

Input: `library`. Parameters: file, system_lib_prefix, target. Output: `objects` with objects.json.
A library that no phone could use ends this stage: objects of another machine, no symbol under the
prefix, no OpenCL kernel beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import objfile

from stagekit import BadInput, Stage, main

_NAMED = 40
# The machine of each target's objects; a target that is not here may have any.
_MACHINES = {
    "android": ("elf", "aarch64"),
    "android:adreno": ("elf", "aarch64"),
    "iphone": ("mach-o", "aarch64"),
    "metal": ("mach-o", "aarch64"),
    "windows": ("coff", "x86_64"),
    "webgpu": ("wasm", "wasm32"),
}


def run(stage: Stage) -> None:
    """Read, judge, write down."""
    folder = stage.input("library")
    file = _file(folder, stage.param("file", str, ""))
    target = stage.param("target", str, "android")
    prefix = stage.param("system_lib_prefix", str, "")
    facts = look(file, target=target, prefix=prefix)
    out = stage.output("objects")
    out.mkdir(parents=True)
    text = json.dumps({"file": file.name, "target": target, **facts}, indent=2)
    (out / "objects.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    stage.note(
        f"{len(facts['objects'])} objects for {facts['machine']}, {facts['kernels']} kernels, "
        f"model_lib {', '.join(facts['model_libs']) or 'none'}"
    )


def _file(folder: Path, name: str) -> Path:
    files = [folder / name] if name else sorted(f for f in folder.iterdir() if f.is_file())
    if len(files) != 1 or not files[0].is_file():
        raise BadInput(
            f"{folder.name} holds {len(files)} files, and none called {name or 'alone'}",
            remedy="say which with the parameter file",
        )
    return files[0]


def look(file: Path, *, target: str, prefix: str) -> dict[str, Any]:
    """What a library holds. Raises BadInput for what the target could not use."""
    try:
        objects = objfile.read_library(file)
    except objfile.Damaged as damaged:
        raise BadInput(str(damaged), remedy="compile the library again") from damaged
    if not objects:
        raise BadInput("the library holds no object at all", remedy="compile it again")
    form, machine = _MACHINES.get(target, ("", ""))
    strange = [o for o in objects if form and (o.format, o.machine) != (form, machine)]
    if strange:
        what = f"{strange[0].format} {strange[0].machine}".strip()
        raise BadInput(
            f"{strange[0].name} is {what}, and {target} takes {form} {machine}",
            remedy=f"compile the library with --target {target}",
        )
    names = objfile.model_libs(objects)
    if prefix and form == "elf" and not objfile.prefixed(objects, prefix):
        raise BadInput(
            f"no symbol {prefix}{objfile.BLOBS[0]}: the library is called "
            f"{' and '.join(names) or 'nothing'}",
            remedy="model_lib is the system-lib prefix without its last underscore",
        )
    kernels = objfile.kernels(objects)
    count = sum(len(k) for k in kernels.values())
    if target.startswith("android") and count == 0:
        raise BadInput(
            "the library holds no OpenCL kernel",
            remedy="compile it for android; one for a processor alone has none",
        )
    return {
        "machine": machine or objects[0].machine,
        "objects": [o.facts() for o in objects],
        "model_libs": sorted(names),
        "symbols": {"found": sorted(names.values())},
        "kernels": count,
        "kernels_in": sorted(kernels),
        "kernel_names": sorted({k for found in kernels.values() for k in found})[:_NAMED],
    }


if __name__ == "__main__":
    main(run)
