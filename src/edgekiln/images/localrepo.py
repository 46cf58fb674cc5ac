"""A folder of packages as an archive that apt and mmdebstrap read, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekiln.calls import call, last_words
from edgekiln.digest import digest_file
from edgekiln.errors import ImageError
from edgekiln.toolchain.wheels import put


def lay_out(debs: Mapping[str, Path], folder: Path, release: str) -> str:
    """Put the files and their index into `folder`; returns the line of sources that names it.

    `release` is the code name that mmdebstrap looks for essential packages under.

    Whoever calls has held the files against a lock: nobody signs this index. Raises ImageError for
    a file that dpkg cannot read.
    """
    folder.mkdir(parents=True)
    records = []
    for name, path in sorted(debs.items()):
        put(path, folder / path.name)
        done = call(["dpkg-deb", "--field", str(path)])
        if done.returncode:
            raise ImageError(f"{path} is no package of {name}", why=last_words(done))
        told = f"Filename: ./{path.name}\nSize: {path.stat().st_size}\n"
        records.append(f"{done.stdout.rstrip()}\n{told}SHA256: {digest_file(path)}\n")
    index = folder / "Packages"
    index.write_text("\n".join(records), encoding="utf-8", newline="\n")
    listed = f"SHA256:\n {digest_file(index)} {index.stat().st_size} Packages\n"
    head = f"Suite: {release}\nCodename: {release}\nArchitectures: amd64\n"
    (folder / "Release").write_text(head + listed, encoding="utf-8", newline="\n")
    # "copy": what mmdebstrap unpacks runs inside the new system, which cannot see this folder.
    return f"deb [trusted=yes] copy:{folder} ./\n"
