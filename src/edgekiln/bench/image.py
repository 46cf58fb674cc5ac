"""A cold build of the mnn image against the same lock installed by hand in a bare container.

By hand means: the same base, the same packages with apt-get, `uv pip install` of the same wheels
with the same uv, its cache empty, the same network; then the container is thrown away. The image
build does more: bytecode, fixed times, layers, and its verify. Both are cold but for the base.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from edgekiln import images
from edgekiln.bench.kit import Context, Figure
from edgekiln.engine import Engine, find_engine
from edgekiln.errors import ImageError
from edgekiln.images.base import ensure_base
from edgekiln.images.context import Context as Staged
from edgekiln.images.context import staged
from edgekiln.progress import Silent
from edgekiln.toolchain import Toolchain, load_toolchain

_AIM = 1.1
_AIM_SIZE = 1.3
_BY_HAND = """set -e
sh /run/kiln/apt-install /run/kiln >/dev/null 2>&1
export SSL_CERT_FILE=/run/secrets/ca UV_CACHE_DIR=/opt/cache
/run/kiln/uv venv --quiet --python /usr/bin/python3 /opt/edgekiln
/run/kiln/uv pip install --quiet --no-deps --require-hashes --find-links /run/kiln/wheels \
    --python /opt/edgekiln/bin/python3 --requirement /run/kiln/wanted.txt
"""


def measure(context: Context) -> Iterator[Figure]:
    """Build and install by hand in turn."""
    engine = find_engine()
    if engine is None:
        print("  left out: no container engine answers")
        return
    toolchain = load_toolchain("mnn")
    ratios, builds = [], []
    for _ in range(max(1, context.repeat // 2)):
        began = time.perf_counter()
        images.build(engine, toolchain, Silent(), fresh=True)
        builds.append(time.perf_counter() - began)
        ratios.append(builds[-1] / _by_hand(engine, toolchain))
    yield Figure(name="cold build of the mnn image", samples=tuple(builds), unit="s")
    name = "image build / uv pip install in a bare container"
    yield Figure(name=name, samples=tuple(ratios), unit="times", aim=_AIM)
    found = engine.image(images.tag(toolchain)) or {}
    size = float(found.get("Size", 0)) / 1e9
    note = "with the bytecode of what stages import"
    yield Figure(name="mnn image", samples=(size,), unit="GB", aim=_AIM_SIZE, note=note)


def _by_hand(engine: Engine, toolchain: Toolchain) -> float:
    base = ensure_base(engine, toolchain.base, Silent(), frozen=False)
    with staged(toolchain, base, Silent(), frozen=False) as context:
        wanted = "".join(
            f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in toolchain.lock.wheels
        )
        (context.folder / "wanted.txt").write_text(wanted)
        command = _container(engine, context)
        began = time.perf_counter()
        done = subprocess.run(command, env=_env(engine), capture_output=True, check=False)
        spent = time.perf_counter() - began
    if done.returncode:
        raise ImageError("the install by hand failed", why=done.stderr.decode()[-300:])
    return spent


def _container(engine: Engine, context: Staged) -> list[str]:
    mounts = [f"--volume={context.folder}:/run/kiln:ro"]
    for name, path in context.secrets.items():
        if Path(path).stat().st_size:
            mounts.append(f"--volume={path}:/run/secrets/{name}:ro")
    network = [f"--network={context.network}"] if context.network else []
    words = [engine.kind, "run", "--rm", *network, *mounts, context.base]
    return [*words, "sh", "-c", _BY_HAND]


def _env(engine: Engine) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": engine.url}
