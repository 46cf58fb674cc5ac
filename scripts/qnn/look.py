"""Stage: what a context binary says of itself, by the vendor's own reader.

Input: `file`, one file. Output: the folder `look` with look.json.
"""

from __future__ import annotations

import context_binary
import jsons

from stagekit import Stage, main

FORMAT = 1


def run(stage: Stage) -> None:
    """Look, and write it down."""
    found = {"format": FORMAT, **context_binary.read(stage.input("file"))}
    out = stage.output("look")
    out.mkdir(parents=True)
    jsons.write(out / "look.json", found)


if __name__ == "__main__":
    main(run)
