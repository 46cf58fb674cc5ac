"""mlc_llm's own command line, run as a child process, and what the installed one offers.

The child is the image's Python with `mlcrun.py`, which hands over to `python -m mlc_llm`. With an
input `source` (the folder that holds the package mlc_llm of a checkout) that package is taken.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlcrun

import toolcall
from stagekit import BadInput, Stage

_HERE = Path(__file__).resolve().parent
_OFFERS = "edgekiln-offers:"
_COMMANDS = ("convert_weight", "gen_config", "compile", "package")


@dataclass(frozen=True, kw_only=True)
class Offers:
    """What the installed mlc_llm knows, by name."""

    version: str
    quantizations: tuple[str, ...]
    templates: tuple[str, ...]
    models: tuple[str, ...]
    codegens: tuple[str, ...]

    def check_quantization(self, name: str) -> None:
        """Raise BadInput for a quantisation this mlc_llm has not."""
        _known("quantization", name, self.quantizations)

    def check_template(self, name: str) -> None:
        """Raise BadInput for a conversation template this mlc_llm has not."""
        _known("conversation template", name, self.templates)

    def check_model_type(self, name: str) -> None:
        """Raise BadInput for a kind of model this mlc_llm has not."""
        _known("model type", name, self.models)


def _known(what: str, name: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 3, 0.5)
    remedy = f"did you mean {' or '.join(near)}? it has" if near else "it has"
    raise BadInput(
        f"this mlc_llm has no {what} called {name!r}", remedy=f"{remedy} {', '.join(names)}"
    )


def offers(stage: Stage) -> Offers:
    """Ask the installed mlc_llm what it offers."""
    lines = run(stage, ["--edgekiln-offers"], quiet=True)
    told = next(line for line in lines if line.startswith(_OFFERS))
    said = json.loads(told.removeprefix(_OFFERS))
    return Offers(
        version=said["version"],
        **{
            name: tuple(said[name]) for name in ("quantizations", "templates", "models", "codegens")
        },
    )


def run(
    stage: Stage,
    words: Sequence[str],
    *,
    told: toolcall.Told | None = None,
    more: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """Run `mlc_llm WORDS`, pass its log on, and give its lines without colours.

    `told` hears of each step of a progress bar; `more` is set in the environment. Raises
    ToolError where it ends with anything but 0.
    """
    name = next((word for word in words if word in _COMMANDS), words[0])
    command = [sys.executable, "-s", mlcrun.__file__, *words]
    env = {**environment(stage), **(more or {})}
    try:
        return toolcall.call(f"mlc_llm {name}", command, env, told=told, cwd=cwd, quiet=quiet)
    except toolcall.ToolError as error:
        if stage.has("source"):
            _explain_source(error)
        raise


def _explain_source(error: toolcall.ToolError) -> None:
    """A checkout that was written for another TVM fails at the first name that has moved."""
    said = toolcall.last_words(error.lines)
    if re.match(r"(ImportError|ModuleNotFoundError|AttributeError)\b.*\btvm", said):
        raise BadInput(
            f"the mlc-llm source wants another TVM than this toolchain's: {said}",
            remedy="check out a commit of the age of this toolchain's apache-tvm, or build "
            "without --mlc-source, with upstream's wheels",
        ) from error


def environment(stage: Stage) -> dict[str, str]:
    """This process's environment, for a child that is mlc_llm.

    Sets iterate in the order of their hashes, which shows in what TVM writes: PYTHONHASHSEED.
    """
    own = {str(_HERE), str(_HERE.parent)}
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in own]
    if stage.has("source"):
        paths.insert(0, str(_package_folder(stage.input("source"))))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONHASHSEED": "0",
        "TVM_NUM_THREADS": str(stage.cpus),
        "MLC_DOWNLOAD_CACHE_POLICY": "READONLY",
        "MLC_JIT_POLICY": "READONLY",
    }


def _package_folder(source: Path) -> Path:
    """The folder that holds the package mlc_llm: `source` itself, or python/ of a checkout."""
    for folder in (source, source / "python"):
        if (folder / "mlc_llm" / "__main__.py").is_file():
            return folder
    raise BadInput(
        "the mlc-llm source holds no Python package mlc_llm",
        remedy="give a checkout of mlc-ai/mlc-llm: its python/mlc_llm is used",
    )


def sources(stage: Stage) -> Path:
    """mlc-llm's sources: the user's checkout (or that of the given python/), or the toolchain's."""
    if not stage.has("source"):
        return Path(os.environ.get("MLC_LLM_SOURCE_DIR", ""))
    given = stage.input("source").resolve()
    return given if (given / "android").is_dir() else given.parent
