"""`kiln models get` on a box of 2 GiB: little memory, and it goes on where it was killed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.boxes import kit
from tests.boxes.conftest import Rent
from tests.boxes.kit import Box
from tests.builds.kit import until
from tests.unit.servers import HubHandler, Site, serving
from tests.unit.tinymodel import CONFIG, SHAPES, write_weights

pytestmark = [pytest.mark.engine, pytest.mark.slow]

REPO = "org/large"
# Larger than the box's memory allows anybody to hold more than once.
SIZE = 1200 << 20
WIDE = 4096
MIB = 1 << 20
# What the command itself may take, Python and all, in bytes; measured: 49 MiB.
MOST = 128 * MIB


@dataclass
class Halting(Site):
    """A hub whose first large answer stops half-way until it is told to go on."""

    go_on: threading.Event = field(default_factory=threading.Event)
    sent: int = 0


class HaltingHub(HubHandler):
    site: Halting

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        if self.command == "HEAD" or len(body) < 64 * MIB:
            return super().reply(status, body, **headers)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body), MIB):
            if start > len(body) // 2:
                self.site.go_on.wait()
            self.site.sent += self.wfile.write(body[start : start + MIB])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Halting]:
    """It has one model: SIZE bytes in one file, nearly all of them the embedding."""
    place = tmp_path_factory.mktemp("large") / "model.safetensors"
    rows = SIZE // 2 // WIDE
    write_weights(place, {**SHAPES, "model.embed_tokens.weight": (rows, WIDE)})
    config = {**CONFIG, "hidden_size": WIDE, "vocab_size": rows}
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b'{"version": "1.0", "model": {}}',
        "model.safetensors": place.read_bytes(),
    }
    place.unlink()
    site = Halting(files={f"/{REPO}/{name}": body for name, body in files.items()})
    with serving(site, HaltingHub, host="0.0.0.0"):
        yield site


# Tells the most memory that a command and what it started ever held at once, each by itself.
MEASURED = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024);"
    "sys.exit(code)"
)


def get(box: Box, site: Site) -> list[str]:
    """The command's words and environment."""
    address = f"http://{kit.gateway(box.engine)}:{site.url.rpartition(':')[2]}"
    env = box.kiln_env(env={"HF_ENDPOINT": address, "EDGEKILN_VENDOR": ""})
    words = ["python3", "-c", MEASURED, *box.kiln_words("models", "get", REPO)]
    return box.words(*words, env=env)


def test_a_large_model_comes_through_a_kill_into_two_gigabytes(rent: Rent, hub: Halting) -> None:
    box = rent(memory="2g")
    first = threading.Thread(target=lambda: kit.engine_call(box.engine, *get(box, hub)))
    first.start()
    until(lambda: hub.sent > SIZE // 2, "half of it has come", 120)
    box.run("pkill", "-KILL", "-f", "edgekiln models get")
    first.join()
    hub.go_on.set()
    hub.asked.clear()
    done = kit.engine_call(box.engine, *get(box, hub))
    assert done.returncode == 0, done.stderr + done.stdout
    spans = [
        span for method, path, span in hub.asked if method == "GET" and path.endswith("tensors")
    ]
    begun = [int(found[1]) for span in spans if (found := re.fullmatch(r"bytes=(\d+)-", span))]
    assert begun and begun[0] > SIZE // 4, spans
    peak = int(done.stdout.split("peak ")[1])
    assert peak < MOST, peak
