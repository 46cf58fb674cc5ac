"""Stage: a Hugging Face model directory into MNN's model files, with llmexport.

Inputs: `model`; where the options name them also `calib_data`, `quant_config` (files), `eagle`,
`lora`, `gptq` (folders). Output: the folder `mnn`. Parameters: llmexport's own option names; a
missing or null one keeps llmexport's default.

The same inputs give the same bytes: the random mnn_uuid that the converter writes is replaced
by one made from the weights, and export_args.json names the inputs, not this machine's paths.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import types
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stagekit import BadInput, Stage, main

# llmexport options this program sets itself, each to the name of a stage input.
INPUTS = {
    "path": "model",
    "calib_data": "calib_data",
    "quant_config": "quant_config",
    "eagle_path": "eagle",
    "lora_path": "lora",
    "gptq_path": "gptq",
}
# And those that make no sense here: where to write, what to try, which converter binary.
OWN = {"dst_path", "export", "tokenizer_path", "mnnconvert", "test", "verbose", "type"}
# A converter binary beside the sources; the empty name makes llmexport use the wheel's own.
NO_BINARY = ""
EXPECTED = ("llm.mnn", "llm.mnn.weight", "llm_config.json", "config.json", "tokenizer.mtok")


def run(stage: Stage) -> None:
    """Export, then make the result independent of when and where it was made."""
    model = stage.input("model")
    if not (model / "config.json").is_file():
        raise BadInput(f"{model.name} holds no config.json", remedy="give a model directory")
    keep_telemetry_out()
    out = stage.output("mnn")
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # llmexport writes .export.log where it stands
        llmexport = load_llmexport(stage)
        arguments = parse(llmexport, stage, out)
        _tell_progress(stage)
        _mend_awq()
        try:
            exporter = llmexport.LlmExporter(arguments)
            if arguments.omni:  # llmexport widens a 16-bit model for awq and smooth only
                exporter.model.float()
            exporter.export("mnn")
        finally:
            _show_log(Path(".export.log"))
    check(out)
    normalise(out, arguments)
    stage.note(f"exported {sum(f.stat().st_size for f in out.iterdir()):,} bytes")


def keep_telemetry_out() -> None:
    """Bar the module that installs a package and reports each conversion to its makers.

    MNN's converter imports it inside a try; with None in its place that import fails quietly.
    """
    sys.modules["MNN.tools.utils.log"] = None  # type: ignore[assignment]


def load_llmexport(stage: Stage) -> Any:
    """The llmexport module, with its folder on the path: it imports `utils` as a top-level name."""
    found = importlib.util.find_spec("llmexport")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("llmexport is not installed in this Python")
    sys.path.insert(0, found.submodule_search_locations[0])
    if stage.has("calib_data"):
        sys.modules["datasets"] = _calibration_only(stage.input("calib_data"))
    import llmexport  # the module inside the folder, not the package around it

    return llmexport


def _calibration_only(file: Path) -> types.ModuleType:
    """A stand-in for the package `datasets`, which llmexport imports even for a local text.

    Whatever data set is asked for, it hands out the lines of the calibration file.
    """
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise BadInput("the calibration data holds no text", remedy="one sample a line, UTF-8")
    module = types.ModuleType("datasets")
    module.__dict__["load_dataset"] = lambda *_, **__: [{"text": line} for line in lines]
    return module


def parse(llmexport: Any, stage: Stage, out: Path) -> argparse.Namespace:
    """llmexport's own arguments, from the stage's parameters and inputs."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    llmexport.build_args(parser)
    known = {action.dest: action for action in parser._actions}
    words = ["--dst_path", str(out), "--export", "mnn", "--mnnconvert", NO_BINARY]
    for option, name in INPUTS.items():
        if stage.has(name):
            words += [f"--{option}", str(stage.input(name))]
    for name, value in stage.params.items():
        if name not in known or name in OWN or name in INPUTS:
            raise BadInput(f"llmexport has no option {name} to set here")
        words += _words(name, value, known[name])
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise BadInput(str(error)) from error


def _words(name: str, value: Any, action: argparse.Action) -> list[str]:
    if value is None or value is False:
        return []
    if action.nargs == 0:
        if value is not True:
            raise BadInput(f"parameter {name} is {value!r}, not true or false")
        return [f"--{name}"]
    return [f"--{name}", str(value)]


def _tell_progress(stage: Stage) -> None:
    """Hear llmexport's own loops: each one is a tqdm over layers, samples or operators."""

    def told(items: Sequence[Any], desc: str = "", **_: Any) -> Iterator[Any]:
        for done, item in enumerate(items, 1):
            yield item
            stage.progress(done, len(items), unit="steps", what=desc.strip(". :"))

    for name, module in list(sys.modules.items()):
        if name.startswith("utils.") and hasattr(module, "tqdm"):
            module.__dict__["tqdm"] = told


def _mend_awq() -> None:
    """Empty the attention's cache before each trial of a scale.

    llmexport's smooth and omni do so themselves; its awq forgets, and fails on the second trial.
    """
    quantizer = sys.modules["utils.awq_quantizer"].AwqQuantizer
    forward = quantizer._module_forward

    def mended(self: Any, x: Any, module: Any, module_kwargs: Any) -> Any:
        for part in module.modules():
            if hasattr(part, "past_key_value"):
                part.past_key_value = None
        return forward(self, x, module, module_kwargs)

    quantizer._module_forward = mended


def _show_log(log: Path) -> None:
    """The converter's own words, which it writes to a file, into the stage's log."""
    if log.exists():
        sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))


def check(out: Path) -> None:
    """llmexport goes on after a failed step; what must be there is looked for here."""
    missing = [name for name in EXPECTED if not (out / name).is_file()]
    empty = [f.name for f in out.iterdir() if f.is_file() and f.stat().st_size == 0]
    if missing or empty:
        raise RuntimeError(f"the export is not whole: missing {missing}, empty {empty}")


def normalise(out: Path, arguments: argparse.Namespace) -> None:
    """Take out what differs between two runs: the random ids and the paths."""
    for model in sorted(out.glob("*.mnn")):
        _fix_uuid(model)
    named = {"dst_path": "mnn", "tokenizer_path": "model", "mnnconvert": None}
    named |= {o: n for o, n in INPUTS.items() if getattr(arguments, o) is not None}
    shown = {**vars(arguments), **named}
    text = json.dumps(shown, indent=4, sort_keys=True, ensure_ascii=False)
    (out / "export_args.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    for left in (out / "onnx", out / ".export.log"):
        _remove(left)


def _fix_uuid(model: Path) -> None:
    import MNN

    random = MNN.get_model_uuid(str(model)).encode()
    if len(random) != 36:
        return
    blank = b"-" * 36
    weights = model.with_name(f"{model.name}.weight")
    name = _digest([model.read_bytes().replace(random, blank)], weights)
    steady = str(uuid.uuid5(uuid.NAMESPACE_OID, name)).encode()
    for file in (model, model.with_name(f"{model.name}.json")):
        if file.exists():
            file.write_bytes(file.read_bytes().replace(random, steady))


def _digest(pieces: list[bytes], weights: Path) -> str:
    import hashlib

    sha = hashlib.sha256(b"".join(pieces))
    if weights.exists():
        with weights.open("rb") as file:
            while piece := file.read(1 << 20):
                sha.update(piece)
    return sha.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(run)
