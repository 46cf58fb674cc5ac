"""What a build is refused for on a box that cannot end it: known before anything is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import doctor, units, yamls
from edgekiln.boxes import fits, gpu
from edgekiln.boxes.profiles import current
from edgekiln.doctor import Check
from edgekiln.errors import AccessError, BoxError, KilnError
from edgekiln.home import home
from edgekiln.toolchain import load_toolchain

if TYPE_CHECKING:
    from edgekiln.backends.base import Backend
    from edgekiln.models.model import Model
    from edgekiln.pipeline import Pipeline
    from edgekiln.toolchain import Toolchain

# Executors that install a toolchain on this very machine.
ON_THIS_MACHINE = ("native", "rootfs")
# The shape of the smallest model that there is an example of: what any other needs is more.
_LEAST: dict[str, Any] = {
    "layers": 30,
    "hidden_size": 576,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "context_length": 8192,
    "parameters": 134_515_008,
    "weight_bytes": 269_060_552,
}


def refuse_before_fetching(
    backend: Backend, options: Any, roles: Iterable[str], executor: str, memory: int | None
) -> None:
    """Raise what this machine lacks for any model, however small: before one is asked for."""
    _, found = of_any_model(backend, options, roles, executor, memory)
    for check in found:
        if check.error:
            raise check.error


def of_any_model(
    backend: Backend, options: Any, roles: Iterable[str], executor: str, memory: int | None = None
) -> tuple[str, list[Check]]:
    """What a build needs whatever its model is, against what this machine has.

    `executor` is the one asked for, `memory` the limit that was. Returns the name of the executor
    that would be taken, and the checks.
    """
    try:
        pipeline = backend.plan(options, {role: _small() for role in roles})
        toolchains = [load_toolchain(name) for name in {s.toolchain for s in pipeline.stages}]
    except (KilnError, OSError):  # options that fit no such model: its own plan will tell
        name, found = taken(executor)
        return name, [*writable(), *found, *machine(name)]
    name, found = taken(executor, toolchains)
    least = _least(pipeline, toolchains, name, memory)
    return name, [*writable(), *found, *machine(name), *least]


def taken(executor: str, toolchains: Iterable[Toolchain] = ()) -> tuple[str, list[Check]]:
    """The name of the executor that a build takes, and why none can be had if that is so."""
    from edgekiln.executors.choose import choose_executor

    try:
        found, why = choose_executor(executor, toolchains)
    except KilnError as error:
        return executor, [Check(name="executor", found=error.short, error=error)]
    found.close()
    return found.name, [Check(name="executor", found=f"{found.name}: {why}")]


def writable() -> list[Check]:
    """Whether the cache can be written."""
    try:
        doctor.refuse_unwritable_home()
    except AccessError as error:
        return [Check(name="cache", found=error.why, error=error)]
    return [Check(name="cache", found=str(home()))]


def machine(executor: str) -> list[Check]:
    """What holds for every build: /proc to watch stages by, and a start with the GPU."""
    checks = []
    if executor in ON_THIS_MACHINE and (found := fits.without_proc()):
        checks.append(Check(name="/proc", found=found.why, error=found.error()))
    if error := started_without_gpu():
        checks.append(Check(name="start", found=error.why, error=error))
    return checks


def started_without_gpu() -> BoxError | None:
    """The place's start without a GPU, as an error; None for any other machine."""
    from edgekiln.boxes.limits import memory_limit

    profile, limit = current(), memory_limit()
    if profile.no_gpu is None or limit is None:
        return None
    most = units.parse_size(profile.no_gpu.memory, where=f"{profile.name}: no_gpu")
    if limit > most or gpu.gpus():
        return None
    return BoxError(
        f"this is {profile.summary} started without its GPU",
        why=f"{units.size(limit)} of memory and no GPU: good for {profile.no_gpu.good_for}; "
        "quantising would be killed half-way",
        remedy="fetch here (kiln models get, kiln toolchains fetch), start it with its GPU, then "
        "build; or say --force to try all the same",
    )


def native(toolchains: Iterable[Toolchain], executor: str) -> list[Check]:
    """Whether the toolchains that are still to come fit this machine, and what they lack."""
    if executor != "native":
        return []
    checks = []
    for toolchain in _to_come(toolchains, executor):
        if found := fits.unfit(toolchain):
            name = f"toolchain {toolchain.name}"
            checks.append(Check(name=name, found=found.why, error=found.error()))
        checks += _to_bring(toolchain)
    return checks


def _to_bring(toolchain: Toolchain) -> Iterator[Check]:
    """What an installation takes from the machine; what is missing there may still be brought."""
    python = fits.python_here(toolchain.python) or "not here: uv, then apt, is asked for it"
    yield Check(name=f"Python {toolchain.python}", found=f"{python} (for {toolchain.name})")
    if absent := fits.missing_packages(toolchain):
        found = f"{' '.join(absent)} not installed (for {toolchain.name})"
        yield Check(name="packages", found=found)
    if wanted := gpu.cuda_of(toolchain.name):
        yield Check(name=f"CUDA {wanted}", found=gpu.told_of(wanted))


def room(toolchains: Iterable[Toolchain], executor: str) -> list[tuple[Path, int, str]]:
    """What `doctor.check_disk` wants to know of toolchains that are still to be installed."""
    return [
        (home(), installed(toolchain), f"the toolchain {toolchain.name}")
        for toolchain in _to_come(toolchains, executor)
    ]


def installed(toolchain: Toolchain) -> int:
    """Bytes that a toolchain takes once it is installed; 0 where that was never measured."""
    return _sizes().get(toolchain.name, 0) * 10**6


@lru_cache(maxsize=1)
def _sizes() -> Mapping[str, int]:
    found: dict[str, int] = yamls.beside(__file__, "sizes.yaml")
    return found


def _to_come(toolchains: Iterable[Toolchain], executor: str) -> list[Toolchain]:
    from edgekiln.prefix import prefix_ready
    from edgekiln.rootfs.unpack import is_ready

    if executor not in ON_THIS_MACHINE:
        return []
    ready = is_ready if executor == "rootfs" else prefix_ready
    wanted = {toolchain.name: toolchain for toolchain in toolchains}
    return [each for each in wanted.values() if not ready(each)]


def _least(
    pipeline: Pipeline, toolchains: list[Toolchain], executor: str, memory: int | None
) -> list[Check]:
    hungriest = max(pipeline.stages, key=lambda stage: stage.memory)
    what = f"stage {hungriest.name} of even a model of 135 million parameters"
    needs = [(home(), sum(stage.disk for stage in pipeline.stages), "the store")]
    return [
        *native(toolchains, executor),
        doctor.check_memory(hungriest.memory, memory or doctor.usable_memory(), what),
        *doctor.check_disk([*needs, *room(toolchains, executor)]),
    ]


def _small() -> Model:
    """A model that is nowhere: of the example's shape, for figures alone."""
    from edgekiln.models.model import Model

    config = {"model_type": "llama", "intermediate_size": 1536, "hidden_act": "silu"}
    config |= {"rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    path = home() / "models" / "none"
    about: dict[str, Any] = {"name": "any", "path": path, "source": "local", "family": "llama"}
    return Model(**about, **_LEAST, config=config, dtype="bfloat16", tied=True)
